"""On a linear model the smallest perturbation is known: attacks flip just above it, never below.

With more than two classes "known" needs care. The best other class at the clean point need not be
the nearest one, so one untargeted run on the margin is exact where it is, and one restart a class
is exact everywhere. A target must beat all classes at once: where only the label stands in its
way there is a closed form, else the optimum is a linear (or quadratic) programme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import optimum
import pytest
import torch
from conftest import LinearCase, linear_case
from torch import Tensor

import foible
from foible.attacks import Attack, Result, bim, fgsm, mim, pgd, r_fgsm
from foible.core.threat import Threat
from foible.models import TorchModel
from foible.parts.objectives import objective
from foible.parts.searches import Ascent
from foible.parts.threats import L0, L1, L2, Linf

NORMS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
Maker = Callable[[Threat], Attack]
STEPS = 20
# (rows, chunk): one row; an uneven last chunk of one; two full chunks and an uneven third.
BATCHES = [(1, 3), (3, 2), (7, 3)]
MANY = [(4, True), (4, False), (10, False)]
FLOAT32 = 3  # the batch of this size is a float32 pass


def ascent(name: str, restarts: int, share: float, start: str = "clean", **more: float) -> Maker:
    search = Ascent(STEPS, None, share, start, **more)
    return lambda threat: Attack(
        "ascent", threat, search, objective(name), stop="success", restarts=restarts
    )


def budget(kind: str, name: str, norm: str, wide: bool) -> Maker:
    """Each recipe as it is; where the box binds in L2 or L1, with steps that reach the far side.

    There a step that the box cuts is lost, so that a total path of eps (MIM), 1.25 eps (BIM) or
    2.5 eps (PGD) is too short by construction where much is cut.
    """
    if not wide and norm in ("l2", "l1"):
        start = "random" if kind == "random pgd" else "clean"
        return ascent(name, 1, 0.25, start, **({"momentum": 1.0} if kind == "mim" else {}))
    if kind == "clean pgd":
        return ascent(name, 1, 2.5 / STEPS)
    recipe = {"bim": bim, "mim": mim, "random pgd": pgd}[kind]
    return lambda threat: recipe(threat, STEPS, objective=name, stop="success")


def scaled(norm: str, optimum: np.ndarray, above: bool) -> Threat:
    if norm == "l0":
        return L0(torch.tensor(optimum if above else optimum - 1))
    return NORMS[norm](torch.tensor(optimum * (1.05 if above else 0.95)))


def check(
    make: Maker, case: LinearCase, norm: str, least: np.ndarray, exact: np.ndarray, to_target: bool
) -> int:
    """Never below the optimum, on any row; always above it, on the `exact` rows."""
    possible = np.isfinite(least)
    assert possible.any()
    which = torch.tensor(possible.nonzero()[0])
    target = case.target[which] if to_target else None
    x, y = case.x[which], case.y[which]
    for above in (True, False):
        threat = scaled(norm, least[possible], above)
        result = make(threat)(case.model, x, y, target=target)
        inside(result, case, x, threat, norm)
        if above:
            flipped = result.success[torch.tensor(exact[possible])]
            assert flipped.all(), f"{int(flipped.sum())} of {len(flipped)} flipped at 1.05x"
        else:
            assert not result.success.any(), "flipped below the smallest perturbation there is"
    return int(exact[possible].sum())


def inside(result: Result, case: LinearCase, x: Tensor, threat: Threat, norm: str) -> None:
    """Budget and box, in numpy and from the returned samples alone."""
    adv, clean = result.x.double().numpy(), x.double().numpy()
    low, high = case.bounds
    assert (adv >= low).all() and (adv <= high).all()
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    size = np.array([np.linalg.norm(d, order) for d in adv - clean])
    slack = 0.0 if norm == "l0" else 1e-7 * (high - low)
    assert (size <= np.array(threat.eps) * (1 + 1e-6) + slack).all()
    np.testing.assert_allclose(result.distance.numpy(), size, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=BATCHES, ids=lambda b: f"{b[0]}rows")
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count, chunk = request.param
    monkeypatch.setattr(TorchModel, "chunk", lambda self, x: chunk)
    return count


@pytest.mark.parametrize("wide", [True, False], ids=["free", "box"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["bim", "clean pgd", "mim", "random pgd"])
def test_two_classes(kind: str, norm: str, wide: bool, rows: int) -> None:
    dtype = torch.float32 if rows == FLOAT32 else torch.float64
    case = linear_case(2, rows, 20 + rows, wide=wide, dtype=dtype)
    least = optimum.untargeted(case, norm)
    assert np.isfinite(least).all() or rows > 1
    for name, to_target in (("cross_entropy", False), ("margin", True)):
        # With two classes the other one is the only target.
        check(budget(kind, name, norm, wide), case, norm, least, np.isfinite(least), to_target)


@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_the_other_way_round(norm: str) -> None:
    case = linear_case(2, 7, 27)
    least = optimum.untargeted(case, norm)
    for name, to_target in (("cross_entropy", True), ("margin", False)):
        check(budget("bim", name, norm, True), case, norm, least, least > 0, to_target)


def test_the_box_truly_binds() -> None:
    """Else the tests above would say nothing about it."""
    for norm, kind in NORMS.items():
        cut = linear_case(2, 7, 27, wide=False)
        free = replace(cut, bounds=(-1000.0, 1000.0))
        least, unbound = optimum.untargeted(cut, norm), optimum.untargeted(free, norm)
        assert (least[np.isfinite(least)] >= unbound[np.isfinite(least)]).all()
        assert (least > unbound * 1.01).sum() >= 2, norm
        assert kind.norm == norm


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("classes", "wide"), MANY)
def test_many_classes_on_the_margin(classes: int, norm: str, wide: bool, rows: int) -> None:
    """With a restart a class: every row, clean start."""
    case = linear_case(classes, rows, 40 + rows, wide=wide)
    least = optimum.untargeted(case, norm)
    make = ascent("margin", classes, 2.5 / STEPS)
    check(make, case, norm, least, np.isfinite(least), False)


@pytest.mark.parametrize("wide", [True, False], ids=["free", "box"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [4, 10])
def test_one_run_on_the_margin(classes: int, norm: str, wide: bool) -> None:
    """No restarts: exact where the runner-up at the clean point is the nearest class."""
    case = linear_case(classes, 40, 300, wide=wide)
    least = optimum.untargeted(case, norm)
    nearest = np.isclose(least, optimum.runner_up(case, norm), rtol=1e-9)
    for make in (budget("bim", "margin", norm, wide), budget("clean pgd", "margin", norm, wide)):
        assert check(make, case, norm, least, nearest, False) >= 25


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("classes", "wide"), MANY)
def test_targeted_at_one_of_many(classes: int, norm: str, wide: bool, rows: int) -> None:
    """Never below the programme's optimum; above it where there is a closed form, in L2 always."""
    case = linear_case(classes, rows, 60 + rows, wide=wide)
    least = optimum.targeted(case, norm)
    exact = np.isclose(least, optimum.only_the_label(case, norm), rtol=1e-6) | (norm == "l2")
    check(ascent("margin", 1, 0.1), case, norm, least, exact, True)


def test_targets_with_a_closed_form_are_not_rare() -> None:
    for norm in ("linf", "l2", "l1"):
        case = linear_case(4, 40, 300)
        exact = np.isclose(
            optimum.targeted(case, norm), optimum.only_the_label(case, norm), rtol=1e-6
        )
        least = optimum.targeted(case, norm)
        assert check(ascent("margin", 1, 0.1), case, norm, least, exact, True) >= 15


def test_cross_entropy_mixes_many_classes() -> None:
    """What the docstring of pgd warns of: at 1.05x a mixture of classes reaches few of them."""
    case = linear_case(10, 40, 300)
    least = torch.tensor(optimum.untargeted(case, "linf")) * 1.05
    mixed = bim(Linf(least), STEPS)(case.model, case.x, case.y)
    aimed = bim(Linf(least), STEPS, objective="margin")(case.model, case.x, case.y)
    assert mixed.success.sum() < 20 < 30 < aimed.success.sum()


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_is_exact_on_two_classes(norm: str, rows: int) -> None:
    case = linear_case(2, rows, 80 + rows)
    least = optimum.untargeted(case, norm)
    check(lambda threat: fgsm(threat), case, norm, least, np.isfinite(least), False)


def test_fgsm_is_exact_in_linf_where_the_box_binds(rows: int) -> None:
    case = linear_case(2, rows, 80 + rows, wide=False)
    least = optimum.untargeted(case, "linf")
    check(lambda threat: fgsm(threat), case, "linf", least, np.isfinite(least), False)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5])
def test_r_fgsm_is_its_formula(alpha: float, rows: int) -> None:
    """x' = clip(x + a sign(N)); x* = clip(x' + (eps - a) sign(grad at x')), Tramer et al. 2018."""
    case = linear_case(3, rows, 90 + rows, wide=False)
    eps = 0.1
    result = r_fgsm(Linf(eps), alpha)(case.model, case.x, case.y, seed=5)
    rng = foible.core.randomness.Rng(5).split(0)
    noise = rng.at(torch.arange(rows)).split(3).normal(tuple(case.x.shape[1:]), torch.float64)
    first = (case.x + alpha * eps * noise.sign()).clamp(0, 1)
    p = torch.softmax(first @ case.weight.T + case.bias, 1)
    grad = (p - torch.nn.functional.one_hot(case.y, 3)) @ case.weight
    last = (first + (1 - alpha) * eps * grad.sign()).clamp(0, 1)
    kept = torch.stack([case.x, first, last])  # the best of what was judged is returned
    loss = -torch.log_softmax(kept @ case.weight.T + case.bias, 2)
    loss = loss.gather(2, case.y.expand(3, -1)[:, :, None]).squeeze(2)[1:]
    wrong = (kept[1:] @ case.weight.T + case.bias).argmax(2) != case.y
    pick = torch.where(wrong[0] == wrong[1], loss.argmax(0), wrong.long().argmax(0))
    expected = kept[1:][pick, torch.arange(rows)]
    torch.testing.assert_close(result.x, expected, rtol=0, atol=1e-12)
    assert (pick == 1).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_far_from_the_boundary_from_a_random_start(norm: str) -> None:
    """Most entries of the optimum are full: a step must not be spent on filling them again."""
    case = linear_case(2, 40, 1, wide=False)
    bias = case.bias + torch.tensor([1.0, -1.0], dtype=torch.float64)
    y = (case.x @ case.weight.T + bias).argmax(1)
    case = replace(case, bias=bias, y=y, target=1 - y)
    least = optimum.untargeted(case, norm)
    assert np.isfinite(least).sum() >= 35
    make = ascent("margin", 1, 0.25 if norm == "l2" else 2.5 / STEPS, "random")
    check(make, case, norm, least, np.isfinite(least), False)
