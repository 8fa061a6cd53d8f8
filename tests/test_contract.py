"""One suite over every recipe: what each attack and each explainer promises by being one."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, get_type_hints

import pytest
import torch
from conftest import Counter, filled, predicted
from givens import GIVEN, NETS
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import attacks, explain
from foible.attacks import Attack, Curve, Result
from foible.attacks.explanations import Bend
from foible.attacks.fooling_both import FoolBoth
from foible.attacks.fragility import Fragile
from foible.core.access import Access
from foible.core.errors import AccessError
from foible.core.explainer import Explainer
from foible.core.spec import build, digest, spec
from foible.models import wrap
from foible.parts.threats import L0, L2, Linf


def recipes(room: Any) -> list[str]:
    """Public functions in lower case that take settings, not data."""
    data = {"a", "b", "data", "model", "models", "source", "explainer_model"}
    names = [n for n in room.__all__ if inspect.isfunction(getattr(room, n))]
    names = [n for n in names if not data & set(inspect.signature(getattr(room, n)).parameters)]
    return [n for n in names if "autoencoder" not in needed(getattr(room, n))]


def needed(function: Any) -> set[str]:
    """Parameters without a default."""
    given = inspect.signature(function).parameters.values()
    return {p.name for p in given if p.default is inspect.Parameter.empty}


def explainers() -> list[str]:
    """Public functions that make an explainer; the others of that room measure or tell."""
    made = {n: getattr(explain, n) for n in explain.__all__}
    made = {n: f for n, f in made.items() if inspect.isfunction(f)}
    made = {n: f for n, f in made.items() if "model" not in needed(f)}  # that is training
    kinds = {n: get_type_hints(f).get("return") for n, f in made.items()}
    return [n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, Explainer)]


ATTACKS, EXPLAINERS = recipes(attacks), explainers()
OF_MAPS = ("bend", "fool_both", "fragile")  # attacks on explanations have results of their own
BUDGET = [n for n in ATTACKS if n not in (*OF_MAPS, "curve")]
SOURCE = re.compile(r"\b(19|20)\d\d\b|\(([ABRDMX]\d+|survey)")


@pytest.fixture
def given(
    request: pytest.FixtureRequest, net: nn.Module, images: Tensor
) -> tuple[nn.Module, Tensor, Tensor]:
    x, name = images[:3], request.node.callspec.params["name"]
    if name in NETS:
        net = filled(NETS[name](), 5, 2.0).train()
    return net, x, predicted(net, x)


def run(name: str, model: Any, x: Tensor, y: Tensor, seed: int = 0) -> list[Tensor]:
    """Everything that a recipe gives, as tensors."""
    part = GIVEN[name]()
    if isinstance(part, Explainer):
        return [part(model, x, y, seed=seed)]
    if isinstance(part, Bend):
        bent = part(model, x, y, x, seed=seed)
        return [bent.x, bent.similarity, bent.kept]
    if isinstance(part, FoolBoth):
        found = part(model, x, y, seed=seed)
        return [found.x, found.success, found.topk, found.similarity, found.map]
    if isinstance(part, Fragile):
        moved = part(model, x, y, seed=seed)
        return [moved.x, moved.kept, moved.before, moved.after, moved.topk, moved.map]
    if isinstance(part, Curve):
        found = part(model, x, y, seed=seed)
        return [found.x, found.smallest, found.forwards]
    if isinstance(getattr(part.threat, "eps", None), tuple):
        part = part.within(Linf(part.threat.eps[: len(x)]))
    result = part(model, x, y, seed=seed)
    assert isinstance(result, Result)
    return [result.x, result.success, result.distance, result.forwards, result.backwards]


def test_the_sweep_knows_every_recipe() -> None:
    assert set(GIVEN) == set(ATTACKS) | set(EXPLAINERS)
    assert len(ATTACKS) >= 11 and len(EXPLAINERS) >= 6


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_names_its_source(name: str) -> None:
    room = attacks if name in ATTACKS else explain
    text = inspect.getdoc(getattr(room, name)) or ""
    sourceless = ("curve", "random_noise", "random_map")  # ours: a measurement and two controls
    assert SOURCE.search(text) or name in sourceless, text
    assert text.splitlines()[0].startswith("Return") and len(text) > 40


@pytest.mark.parametrize("name", GIVEN)
def test_every_parameter_has_a_type_and_a_default_or_a_threat(name: str) -> None:
    room = attacks if name in ATTACKS else explain
    signature = inspect.signature(getattr(room, name))
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    bare = [p for p in signature.parameters.values() if p.default is inspect.Parameter.empty]
    assert {p.name for p in bare} <= {"threat", "attack", "eps", "explainer", "data"}
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_survives_a_plan(name: str) -> None:
    """To data, through JSON, and back to an equal part; two calls are one value."""
    part = GIVEN[name]()
    stored = json.dumps(spec(part))
    again = build(json.loads(stored))
    assert again == part and type(again) is type(part)
    assert json.dumps(spec(again)) == stored
    assert digest(spec(GIVEN[name]())) == digest(spec(part))
    assert GIVEN[name]() == part


def test_different_parts_have_different_identities() -> None:
    parts = [GIVEN[n]() for n in GIVEN]
    parts += [attacks.fgsm(Linf(0.2)), attacks.fgsm(L2(0.1)), attacks.pgd(L0(4), 4)]
    parts += [attacks.fgsm(Linf(0.1), explain.saliency()), explain.smoothgrad(3, 0.2)]
    assert len({digest(spec(p)) for p in parts}) == len(parts)


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_repeats_itself_under_a_seed(name: str, given) -> None:
    model, x, y = given
    one, two = run(name, model, x, y, 3), run(name, model, x, y, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    random_ones = ("pgd", "r_fgsm", "random_noise", "smoothgrad_attack", "smoothgrad", "lime")
    if name in (*random_ones, "random_map", "vargrad", "expected_gradients"):
        assert not torch.equal(run(name, model, x, y, 4)[0], one[0])


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_leaves_no_trace(name: str, given) -> None:
    model, x, y = given
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, kept = everything_about(model), (x.clone(), y.clone())
    run(name, model, x, y)
    after = everything_about(model)
    assert [k for k in before if not same(before[k], after[k])] == []
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_takes_one_sample_and_gives_finite_values(name: str, given) -> None:
    model, x, y = given
    many, one = run(name, model, x, y)[0], run(name, model, x[:1], y[:1])[0]
    assert one.shape == x[:1].shape and one.dtype == x.dtype and torch.isfinite(one).all()
    assert many.shape == x.shape and not many.requires_grad
    torch.testing.assert_close(one, many[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in GIVEN if n not in (*OF_MAPS, "curve")])
def test_declared_access_is_enough_and_less_is_refused(name: str, given) -> None:
    model, x, y = given
    part = GIVEN[name]()
    enough = Counter(wrap(model), level=part.access)
    torch.testing.assert_close(run(name, enough, x, y)[0], run(name, model, x, y)[0])
    assert (enough.backwards > 0) == (part.access >= Access.GRADIENTS)
    if part.access > Access.LABELS:
        less = Counter(wrap(model), level=Access(part.access - 1))
        with pytest.raises(AccessError, match=r"needs [A-Z]+, the model gives only [A-Z]+"):
            run(name, less, x, y)
        assert less.forwards == 0


@pytest.mark.parametrize("name", BUDGET)
def test_an_attack_has_a_result_that_holds_together(name: str, given) -> None:
    model, x, y = given
    y = y.clone()
    y[1] = (y[1] + 1) % 4
    part: Attack = GIVEN[name]()
    result = part(model, x, y)
    if part.reach is None:  # else the goal is a class, which no sample has at first
        assert result.status[1] == "wrong" and torch.equal(result.x[1], x[1])
    assert result.stop == part.stop and part.name == name
    for status, success in zip(result.status, result.success.tolist(), strict=True):
        assert (status == "survived") != success
    assert torch.equal(result.label, predicted(model, result.x))
    assert torch.equal(result.clean_label, predicted(model, x))
    assert result.distance.dtype == torch.float64 and result.forwards.dtype == torch.int64
    assert result.robust_accuracy == float((~result.success).float().mean())


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_explainer_says_what_it_is(name: str, given) -> None:
    model, x, y = given
    part = GIVEN[name]()
    assert part.verb in ("push", "delete") and isinstance(part.access, Access)
    labels = part(model, x)  # no target: the predicted class
    torch.testing.assert_close(labels, part(model, x, y))
    assert torch.equal(part(model, x, int(y[0]))[:1], part(model, x[:1], y[:1])) or x.shape[0] > 1
    if part.differentiable:
        leaf = x.clone().requires_grad_()
        assert part(model, leaf, y, create_graph=True).requires_grad
    else:
        with pytest.raises(ValueError, match="not differentiable"):
            part(model, x, y, create_graph=True)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_a_signed_explainer_is_a_direction(name: str, given) -> None:
    model, x, y = given
    if not GIVEN[name]().signed:
        assert bool((GIVEN[name]()(model, x, y) >= 0).all())
        with pytest.raises(ValueError, match="unsigned"):
            attacks.fgsm(Linf(0.1), GIVEN[name]())
        return
    attack = attacks.fgsm(Linf(0.1), GIVEN[name]())
    result = attack(model, x, y)
    assert ((result.x - x).abs().max() <= 0.1 + 1e-6) and not torch.equal(result.x, x)
    assert build(json.loads(json.dumps(spec(attack)))) == attack
