"""The spatial threat and its searches, and the two-class protocol."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Counter, filled, linear, predicted, rand, randn
from torch import Tensor, nn

import foible
from foible.attacks import TwoClass, fgsm, pgd, random_noise, spatial, two_class
from foible.attacks.unrestricted import at_coverage
from foible.core.errors import InputError, KindError
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.models import wrap
from foible.parts.searches import GridPoints
from foible.parts.searches.gridding import grid
from foible.parts.threats import Linf, Spatial


def rows_of(x: Tensor, z: Tensor | None = None) -> Rows:
    index = torch.arange(len(x))
    extra = {} if z is None else {"z": z}
    return Rows(index, index, x, torch.zeros_like(index), extra=extra)


def by_hand(x: np.ndarray, degrees: float, right: float, down: float, scale: float) -> np.ndarray:
    """Move one image (C, H, W), pixel by pixel: read it bilinearly at where each came from."""
    height, width = x.shape[1:]
    out, turn = np.zeros_like(x), math.radians(degrees)
    for i in range(height):
        for j in range(width):
            a, b = j - (width - 1) / 2 - right, i - (height - 1) / 2 - down
            column = (math.cos(turn) * a - math.sin(turn) * b) / scale + (width - 1) / 2
            row = (math.sin(turn) * a + math.cos(turn) * b) / scale + (height - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    weight = (1 - abs(row - r)) * (1 - abs(column - c))
                    if 0 <= r < height and 0 <= c < width and weight > 0:
                        out[:, i, j] += weight * x[:, r, c]
    return out


@pytest.mark.parametrize("z", [
    (1, 0, 0, 0), (-0.4, 0.5, -1, 0.0), (0.3, -0.2, 0.7, 1), (0, 1, 0, -1), (0, 0, 0, 0.5),
])  # fmt: skip
def test_the_rendering_is_what_a_pencil_gives(z) -> None:
    x, threat = rand(1, 2, 7, 5, seed=1, dtype=torch.float64), Spatial(40.0, 2.0, 0.2)
    shares = torch.tensor([z], dtype=torch.float64)
    found = threat.render(rows_of(x), shares)
    wanted = by_hand(x[0].numpy(), 40 * z[0], 2 * z[1], 2 * z[2], 1 + 0.2 * z[3])
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-12)


def test_a_quarter_turn_and_whole_pixels() -> None:
    x, threat = rand(2, 1, 6, 6, seed=2, dtype=torch.float64), Spatial(90.0, 2.0)
    turned = threat.render(rows_of(x), torch.tensor([[1.0, 0, 0]]).double().expand(2, -1))
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)))
    moved = threat.render(rows_of(x), torch.tensor([[0, 0.5, -1.0]]).double().expand(2, -1))
    torch.testing.assert_close(moved[:, :, :-2, 1:], x[:, :, 2:, :-1])
    assert (moved[:, :, -2:] == 0).all() and (moved[..., :1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [False, True])
def test_nothing_moved_is_x_bit_for_bit(dtype, grad) -> None:
    x = rand(3, 2, 7, 9, seed=3, dtype=dtype)
    for threat in (Spatial(), Spatial(30, 3, 0.1, fill=0.4).inside((0, 1))):
        z = threat.clean(rows_of(x)).requires_grad_(grad)
        out = threat.render(rows_of(x), z)
        assert torch.equal(out, x) and out.dtype == dtype
        if grad:  # and yet it knows where it would go
            (slope,) = torch.autograd.grad((out * rand(*x.shape, seed=4, dtype=dtype)).sum(), z)
            assert (slope.abs() > 0).all()


def test_the_gradient_is_the_difference_quotient() -> None:
    x, threat = rand(2, 1, 9, 9, seed=5, dtype=torch.float64), Spatial(20, 2, 0.1)
    weight = rand(2, 1, 9, 9, seed=6, dtype=torch.float64)
    z = (rand(2, 4, seed=7, dtype=torch.float64) - 0.5).requires_grad_()
    (grad,) = torch.autograd.grad((threat.render(rows_of(x), z) * weight).sum(), z)
    for i in range(4):
        step = torch.zeros_like(z)
        step[:, i] = 1e-6
        ends = [
            (threat.render(rows_of(x), z + s) * weight).flatten(1).sum(1) for s in (step, -step)
        ]
        torch.testing.assert_close(grad[:, i], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


def test_the_judge_believes_only_what_it_can_render_again() -> None:
    x, threat = rand(5, 1, 8, 8, seed=8), Spatial(25, 2).inside((0, 1))
    z = torch.tensor([[0.3, -0.4, 1.0]]).repeat(5, 1)
    moved = threat.render(rows_of(x), z)
    assert threat.contains(rows_of(x, z), moved).all()
    assert threat.distance(rows_of(x, z), moved).tolist() == [1.0] * 5
    touched = moved.clone()
    touched[0, 0, 4, 4] += 0.001
    far, other = z.clone(), z.clone()
    far[1, 0], other[2, 0] = 1.01, 0.31
    wide = moved.clone()
    wide[1:2] = threat.render(rows_of(x[1:2]), far[1:2])
    kept = torch.cat([z[:1], far[1:2], other[2:3], z[3:]])
    wide[0] = touched[0]
    assert threat.contains(rows_of(x, kept), wide).tolist() == [False, False, False, True, True]
    assert not replace(threat, box=Box(0.5, 0.6)).contains(rows_of(x, z), moved).any()
    with pytest.raises(InputError, match=r'rows.extra\["z"\]'):
        threat.contains(rows_of(x), moved)


def test_the_grid_is_whole_and_leaves_the_middle_out() -> None:
    points = grid((5, 3, 3))
    assert points.shape == (44, 3) and len(points.unique(dim=0)) == 44
    assert (points != 0).any(1).all() and (points[:8].abs() == 1).all()
    assert points.square().sum(1).diff().max() <= 1e-12
    assert grid((4, 1)).shape == (4, 2) and (grid((4, 1))[:, 1] == 0).all()


@pytest.mark.parametrize("at_most", [1, 4, 30, None])
def test_the_grid_search_finds_the_worst_point_whatever_the_chunk(net, images, at_most) -> None:
    y, threat = predicted(net, images), Spatial(40.0, 2.0)
    attack = spatial(threat, angles=5, shifts=3)
    counter = Counter(wrap(net), at_most=at_most)
    result = attack(counter, images, y)
    points = torch.cat([grid((5, 3, 3)), torch.zeros(1, 3)]).float()
    margins = []
    with wrap(net).session(), torch.no_grad():
        for point in points:
            scores = net(threat.render(rows_of(images), point.expand(len(images), -1)))
            others = scores.scatter(1, y[:, None], float("-inf")).amax(1)
            margins.append(others - scores.gather(1, y[:, None]).squeeze(1))
    table = torch.stack(margins, 1)
    assert torch.equal(result.success, table.amax(1) > 0)
    best = points[table[:, :-1].argmax(1)]
    torch.testing.assert_close(result.z, best)
    torch.testing.assert_close(result.x, threat.render(rows_of(images), best))
    assert torch.equal(result.forwards, torch.full((len(images),), 46))
    assert counter.forwards == 46 * len(images)
    assert max(counter.sizes) <= max(len(images) if at_most is None else 0, counter.chunk(images))


def test_a_row_that_leaves_early_leaves_with_the_same_point() -> None:
    (x, y), net = foible.zoo.sample(), foible.zoo.load("standard")
    x, y = x[:10], y[:10]
    attack = spatial(Spatial(8.0, 1.0), angles=5, shifts=3, stop="success")
    whole = attack(net, x, y)
    alone = [attack(net, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert torch.equal(whole.z, torch.cat([r.z for r in alone]))
    assert torch.equal(whole.forwards, torch.cat([r.forwards for r in alone]))
    assert 0 < whole.success.sum() < 10 and whole.forwards[whole.attacked].min() < 46
    full = spatial(Spatial(8.0, 1.0), angles=5, shifts=3)(net, x, y)
    assert torch.equal(full.success, whole.success)


@pytest.mark.parametrize("search", ["grid", "gradient", "random"])
def test_what_is_returned_renders_again_bit_for_bit(net, images, search) -> None:
    y = predicted(net, images)
    y[0] = (y[0] + 1) % 4
    threat = Spatial(60.0, 3.0, 0.2)
    attack = spatial(threat, search, angles=3, shifts=3, steps=None if search == "grid" else 7)
    one, two = attack(net, images, y, seed=1), attack(net, images, y, seed=1)
    assert torch.equal(one.x, two.x) and torch.equal(one.z, two.z)
    assert torch.equal(threat.inside((0, 1)).render(rows_of(images), one.z), one.x)
    assert (one.z.abs() <= 1).all() and one.success.any()
    assert one.status[0] == "wrong" and (one.z[0] == 0).all() and one.distance[0] == 0
    torch.testing.assert_close(one.distance, one.z.abs().amax(1).double())


def test_restarts_keep_the_parameters_with_the_image(net, images) -> None:
    y, threat = predicted(net, images), Spatial(60.0, 3.0)
    one = spatial(threat, "gradient", steps=4)(net, images, y)
    many = spatial(threat, "gradient", steps=4, restarts=4)(net, images, y)
    assert torch.equal(threat.inside((0, 1)).render(rows_of(images), many.z), many.x)
    assert many.success.sum() >= one.success.sum()


def test_the_grid_is_stronger_than_the_gradient_and_chance() -> None:
    """Engstrom et al. 2019: worst of the grid, then worst of ten, then first-order."""
    x, y = foible.zoo.sample()
    x, y, net = x[:60], y[:60], foible.zoo.load("standard")
    left = {s: spatial(search=s, angles=9, stop="success")(net, x, y).robust_accuracy
            for s in ("grid", "random", "gradient")}  # fmt: skip
    assert left["grid"] <= 0.1 < min(left["random"], left["gradient"]), left


def test_spatial_says_what_it_cannot_do(net, images, table, mlp) -> None:
    with pytest.raises(KindError, match="pass foible.parts.threats.Spatial"):
        spatial(Linf(0.1))
    with pytest.raises(InputError, match="choose 'grid'"):
        spatial(search="magic")
    with pytest.raises(InputError, match="has random starts"):
        spatial(restarts=3)
    with pytest.raises(InputError, match="nothing to try"):
        spatial(angles=1, shifts=1)
    with pytest.raises(InputError, match="scale lies below 1"):
        Spatial(scale=1.0)
    with pytest.raises(KindError, match="images"):
        spatial(angles=3, shifts=1)(mlp, table, predicted(mlp, table))
    wrong = replace(spatial(), threat=Linf(0.1), search=GridPoints(9, (3, 3)))
    with pytest.raises(InputError, match="threats of a few parameters"):
        wrong(net, images, predicted(net, images))


def test_pgd_on_the_parameters_is_the_gradient_search(net, images) -> None:
    y, threat = predicted(net, images), Spatial(60.0, 3.0)
    by_recipe = spatial(threat, "gradient", steps=5)(net, images, y)
    assert torch.equal(pgd(threat, 5, objective="margin")(net, images, y).x, by_recipe.x)


# Accuracy at a coverage


def test_the_coverage_by_hand() -> None:
    #                    sure 4, right     3, wrong     2, right     1, wrong     0.5, right
    scores = torch.tensor([[4.0, 0], [0.0, 3], [1.0, 3], [1.0, 0], [0.0, 0.5]])
    y = torch.tensor([0, 0, 1, 1, 1])
    for coverage, wanted in ((1.0, 3 / 5), (0.8, 2 / 4), (0.6, 2 / 3), (0.2, 1.0), (0.21, 1 / 2)):
        assert at_coverage(scores, y, coverage) == pytest.approx(wanted)


def test_no_model_gains_by_being_equally_sure() -> None:
    y = torch.tensor([0] * 7 + [1] * 3)
    flat = torch.tensor([[1.0, 0.0]]).repeat(10, 1)  # right on seven, as sure of all
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert at_coverage(flat, y) == at_coverage(flat[order], y[order]) == 5 / 8
    assert at_coverage(torch.zeros(10, 2), y) == 5 / 8
    # Huge logits, whose probabilities are all 1, are still told apart.
    sure = torch.stack([torch.arange(10.0) * 1e4 + 1e5, torch.zeros(10)], 1)
    assert at_coverage(sure, 1 - y) == 3 / 8 and at_coverage(sure, y.flip(0)) == 7 / 8


def test_abstaining_on_the_unsure_helps_only_the_honest() -> None:
    net = linear(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([0.0, -2.0]))
    x = rand(50, 2, seed=1)
    y = (x[:, 0] > 0.5).long()
    found = two_class(net, x, y, [fgsm(Linf(0.1)), fgsm(Linf(0.4)), random_noise(Linf(0.1))])
    assert isinstance(found, TwoClass) and found.clean == 1.0
    assert list(found.under) == ["fgsm", "fgsm#2", "random_noise"]
    assert (found.n, found.coverage) == (50, 0.8)
    moved = found.results["fgsm"].x
    assert found.under["fgsm"] == at_coverage(net(moved), y)
    assert found.worst == found.under["fgsm#2"] < found.under["fgsm"] <= 1
    single = nn.Sequential(nn.Flatten(), filled(nn.Linear(2, 1), 1))
    held = wrap(single, outputs="logit")
    assert two_class(held, x, predicted(held, x), [fgsm(Linf(0.1))]).clean == 1.0
    with pytest.raises(InputError, match="3 classes and the protocol is for two"):
        two_class(nn.Linear(2, 3), x, y, [])
    for wrong in (0.0, 1.1):
        with pytest.raises(InputError, match="a share of the samples"):
            at_coverage(randn(3, 2, seed=1), torch.zeros(3), wrong)
    with pytest.raises(InputError, match="two classes at least"):
        at_coverage(randn(3, 1, seed=1), torch.zeros(3))
