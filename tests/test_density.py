"""The density term: its gradient, its kernels, and where it leads an attack; transforms."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallNet, filled, predicted, rand, randn
from test_wrappers import brighter, equal, rows_of
from torch import Tensor, nn

from foible.attacks import bim, eot, pgd, with_density
from foible.attacks.wrappers import Averaged
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.randomness import Rng
from foible.core.spec import spec
from foible.models import wrap
from foible.parts import transforms
from foible.parts.density import Density, kernel_density
from foible.parts.objectives import Margin
from foible.parts.threats import L2, Linf


@pytest.mark.parametrize("kernel", ["laplace", "rbf"])
def test_the_gradient_of_the_density_is_its_difference_quotient(mlp, table, kernel) -> None:
    points, y = randn(40, 10, seed=1, dtype=torch.float64), predicted(mlp, table)
    term = Density(Margin(), points, 30.0, 4.0, kernel)
    oracle, rows = Oracle(wrap(mlp), len(table)), rows_of(table, y)

    def value(x: Tensor) -> Tensor:
        return term(View(oracle, rows, x))

    _, grad = oracle.value_and_grad(value, table, rows)
    for i in range(table.shape[1]):
        step = torch.zeros_like(table)
        step[:, i] = 1e-5
        quotient = (value(table + step) - value(table - step)).detach() / 2e-5
        torch.testing.assert_close(grad[:, i], quotient, rtol=1e-4, atol=1e-6)


def test_the_kernels_by_hand() -> None:
    x, p = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    e = torch.tensor
    torch.testing.assert_close(kernel_density(x, p, 2.0, "laplace"), (1 + e([-1.5]).exp()) / 2)
    torch.testing.assert_close(kernel_density(x, p, 2.0, "rbf"), (1 + e([-0.625]).exp()) / 2)


class Bumps(nn.Module):
    """Two classes by Gaussian bumps about given centres, as an RBF machine scores them."""

    def __init__(self, malign: Tensor, benign: Tensor, width: float) -> None:
        super().__init__()
        self.malign, self.benign, self.width = malign, benign, width

    def forward(self, x: Tensor) -> Tensor:
        near = [torch.exp(-(torch.cdist(x, c) ** 2) / self.width).mean(1)
                for c in (self.benign, self.malign)]  # fmt: skip
        return 20 * torch.stack(near, 1)


@pytest.mark.parametrize("kernel", ["laplace", "rbf"])
def test_with_the_density_attacks_end_among_benign_points(kernel) -> None:
    benign = 0.3 + 0.1 * randn(60, 2, seed=1)
    malign = 0.75 + 0.06 * randn(60, 2, seed=2)
    model = wrap(Bumps(malign, benign[:8], 0.4), (0, 1))
    x, y = malign[:40].clamp(0, 1), torch.ones(40, dtype=torch.int64)
    plain = pgd(L2(0.6), 40, objective="margin")
    drawn = with_density(plain, benign, 100.0, 0.2, kernel)
    a, b = plain(model, x, y), drawn(model, x, y)
    assert a.success_rate > 0.85 and b.success_rate >= a.success_rate
    log = [kernel_density(r.x, benign, 0.2, kernel).log().mean() for r in (a, b)]
    assert log[1] > log[0] + 0.02, log


def test_without_weight_the_density_changes_nothing(mlp, table) -> None:
    y, attack = predicted(mlp, table), pgd(Linf(0.1), 4, objective="margin", restarts=3)
    assert equal(with_density(attack, table, 0.0)(mlp, table, y), attack(mlp, table, y))
    # Inside an expectation the data are not transformed, nor paid for.
    both = with_density(eot(attack, 3, brighter), table, 1.0)
    assert isinstance(both.objective, Averaged) and isinstance(both.objective.inner, Density)
    assert torch.equal(
        both(mlp, table, y).forwards, eot(attack, 3, brighter)(mlp, table, y).forwards
    )


def test_the_density_says_what_is_wrong(mlp, table) -> None:
    attack, y = bim(Linf(0.1), 2), predicted(mlp, table)
    for wrong in ({"kernel": "box"}, {"bandwidth": 0.0}):
        with pytest.raises(InputError):
            with_density(attack, table, **wrong)
    with pytest.raises(InputError, match="0 points"):
        with_density(attack, table[:0])
    with pytest.raises(InputError, match="data holds inputs of shape"):
        with_density(attack, table[:, :3])(mlp, table, y)
    with pytest.raises(KindError, match="no identity that a plan can store"):
        spec(with_density(attack, table))


# Transforms


@pytest.mark.parametrize("transform", [
    transforms.ResizePad(0.5, 0.9, 1.0), transforms.ShiftRotate(20, 2, 0.1), transforms.Noise(0.1),
    transforms.Blur(), transforms.Light(),
    transforms.Chain((transforms.Blur(), transforms.ResizePad())),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_transform_is_a_rows_own_and_differentiable(transform, dtype) -> None:
    x = rand(5, 3, 9, 7, seed=1, dtype=dtype).requires_grad_()
    draw = Rng(2).at(torch.arange(5), 4)
    out = transform(x, draw)
    assert out.shape == x.shape and out.dtype == dtype and not torch.equal(out, x)
    alone = transform(x[3:4], draw.take(torch.tensor([3])))
    assert torch.equal(alone, out[3:4])
    assert not torch.equal(transform(x, Rng(2).at(torch.arange(5), 5)), out)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.isfinite(grad).all() and grad.abs().max() > 0


def test_resize_and_pad_by_hand() -> None:
    x, draw = rand(6, 2, 8, 8, seed=3), Rng(1).at(torch.arange(6))
    assert torch.equal(transforms.ResizePad(0.5, 0.9, 0.0)(x, draw), x)
    assert torch.equal(transforms.ResizePad(1.0, 1.0, 1.0)(x, draw), x)
    half = transforms.ResizePad(0.5, 0.5, 1.0, fill=-1.0)(x, draw)
    small = nn.functional.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False)
    for one, wanted in zip(half, small, strict=True):
        inside = one[0] != -1
        assert int(inside.sum()) == 16  # a whole 4 x 4 image, somewhere
        torch.testing.assert_close(one[:, inside].reshape(2, 4, 4), wanted)
    with pytest.raises(InputError, match="0 < low <= high <= 1"):
        transforms.ResizePad(0.9, 1.2)
    with pytest.raises(KindError, match="images"):
        transforms.ShiftRotate()(rand(3, 4, seed=1), Rng(0).at(torch.arange(3)))


def test_eot_on_a_net_with_state(images) -> None:
    """Batch norm, dropout and in-place modules, images in another memory format, one sample."""
    net = filled(SmallNet(), 5, 2.0).train()
    x = images[:1].to(memory_format=torch.channels_last)
    result = eot(pgd(Linf(0.1), 3), 3, transforms.ShiftRotate())(net, x, predicted(net, x))
    assert torch.isfinite(result.x).all() and result.x.shape == x.shape
