"""What cannot be used is refused, with the cure in the message, before the model pays for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Counter, filled, rand
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.attacks import Attack, bim, curve, fgsm, mim, pgd
from foible.core.errors import FoibleError, InputError, KindError, ModelError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.spec import build, spec
from foible.explain.base import Explanation
from foible.models import as_model, softplus_twin, wrap
from foible.parts.searches import Ascent
from foible.parts.threats import L0, L1, L2, Deletion, Linf

X = rand(4, 6, seed=1)
Y = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def model() -> Counter:
    return Counter(wrap(filled(nn.Linear(6, 3), 1)), at_most=2)


def holed(value: float) -> Tensor:
    x = X.clone()
    x[2, 3] = value
    return x


# What is wrong, the class of the error, what the message says.
INPUTS: dict[str, tuple[Any, type[FoibleError], str]] = {
    "NaN": (holed(float("nan")), InputError, r"NaN or infinite in 1 of 4.*rows \[2\].*remove"),
    "infinity": (holed(float("inf")), InputError, "NaN or infinite in 1 of 4"),
    "integers": (
        torch.ones(4, 6, dtype=torch.uint8),
        InputError,
        r"torch.uint8.*x.float\(\) / 255",
    ),
    "an array": (np.zeros((4, 6), np.float32), KindError, "x is ndarray: pass a torch tensor"),
    "no batch": (torch.zeros(6), InputError, r"shape \(6,\).*first dimension is the batch"),
}
BOUNDED = {
    "above": (X * 255, InputError, r"bounds are \[0, 1\].*scale x.*wrap\(net, bounds=\(0, 255\)\)"),
    "below": (X - 2, InputError, "bounds are"),
    "a little above": (holed(1 + 1e-5), InputError, "bounds are"),
    "empty": (X[:0], InputError, "x is empty"),
}
LABELS: dict[str, tuple[Any, type[FoibleError], str]] = {
    "floats": (Y.float(), InputError, r"torch.float32.*class numbers.*argmax"),
    "booleans": (Y > 0, InputError, "torch.bool"),
    "one-hot": (torch.eye(3)[Y], InputError, r"argmax\(1\)"),
    "integer one-hot": (torch.eye(3)[Y].long(), InputError, r"shape \(4, 3\) for 4 samples"),
    "too few": (Y[:3], InputError, r"shape \(3,\) for 4 samples"),
    "a list": ([0, 1, 2, 0], KindError, "is list: pass an int64 tensor"),
    "negative": (Y - 1, InputError, "holds -1: classes are counted from 0"),
}


@pytest.mark.parametrize("attack", [fgsm(Linf(0.1)), curve(fgsm(Linf(0.1)), [0.1])])
@pytest.mark.parametrize("name", [*INPUTS, *BOUNDED])
def test_inputs(name: str, attack: Any, model: Counter) -> None:
    x, error, says = (INPUTS | BOUNDED)[name]
    with pytest.raises(error, match=f"(?s){says}"):
        attack(model, x, Y[: len(x)])
    assert model.forwards == 0


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_explainers(name: str, model: Counter) -> None:
    x, error, says = INPUTS[name]
    with pytest.raises(error, match=f"(?s){says}"):
        explain.saliency()(model, x, 0)
    assert model.forwards == 0
    assert explain.saliency()(model, X * 255, 0).shape == X.shape  # no box, no bounds to break
    assert explain.saliency()(model, X[:0], 0).shape == (0, 6)


@pytest.mark.parametrize("where", ["y", "target"])
@pytest.mark.parametrize("name", LABELS)
def test_labels(name: str, where: str, model: Counter) -> None:
    labels, error, says = LABELS[name]
    y, target = (labels, None) if where == "y" else (Y, labels)
    with pytest.raises(error, match=f"(?s)^{where} .*{says}"):
        pgd(Linf(0.1), 3)(model, X, y, target=target)
    assert model.forwards == 0


@pytest.mark.parametrize("where", ["y", "target"])
def test_labels_outside_the_classes_cost_one_chunk(where: str, model: Counter) -> None:
    """How many classes there are only the model knows; one chunk of two rows is enough to ask."""
    high = torch.tensor([0, 1, 2, 3])
    y, target = (high, None) if where == "y" else (Y, high)
    with pytest.raises(InputError, match=rf"^{where} holds class 3 and the model has classes 0..2"):
        pgd(Linf(0.1), 3)(model, X, y, target=target)
    assert model.forwards == 2 and model.backwards == 0


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        (Y.float(), InputError, "torch.float32"),
        (Y[:3], InputError, r"shape \(3,\)"),
        (torch.cat([Y, Y]), InputError, r"shape \(8,\) .* for 4 samples"),
        (-1, InputError, "counted from 0"),
        (Y - 1, InputError, "counted from 0"),
        (1.0, KindError, "target is float"),
        ("cat", KindError, "target is str"),
        (True, KindError, "target is bool"),
    ],
)
def test_targets_of_explainers(target: Any, error: type, says: str, model: Counter) -> None:
    with pytest.raises(error, match=says):
        explain.integrated_gradients(5)(model, X, target)
    assert model.forwards == 0


@pytest.mark.parametrize("target", [3, torch.tensor([0, 1, 2, 3]), torch.tensor(7)])
def test_targets_outside_the_classes(target: Any, model: Counter) -> None:
    with pytest.raises(InputError, match=r"target holds class \d and the model has classes 0..2"):
        explain.integrated_gradients(500)(model, X, target)
    assert model.forwards <= 2 * 500 + 1 and model.backwards <= 1000


# --- models


def test_weights_that_are_nan_or_infinite() -> None:
    for bad in (float("nan"),):
        net = filled(nn.Linear(6, 3), 1)
        with torch.no_grad():
            net.weight[1, 1] = bad
        for call in (
            lambda net=net: pgd(Linf(0.1))(net, X, Y),
            lambda net=net: explain.saliency()(net, X, 0),
            lambda net=net: explain.lime(10)(net, X, 0),
            lambda net=net: curve(fgsm(Linf(0.1)), [0.1])(net, X, Y),
        ):
            with pytest.raises(ModelError, match=r"scores are NaN for \d of \d inputs.*weights"):
                call()


class Root(nn.Module):
    """Its slope at 0 is infinite, and infinity times 0 is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.head = filled(nn.Linear(6, 3), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sqrt(x))


def test_gradients_that_are_nan() -> None:
    x = X.clone()
    x[1, 2] = 0.0
    y = Root()(x).argmax(1)
    for call in (
        lambda: pgd(Linf(0.1))(Root(), x, y),
        lambda: bim(L2(0.1))(Root(), x, y),
        lambda: explain.saliency()(Root(), x, 0),
    ):
        with pytest.raises(ModelError, match=r"not finite for \d+ of \d+ samples.*square root"):
            call()
    assert fgsm(Linf(0.1))(Root(), X, Root()(X).argmax(1)).x.isfinite().all()


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Linear(6, 1), 'with one class nothing can be fooled.*outputs="logit"'),
        (nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1))), r"shape \(\d, 3, 1\) for \d inp"),
        (nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), r"shape \(6,\) for 2 inputs|shape \(3,\)"),
        (nn.Flatten(0), "shape"),
    ],
)
def test_outputs_of_the_wrong_shape(net: nn.Module, says: str) -> None:
    with pytest.raises((ModelError, InputError), match=f"(?s){says}"):
        pgd(Linf(0.1))(Counter(wrap(net), at_most=2), X, Y * 0)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x[:, :3], x[:, 3:]


def both(out: Any) -> Any:
    return out


def test_outputs_that_are_no_tensor() -> None:
    with pytest.raises(ModelError, match=r"returned tuple.*outputs= a function that picks"):
        fgsm(Linf(0.1))(Pair(), X, Y)
    with pytest.raises(ModelError, match=r"scores of shape tuple.*outputs="):
        fgsm(Linf(0.1))(Counter(wrap(Pair(), outputs=both), at_most=2), X, Y)


@pytest.mark.parametrize("thing", [None, 3, "model.pt", nn.Linear, {"a": 1}, lambda x: x])
def test_things_that_are_no_model(thing: Any) -> None:
    for call in (as_model, lambda m: fgsm(Linf(0.1))(m, X, Y), lambda m: explain.lime()(m, X, 0)):
        with pytest.raises(KindError, match=r"expected a torch.nn.Module.*foible.wrap"):
            call(thing)
    with pytest.raises(KindError, match="takes a torch.nn.Module"):
        wrap(thing)


def test_wrapping() -> None:
    net = nn.Linear(6, 3)
    for bounds in ((1, 0), (0, 0), (float("nan"), 1)):
        with pytest.raises(InputError, match="the first must be below the second"):
            wrap(net, bounds=bounds)
    with pytest.raises(InputError, match="choose logits, probabilities, logit"):
        wrap(net, outputs="softmax")
    with pytest.raises(InputError, match="every entry must be positive"):
        wrap(net, preprocess=([0.5], [0.0]))


def test_a_model_without_modules_has_no_twin() -> None:
    with pytest.raises(KindError, match="holds no torch module"):
        softplus_twin(Counter(wrap(nn.Linear(6, 3))))


# --- settings


@pytest.mark.parametrize("kind", [Linf, L2, L1, L0])
@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -1.0])])
def test_radii(kind: type, eps: Any) -> None:
    with pytest.raises(InputError, match="a radius must be finite and not negative"):
        kind(eps)


@pytest.mark.parametrize("eps", ["0.1", torch.ones(2, 2), [[0.1]], None.__class__])
def test_radii_of_the_wrong_kind(eps: Any) -> None:
    with pytest.raises(FoibleError, match="eps is"):
        Linf(eps)


def test_radii_of_the_wrong_length(model: Counter) -> None:
    for attack in (fgsm(Linf([0.1, 0.2])), pgd(L2(torch.ones(5)))):
        with pytest.raises(InputError, match=r"holds \d eps for 4 samples: give one float"):
            attack(model, X, Y)
    assert model.forwards == 0


RECIPES: list[Callable[..., Attack]] = [
    fgsm, pgd, bim, mim, attacks.r_fgsm, attacks.least_likely, attacks.smoothgrad_attack,
    attacks.random_noise,
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_budget_attack_needs_a_budget(recipe: Callable[..., Attack]) -> None:
    with pytest.raises(InputError, match=r"L2\(\) has no eps.*e.g. L2\(0.1\)"):
        recipe(L2())


def test_bending_and_bare_attacks_need_a_budget(model: Counter) -> None:
    with pytest.raises(InputError, match="has no eps"):
        attacks.bend(Linf(), explain.saliency())
    with pytest.raises(InputError, match="no eps"):
        Attack("bare", Linf(), Ascent(1))(model, X, Y)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pgd(Linf(0.1), objective="crossentropy"), "no objective.*cross_entropy, margin"),
        (lambda: pgd(Linf(0.1), stop="first"), "stop is 'first': choose 'never' or 'success'"),
        (lambda: pgd(Linf(0.1), 0), "steps=0: both must be at least 1"),
        (lambda: bim(Linf(0.1), -3), "steps=-3"),
        (lambda: pgd(Linf(0.1), restarts=0), "restarts=0"),
        (lambda: attacks.random_noise(Linf(0.1), 0), "at least 1"),
        (lambda: attacks.r_fgsm(Linf(0.1), 1.0), r"lies in \[0, 1\)"),
        (lambda: attacks.r_fgsm(Linf(0.1), -0.5), r"lies in \[0, 1\)"),
        (lambda: attacks.ig_deletion(baseline="blur"), 'give a number or "mean"'),
        (lambda: attacks.ig_deletion(most=0), "steps=0"),
        (lambda: explain.smoothgrad(0), "samples=0"),
        (lambda: explain.smoothgrad(5, -0.1), "sigma=-0.1"),
        (lambda: explain.integrated_gradients(0), "steps=0"),
        (lambda: explain.lime(1), "samples=1"),
        (lambda: explain.lime(segments=0), "cell=0"),
        (lambda: curve(fgsm(Linf(0.1)), []), "rising list of positive"),
        (lambda: curve(fgsm(Linf(0.1)), [0.2, 0.1]), "rising list of positive"),
        (lambda: curve(fgsm(Linf(0.1)), [0.0, 0.1]), "rising list of positive"),
        (lambda: curve(fgsm(Linf(0.1)), [0.1, float("nan")]), "rising list of positive"),
        (lambda: curve(attacks.ig_deletion(), [0.1]), "has no eps to vary"),
        (lambda: attacks.bend(Linf(0.1), explain.lime()), "not differentiable"),
    ],
)
def test_settings(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_the_dlr_loss_needs_enough_classes() -> None:
    net = filled(nn.Linear(6, 2), 1)
    y = net(X).argmax(1)
    with pytest.raises(InputError, match='needs 3 classes and the model has 2.*objective="margin"'):
        pgd(Linf(0.1), objective="dlr")(net, X, y)


class Unsigned(Explanation):
    """What a picture shows: the size of a map without its sign."""

    signed = False

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        return field.gradient(rows.x, rows)[1].abs()


def test_an_unsigned_map_is_no_direction() -> None:
    with pytest.raises(InputError, match=r"unsigned map.*choose a signed explainer"):
        pgd(Linf(0.1), direction=Unsigned())


def test_a_threat_without_a_steepest_direction(model: Counter) -> None:
    with pytest.raises(KindError, match="no direction of steepest ascent.*Linf, L2, L1, L0"):
        Attack("bare", Deletion(), Ascent(1))(model, X, model.inner(X).argmax(1))


def test_a_target_map_of_another_shape() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(InputError, match=r"target_map has shape \(4, 5\)"):
        attacks.bend(Linf(0.1), explain.saliency(), 2)(net, X, Y, X[:, :5])


# --- specs


@pytest.mark.parametrize(
    "part",
    [
        lambda view: view.scores[:, 0],
        pgd(Linf(0.1), objective=lambda view: view.scores[:, 0]),
        torch.ones(3),
        nn.Linear(2, 2),
        object(),
    ],
)
def test_what_has_no_identity_cannot_be_stored(part: Any) -> None:
    with pytest.raises(KindError, match=r"no identity.*top level of a module"):
        spec(part)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"part": "os:system", "command": "true"}, "not a part of foible"),
        ({"part": "foible.core.spec:importlib.import_module", "name": "os"}, "does not have"),
        ({"part": "foible.core.spec:importlib"}, "not a part of foible"),
        ({"function": "foible.models.holding:torch"}, "not a part of foible"),
        ({"part": "foible.models.holding:wrap", "net": None}, "as a part, which it is not"),
        ({"part": "foible.nowhere:Linf"}, "does not have"),
        ({"part": "foible.parts.threats.balls:Linff"}, "does not have"),
        ({"part": "foible.parts.threats.balls:Linf", "epsilon": 1}, "does not fit"),
        ({"part": "foible.parts.threats.balls:Linf", "eps": -1.0}, "not negative"),
        ({"part": 3}, "not a part of foible"),
    ],
)
def test_specs_of_nothing_that_foible_has(data: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(data)


def test_every_error_is_one_of_ours() -> None:
    for error in (InputError, KindError, ModelError):
        assert issubclass(error, foible.FoibleError)
    assert issubclass(InputError, ValueError) and issubclass(KindError, TypeError)
