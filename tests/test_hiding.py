"""Patches: nothing outside them changes, and the map of the new class points elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, linear, rand, randn
from torch import Tensor

import foible
from foible import attacks, explain
from foible.attacks.hiding import Hidden, share_inside
from foible.core.errors import AccessError, InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.models import wrap
from foible.parts.threats import Linf, Patch

PLACE = Patch(10, 10, 18, 9)


def rows_of(x: Tensor, y: Tensor | None = None, target: Tensor | None = None) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, torch.zeros_like(index) if y is None else y, target)


# --- the threat


def test_outside_nothing_changes_and_inside_everything_may() -> None:
    x = rand(5, 3, 6, 7, seed=1)
    x[:, :, 0, 0] = -0.0
    patch = Patch(2, 3, 3, 1, box=Box(0, 1))
    rows = rows_of(x)
    z = patch.project(rows, 5 * randn(5, 3, 6, 7, seed=2))
    made = patch.render(rows, z)
    outside = torch.ones(6, 7, dtype=torch.bool)
    outside[3:5, 1:4] = False
    assert torch.equal(made[:, :, outside], x[:, :, outside])
    assert torch.equal(made.signbit()[:, :, 0, 0], x.signbit()[:, :, 0, 0])
    assert set(made[:, :, ~outside].unique().tolist()) >= {0.0, 1.0}
    assert bool(patch.contains(rows, made).all())
    assert torch.equal(patch.project(rows, z), z)
    assert bool(((x + z >= -1e-6) & (x + z <= 1 + 1e-6)).all())
    far = patch.render(rows, 5 * z)  # not projected
    assert 0 <= far.min() <= far.max() <= 1 and torch.equal(far[:, :, outside], x[:, :, outside])
    assert patch.step_size(rows, 0.1).item() == pytest.approx(0.1)
    up = patch.steepest(rows, z, torch.ones_like(x))
    assert torch.equal(up != 0, (~outside).expand_as(x))
    assert patch.distance(rows, made).tolist() == [6.0] * 5
    assert torch.equal(patch.render(rows, patch.clean(rows)), x)


def test_the_judge_refuses_one_pixel_outside_and_one_value_beyond() -> None:
    x, patch = rand(4, 1, 6, 6, seed=1), Patch(2, 2, 2, 3, box=Box(0, 1))
    rows = rows_of(x)
    for row, column in ((1, 3), (4, 3), (2, 2), (2, 5)):  # beside each edge
        made = x.clone()
        made[2, 0, row, column] += 1e-4
        assert patch.contains(rows, made).tolist() == [True, True, False, True]
    made = x.clone()
    made[1, 0, 3, 4] = 1.01
    assert patch.contains(rows, made).tolist() == [True, False, True, True]


def test_a_start_is_noise_of_the_box() -> None:
    x, patch = rand(60, 1, 6, 6, seed=1), Patch(4, 4, 1, 1, box=Box(-1, 3))
    made = patch.render(rows_of(x), patch.start(rows_of(x), Rng(0).at(torch.arange(60))))
    inside = made[:, :, 1:5, 1:5]
    assert float(inside.mean()) == pytest.approx(1.0, abs=0.15)
    assert float(inside.std()) == pytest.approx(4 / 12**0.5, abs=0.1)
    assert patch.step_size(rows_of(x), 0.1).item() == pytest.approx(0.4)  # of the box's width


@pytest.mark.parametrize("low", [-torch.inf, 0.0])
def test_without_a_box_a_start_is_within_reach_all_the_same(low: float) -> None:
    x = 5 + rand(60, 1, 6, 6, seed=1)
    patch = Patch(4, 4, 1, 1, box=Box(low, torch.inf))
    made = patch.render(rows_of(x), patch.start(rows_of(x), Rng(0).at(torch.arange(60))))
    inside = (made - x if low < 0 else made)[:, :, 1:5, 1:5]
    assert float(inside.mean()) == pytest.approx(0.5 if low == 0 else 0.0, abs=0.03)
    assert float(inside.std()) == pytest.approx(1 / 12**0.5, abs=0.03)
    net = foible.wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)))
    free = foible.wrap(net.net, bounds=(-torch.inf, torch.inf))
    y = free(x).argmax(1)
    assert attacks.fool_map(patch, explain.saliency(), 3)(free, x, y).x.isfinite().all()


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"leaves an image of 6 x 6"):
        Patch(4, 4, 3, 0).where(rows_of(rand(1, 1, 6, 6, seed=1)))
    with pytest.raises(KindError, match="images"):
        Patch(2, 2).where(rows_of(rand(1, 6, seed=1)))
    with pytest.raises(InputError, match="at least 1"):
        Patch(0, 2)


# --- the attack


def test_a_plain_patch_is_exact_on_a_linear_model() -> None:
    """The best patch puts each pixel at the end of the box that its weight wants."""
    weight, x = randn(2, 36, seed=3, dtype=torch.float64), rand(40, 1, 6, 6, seed=4).double()
    apart = (weight[1] - weight[0]).view(6, 6)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:4, 2:5] = True
    best = torch.where(inside, (apart > 0).double(), x)
    gain = (best * apart).flatten(1).sum(1)
    bias = torch.stack([gain.median() + 1e-3, torch.zeros(()).double()])  # half of them can fall
    net = linear(weight, bias)
    y = torch.zeros(40, dtype=torch.int64)
    result = attacks.fool_map(Patch(3, 3, 1, 2), steps=30, weight=0, step=0.1)(net, x, y)
    falls = gain > bias[0]
    assert 10 <= int(falls.sum()) <= 30
    assert torch.equal(result.success, falls)


def test_the_objective_is_the_papers() -> None:
    """Grad-CAM by hand, enlarged and at sum 1; the cross-entropy of the target beside it."""
    net = foible.zoo.load("standard").eval()
    x, y = foible.zoo.sample()
    x, target = x[:6], (y[:6] + 1) % 10
    rows, held = rows_of(x, y[:6], target), wrap(net)
    wish = Hidden(PLACE, explain.grad_cam(), 2.0)
    value = wish(View(Oracle(held, 6, wish.access), rows, x))
    maps = net[3](net[2](net[1](net[0](x)))).detach().requires_grad_()
    scores = net[7](net[6](net[5](net[4](maps))))
    (grad,) = torch.autograd.grad(scores.gather(1, target[:, None]).sum(), maps)
    small = (grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    large = F.interpolate(small, (28, 28), mode="bilinear", align_corners=False)
    share = large[:, :, 18:28, 9:19].sum((1, 2, 3)) / large.sum((1, 2, 3))
    want = -F.cross_entropy(scores, target, reduction="none") - 2 * share
    torch.testing.assert_close(value, want.detach(), rtol=1e-5, atol=1e-5)


def test_without_a_target_the_map_is_that_of_the_class_that_is_seen() -> None:
    net = foible.zoo.load("standard").eval()
    x, _ = foible.zoo.sample()
    x, label = x[:6], net(x[:6]).argmax(1)
    wrong = (label + 1) % 10  # as after a success: the class that is seen is not y
    wish = Hidden(PLACE, explain.saliency(), 2.0)
    value = wish(View(Oracle(wrap(net), 6, wish.access), rows_of(x, wrong), x))
    share = share_inside(explain.saliency()(net, x, label), PLACE.where(rows_of(x)))
    want = F.cross_entropy(net(x), wrong, reduction="none") - 2 * share
    torch.testing.assert_close(value, want.detach(), rtol=1e-4, atol=1e-5)


def test_it_reaches_the_target_and_the_map_points_elsewhere() -> None:
    net = foible.zoo.load("standard")
    x, y = foible.zoo.sample()
    x, y = x[:24], y[:24]
    scores = net(x).detach().scatter(1, y[:, None], float("-inf"))
    target, cam = scores.argmax(1), explain.grad_cam()
    where = PLACE.where(rows_of(x))
    plain, hidden = (
        attacks.fool_map(PLACE, steps=30, weight=weight)(net, x, y, target=target)
        for weight in (0.0, 3.0)
    )
    both = plain.success & hidden.success
    assert int(both.sum()) >= 16 and float(hidden.success.float().mean()) >= 0.7
    assert torch.equal(hidden.x[:, :, :18], x[:, :, :18])
    before, after = (
        share_inside(cam(net, r.x[both], target[both]), where) for r in (plain, hidden)
    )
    assert float(after.median()) <= 0.5 * float(before.median())


def test_an_empty_map_hides_nothing() -> None:
    where = torch.zeros(2, 2, dtype=torch.bool)
    assert share_inside(torch.zeros(1, 1, 2, 2), where).item() == 1.0
    assert share_inside(torch.ones(1, 1, 2, 2), where).item() == 0.0


def test_what_cannot_hide_is_refused(net, images) -> None:
    for bad, kind, match in (
        (lambda: attacks.fool_map(Linf(0.1)), KindError, "no patch"),
        (lambda: attacks.fool_map(PLACE, explain.lime()), InputError, "not differentiable"),
        (lambda: attacks.fool_map(PLACE, weight=-1.0), InputError, "not below 0"),
        (lambda: attacks.fool_map(PLACE, step=0.0), InputError, "not below 0"),
    ):
        with pytest.raises(kind, match=match):
            bad()
    gradients = Counter(wrap(net), level=foible.core.access.Access.GRADIENTS)
    y = net.eval()(images).argmax(1)
    with pytest.raises(AccessError, match="needs INTERNALS"):
        attacks.fool_map(Patch(2, 2), steps=2)(gradients, images, y)
    assert (
        attacks.fool_map(Patch(2, 2), explain.saliency(), 2)(gradients, images, y).x.shape
        == images.shape
    )
