"""DeepFool and FAB: their planes, their bars, their papers' steps, what they cost and refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import minimum
import numpy as np
import optimum
import pytest
import torch
from conftest import Counter, filled, rand, randn
from replicas import fab as slow
from torch import Tensor, nn

from foible import attacks
from foible.core.errors import InputError, KindError
from foible.models import wrap
from foible.parts.corners import inside
from foible.parts.planes import closest, nearest, onto
from foible.parts.threats import L0, L1, L2, Linf

NORMS = ("linf", "l2", "l1")
POWER = {"linf": np.inf, "l2": 2, "l1": 1}
RECIPES = (attacks.deepfool, attacks.fab, attacks.fab_targeted)


@dataclass
class Recorder(Counter):
    """Keeps every input that a gradient was taken at."""

    seen: list[Tensor] = field(default_factory=list)

    def scores(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.seen.append(x.detach().clone())
        return super().scores(x)


def box(rows: int, features: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low, high = -rand(rows, features, seed=seed, dtype=dtype), rand(rows, features, seed=seed + 1)
    low[rand(rows, features, seed=seed + 2) < 0.2] = 0  # at the box's end
    return 0.6 * low, 0.6 * high.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_onto_a_plane_is_the_shortest(norm: str, dtype: torch.dtype) -> None:
    """One plane in the box: against the linear or the quadratic programme."""
    normal, gap = randn(40, 30, seed=1, dtype=dtype), 2 * rand(40, seed=2, dtype=dtype)
    normal[:, :3] = 0
    low, high = box(40, 30, 3, dtype)
    d = nearest(norm, normal, gap, low, high)
    assert ((d >= low) & (d <= high)).all()
    torch.testing.assert_close((normal * d).sum(1), gap, rtol=1e-5, atol=1e-6)
    for row in range(40):
        planes = -normal[row : row + 1].double().numpy(), -gap[row : row + 1].double().numpy()
        least = optimum._smallest(norm, *planes, low[row].numpy(), high[row].numpy())
        size = np.linalg.norm(d[row].double().numpy(), ord=POWER[norm])
        assert size == pytest.approx(least, rel=1e-5)
    # From the other side, the same step the other way.
    torch.testing.assert_close(onto(norm, normal, -gap, -high, -low), -d)


@pytest.mark.parametrize("norm", [*NORMS, "l0"])
def test_a_step_without_a_box_and_with_tiny_or_no_slope(norm: str) -> None:
    normal = torch.tensor([[3.0, -4.0, 0.0], [3e-30, -4e-30, 0.0], [0.0, 0.0, 0.0]])
    gap, wide = torch.tensor([5.0, 5e-30, 1.0]), torch.full((3, 3), float("inf"))
    expected = {"linf": [5 / 7, -5 / 7, 0], "l2": [0.6, -0.8, 0], "l1": [0, -1.25, 0]}
    d = nearest(norm, normal, gap, -wide, wide)
    assert torch.equal(d[2], torch.zeros(3)) and torch.isfinite(d).all()
    assert ((normal[:2] * d[:2]).sum(1) / gap[:2] >= 1 - 1e-6).all()
    if norm != "l0":
        torch.testing.assert_close(d[:2], torch.tensor([expected[norm]] * 2))


@pytest.mark.parametrize("norm", NORMS)
def test_one_feature_has_one_way(norm: str) -> None:
    normal, gap = torch.tensor([[2.0], [-4.0], [1.0]]), torch.tensor([1.0, 1.0, 3.0])
    wide = torch.ones(3, 1)
    expected = torch.tensor([[0.5], [-0.25], [1.0]])  # the last one ends at the box
    torch.testing.assert_close(nearest(norm, normal, gap, -wide, wide), expected)


def test_the_sparse_step_finds_enough_entries_beyond_its_first_look() -> None:
    """All entries are needed, many more than the largest few that are looked at first."""
    low, high = torch.full((1, 400), -1.0), torch.full((1, 400), 1.0)
    d = nearest("l1", torch.ones(1, 400), torch.tensor([399.5]), low, high)
    assert float(d.sum()) == pytest.approx(399.5) and float(d.max()) == 1


def test_the_closest_plane_is_one_that_the_box_reaches() -> None:
    normals = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    gaps, high = torch.tensor([[0.5, 0.9]]), torch.tensor([[0.1, 2.0]])
    d = closest("l2", normals, gaps, -high, high)
    torch.testing.assert_close(d, torch.tensor([[0.0, 0.9]]))
    neither = closest("l2", normals, gaps, -high / 10, high / 10)
    torch.testing.assert_close(neither, torch.tensor([[0.0, 0.2]]))  # 22 % of the way, not 2 %


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_the_way_into_a_corner_is_the_shortest(norm: str, boxed: bool) -> None:
    """Nine half-spaces at once: against the linear or the quadratic programme of scipy."""
    rows, dtype = 16, torch.float64
    normals = randn(rows, 9, 40, seed=5, dtype=dtype) + randn(rows, 1, 40, seed=6, dtype=dtype)
    gaps = 2 * randn(rows, 9, seed=7, dtype=dtype) + 1
    wide = torch.full((rows, 40), float("inf"), dtype=dtype)
    low, high = box(rows, 40, 8, dtype) if boxed else (-wide, wide)
    d = inside(norm, normals, gaps, low, high)
    assert ((d >= low) & (d <= high)).all()
    assert ((normals @ d[:, :, None])[:, :, 0] >= gaps - 1e-5).all()
    for row in range(rows):
        ends = low[row].clamp_min(-1e3).numpy(), high[row].clamp_max(1e3).numpy()
        least = optimum._smallest(norm, -normals[row].numpy(), -gaps[row].numpy(), *ends)
        size = np.linalg.norm(d[row].numpy(), ord=POWER[norm])
        assert size == pytest.approx(least, rel=1e-4)
    alone = torch.cat([inside(norm, *(v[i : i + 1] for v in (normals, gaps, low, high)))
                       for i in range(4)])  # fmt: skip
    torch.testing.assert_close(alone, d[:4], rtol=1e-9, atol=1e-9)  # no neighbour matters


@pytest.mark.parametrize("norm", NORMS)
def test_a_corner_out_of_reach_gives_a_finite_step(norm: str) -> None:
    normals = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    low = torch.full((2, 2), -1.0)
    d = inside(norm, normals, torch.ones(2, 2), low, -low)
    assert torch.isfinite(d).all() and (d.abs() <= 1).all()
    assert float(d[1, 0]) == pytest.approx(1, abs=1e-4)  # the plane that can be met is


def check(recipe: Any, norm: str, cell: tuple[int, bool, bool]) -> None:
    found = minimum.measure(recipe, norm, *cell)
    assert found.success == 1 and found.median <= 1.05 and found.worst <= 1.10, found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cell", [c for c in minimum.CELLS if c[0] == 2 or not c[2]])
def test_fab_meets_the_bar(norm: str, cell: tuple[int, bool, bool]) -> None:
    check(attacks.fab, norm, cell)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cell", [c for c in minimum.CELLS if c[0] > 2 and c[2]])
def test_fab_meets_the_bar_towards_a_target(norm: str, cell: tuple[int, bool, bool]) -> None:
    check(attacks.fab, norm, cell)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cell", [c for c in minimum.CELLS if c[0] > 2 and c[2]])
def test_fab_is_there_after_ten_steps(norm: str, cell: tuple[int, bool, bool]) -> None:
    check(lambda threat: attacks.fab(threat, 10), norm, cell)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cell", [(4, False, False), (10, True, False), (10, False, True)])
def test_targeted_fab_meets_the_bar(norm: str, cell: tuple[int, bool, bool]) -> None:
    check(lambda threat: attacks.fab_targeted(threat, 20), norm, cell)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cell", [c for c in minimum.CELLS if c[1]])
def test_deepfool_meets_the_bar_without_a_box(norm: str, cell: tuple[int, bool, bool]) -> None:
    check(attacks.deepfool, norm, cell)


@pytest.mark.parametrize("norm", NORMS)
def test_the_walk_is_the_papers(norm: str, case: Any) -> None:
    model, x, y = case
    threat = minimum.NORMS[norm]()
    for i in range(8):
        recorder = Recorder(model)
        attacks.fab(threat, 8)(recorder, x[i : i + 1], y[i : i + 1])
        expected = slow.fab(model.net, x[i], int(y[i]), norm, 8)
        torch.testing.assert_close(
            torch.cat(recorder.seen), torch.stack(expected), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("norm", NORMS)
def test_the_targeted_walk_is_the_papers(norm: str, case: Any) -> None:
    """A run a class, the one of the largest score first."""
    model, x, y = case
    with torch.no_grad():
        order = model.net(x).argsort(1, descending=True)
    for i in range(4):
        recorder = Recorder(model)
        attacks.fab_targeted(minimum.NORMS[norm](), 6)(recorder, x[i : i + 1], y[i : i + 1])
        expected = [
            point for aim in order[i, 1:].tolist()
            for point in slow.fab(model.net, x[i], int(y[i]), norm, 6, aim)
        ]  # fmt: skip
        torch.testing.assert_close(
            torch.cat(recorder.seen), torch.stack(expected), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfools_walk_is_the_papers(norm: str, case: Any) -> None:
    model, x, y = case
    for i in range(8):
        recorder = Recorder(model)
        attacks.deepfool(minimum.NORMS[norm]())(recorder, x[i : i + 1], y[i : i + 1])
        expected = slow.deepfool(model.net, x[i], int(y[i]), norm, 50, 0.02)
        torch.testing.assert_close(
            torch.cat(recorder.seen), torch.stack(expected), rtol=0, atol=1e-9
        )


def test_what_a_run_costs(case: Any) -> None:
    model, x, y = case
    for attack, forwards, backwards in (
        (attacks.fab(L2(), 12, restarts=2), 2 * (12 + 4) + 3, 2 * 12 * 3),
        (attacks.fab_targeted(L2(), 12), 2 * (12 + 4) + 2, 2 * 12),  # two rivals, not nine
        (attacks.fab_targeted(L2(), 12, 1, 2), 2 * (12 + 4) + 2, 2 * 12),
    ):
        counter = Counter(model)
        result = attack(counter, x, y)
        assert result.forwards.tolist() == [forwards] * len(x)
        assert result.backwards.tolist() == [backwards] * len(x)
        assert counter.forwards == forwards * len(x) and counter.backwards == backwards * len(x)
    result = attacks.deepfool(L2())(model, x, y)
    assert result.success.all() and int(result.forwards.max()) <= 2 * 50 + 6
    assert (result.backwards % 3 == 0).all() and int(result.backwards.max()) < 30


def test_more_runs_find_no_worse(case: Any) -> None:
    model, x, y = case
    for recipe in (attacks.fab, attacks.fab_targeted):
        one, four = (recipe(L2(), 8, restarts=n)(model, x, y) for n in (1, 4))
        assert (four.distance <= one.distance).all() and four.success.all()
        assert torch.equal(four.x, recipe(L2(), 8, restarts=4)(model, x, y).x)
        assert not torch.equal(four.x, recipe(L2(), 8, restarts=4)(model, x, y, seed=1).x)
    easy = attacks.deepfool(L2())(model, x, y).distance
    assert (attacks.fab_targeted(L2(), 30)(model, x, y).distance <= easy * 1.01).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_within_an_eps_success_means_found_there(recipe: Any, case: Any) -> None:
    model, x, y = case
    free = recipe(L2())(model, x, y)
    eps = float(free.distance.median())
    held = recipe(L2(eps))(model, x, y)
    assert torch.equal(held.success, free.distance <= eps)
    if recipe is not attacks.deepfool:
        quick = recipe(L2(eps), stop="success")(model, x, y)
        assert torch.equal(quick.success, held.success)
        early = quick.forwards[held.success] < held.forwards[held.success]
        assert early.float().mean() > 0.9  # the final search finds one or the other
        assert torch.equal(quick.forwards[~held.success], held.forwards[~held.success])


class Wide(nn.Module):
    """A convolution and many classes."""

    def __init__(self, classes: int, channels_last: bool = False) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 9, classes)
        self.last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.last else x
        return self.head(torch.tanh(self.conv(x)).flatten(1))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("threat", [Linf(), L2(), L1()])
def test_any_number_of_classes_and_any_layout(recipe: Any, threat: Any) -> None:
    steps = 30 if recipe is attacks.deepfool else 4  # the box cuts DeepFool's steps
    for classes, dtype, last in ((2, torch.float32, True), (1000, torch.float64, False)):
        net = filled(Wide(classes, last), 3, 2.0).to(dtype)
        shape = (5, 5, 2) if last else (2, 5, 5)
        x = rand(2, *shape, seed=4, dtype=dtype)
        x[:, 0], x[:, 1] = 0, 1  # at the ends of the box
        with torch.no_grad():
            y = net(x).argmax(1)
            target = net(x).topk(2).indices[:, 1]
        for goal in (None, target):
            result = recipe(threat, steps)(wrap(net), x, y, target=goal)
            assert result.success.all() and torch.isfinite(result.distance).all()
            assert result.x.dtype == dtype and result.x.min() >= 0 and result.x.max() <= 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_single_logit_and_a_model_without_slope(recipe: Any) -> None:
    net = filled(nn.Linear(6, 1), 2)
    x = rand(3, 6, seed=3)
    with torch.no_grad():
        net.bias -= net(x).mean()
        y = (net(x)[:, 0] > 0).long()
    assert recipe(L2(), 5)(wrap(net, outputs="logit"), x, y).success.all()
    with torch.no_grad():
        net.weight.zero_()
        y = (net(x)[:, 0] > 0).long()
    dead = recipe(L2(), 5)(wrap(net, outputs="logit"), x, y)
    assert not dead.success.any() and torch.equal(dead.x, x)
    assert (dead.distance == float("inf")).all()


def test_the_scale_of_the_logits_does_not_matter(case: Any) -> None:
    model, x, y = case
    plain = attacks.fab(Linf(), 10)(model, x, y)
    with torch.no_grad():
        model.net[2].weight *= 2.0**14
        model.net[2].bias *= 2.0**14
    torch.testing.assert_close(attacks.fab(Linf(), 10)(model, x, y).x, plain.x)


def test_what_is_refused(case: Any) -> None:
    for recipe in RECIPES:
        with pytest.raises(KindError, match="L0 has no way onto a plane"):
            recipe(L0())(*case)
        with pytest.raises(InputError, match="steps=0"):
            recipe(L2(), 0)
    with pytest.raises(InputError, match="targets=0"):
        attacks.fab_targeted(L2(), 5, 0)
    with pytest.raises(InputError, match="overshoot=1"):
        attacks.deepfool(L2(), 5, 1.0)
