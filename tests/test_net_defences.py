"""Defences that change a network: kernels, drops, denoising blocks, softplus."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import Own, equal, images, seeded, state, train
from torch import Tensor, nn

import foible
from foible import defend
from foible.core.errors import InputError, KindError
from foible.defend.nets import (
    InfoDrop,
    high_frequency_share,
)
from foible.models import wrap

MAKERS = {
    "kernel_smoothing": defend.kernel_smoothing,
    "infodrop": defend.infodrop,
    "softplus": defend.softplus,
    "split_norms": defend.split_norms,
    "denoising_blocks": lambda net: defend.denoising_blocks(net, images(), ["norm"]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_net_that_is_given_stays_as_it_was(name: str) -> None:
    net = seeded(Own)
    before, classes = state(net), [type(m) for m in net.modules()]
    made = MAKERS[name](net)
    train(made, defend.losses.plain(), steps=1)
    assert equal(before, state(net)) and [type(m) for m in net.modules()] == classes
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(KindError, match=name):
        MAKERS[name](wrap(net))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MAKERS)
def test_a_changed_net_is_attacked_like_any_other(name: str) -> None:
    made = MAKERS[name](seeded(Own)).eval()
    x = images()
    y = made(x).argmax(1)
    found = foible.attacks.pgd(foible.Linf(1.0), steps=20, stop="success")(made, x, y)
    assert bool(found.success.any())  # its gradients pass


def test_a_copy_carries_the_name_of_its_breaker() -> None:
    net, x = seeded(Own), images()
    y = net.eval()(x).argmax(1)
    smooth, dropped = defend.kernel_smoothing(net), defend.plain_again(defend.infodrop(net))
    assert (smooth.defence, dropped.defence) == ("kernel_smoothing", "infodrop")
    assert not hasattr(net, "defence")
    found = defend.breaker(smooth.defence, steps=10)(smooth.eval(), x, y, foible.Linf(0.5))
    assert found.gap >= 0


# --- kernel smoothing


def smoothed_slowly(weight: Tensor, rho: float) -> Tensor:
    out = weight.clone()
    height, width = weight.shape[2:]
    for i in range(height):
        for j in range(width):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if a or b:
                        row, column = i + a, j + b
                        # The symmetric border: what lies one beyond it is the outermost itself.
                        row = (
                            -row - 1 if row < 0 else 2 * height - 1 - row if row >= height else row
                        )
                        column = -column - 1 if column < 0 else column
                        column = 2 * width - 1 - column if column >= width else column
                        out[:, :, i, j] += rho * weight[:, :, row, column]
    return out


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (5, 2), (1, 3)])
def test_kernels_are_the_papers_written_slowly(size: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, size), nn.Conv2d(3, 2, 3))
    made = defend.kernel_smoothing(net, 0.25)
    torch.testing.assert_close(made[0].weight, smoothed_slowly(net[0].weight.detach(), 0.25))
    assert torch.equal(made[1].weight, net[1].weight) and torch.equal(made[0].bias, net[0].bias)
    every = defend.kernel_smoothing(net, 0.25, "all")
    torch.testing.assert_close(every[1].weight, smoothed_slowly(net[1].weight.detach(), 0.25))
    named = defend.kernel_smoothing(net, 0.25, ["1"])
    assert torch.equal(named[0].weight, net[0].weight)
    assert torch.equal(named[1].weight, every[1].weight)
    assert torch.equal(defend.kernel_smoothing(net, 0.0)[0].weight, net[0].weight)


def test_a_kernel_that_is_used_twice_is_smoothed_once() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    other = nn.Conv2d(1, 1, 3, padding=1)
    other.weight = conv.weight
    made = defend.kernel_smoothing(nn.Sequential(conv, conv, other), 0.5, "all")
    torch.testing.assert_close(made[0].weight, smoothed_slowly(conv.weight.detach(), 0.5))
    assert made[0] is made[1] and made[2].weight is made[0].weight


def test_the_share_of_high_frequencies() -> None:
    flat = torch.zeros(1, 1, 8, 8)
    flat[0, 0, 3, 3] = 1
    axis = torch.fft.fftfreq(32).double()
    area = ((axis[:, None] ** 2 + axis[None] ** 2).sqrt() > 0.25).double().mean()
    torch.testing.assert_close(high_frequency_share(flat), area[None])  # a point is white
    column, row = torch.arange(32), torch.zeros(32)
    for cycles, share in ((2, 0.0), (7, 0.0), (9, 1.0), (16, 1.0)):
        wave = torch.cos(2 * torch.pi * cycles * column / 32)[None] + row[:, None]
        got = high_frequency_share(wave[None, None])
        torch.testing.assert_close(got, torch.tensor([share]).double(), atol=1e-6, rtol=0)
    made = defend.kernel_smoothing(nn.Conv2d(1, 64, 5), 0.5)
    assert high_frequency_share(made.weight).mean() < 0.8 * area


def test_kernels_that_cannot_be_smoothed() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3), nn.ReLU())
    with pytest.raises(InputError, match="rho"):
        defend.kernel_smoothing(net, -0.1)
    with pytest.raises(InputError, match="no neighbours"):
        defend.kernel_smoothing(net)
    with pytest.raises(InputError, match="'2' is a ReLU"):
        defend.kernel_smoothing(net, layers=["2"])
    with pytest.raises(InputError, match="'nine' is no submodule"):
        defend.kernel_smoothing(net, layers=["nine"])
    with pytest.raises(InputError, match="no layer is named"):
        defend.kernel_smoothing(net, layers=[])
    with pytest.raises(InputError, match="no Conv2d"):
        defend.kernel_smoothing(nn.Linear(2, 2))
    parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3))
    with pytest.raises(InputError, match="parametrisation"):
        defend.kernel_smoothing(parametrised)
    for bad in ({"cut": 0.5}, {"grid": 2}):
        with pytest.raises(InputError):
            high_frequency_share(torch.rand(1, 1, 3, 3), **bad)  # type: ignore[arg-type]


# --- InfoDrop


def half_and_half() -> Tensor:
    """Left a flat half, right one of random pixels: (1, 1, 16, 16)."""
    x = torch.full((1, 1, 16, 16), 0.5)
    x[..., 8:] = torch.rand(16, 8, generator=torch.Generator().manual_seed(3))
    return x


def drop(conv: nn.Conv2d, **given: Any) -> InfoDrop:
    made = defend.infodrop(nn.Sequential(conv), **given)[0]
    assert isinstance(made, InfoDrop)
    return made


def test_what_tells_little_is_dropped() -> None:
    layer, x = drop(seeded(lambda: nn.Conv2d(1, 8, 3, padding=1))), half_and_half()
    out = torch.stack([layer(x) for _ in range(20)])
    kept = (out != 0).double().mean((0, 1, 2))
    # Apart from the seam, where a patch holds both.
    assert kept[:, 10:].mean() >= kept[:, :6].mean() + 0.2
    full = layer.conv(x)
    assert bool(((out == 0) | (out == full)).all())  # kept as it is, not scaled


def rates_slowly(layer: InfoDrop, x: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """The formula of one image, position by position, over given neighbours."""
    conv = layer.conv
    k, s, p = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    padded = F.pad(x[0], (p, p, p, p))
    side = (padded.shape[1] - k) // s + 1
    patch = {
        (i, j): padded[:, i * s : i * s + k, j * s : j * s + k]
        for i in range(side)
        for j in range(side)
    }
    apart = {
        place: [
            float((here - patch[place[0] + a, place[1] + b]).square().sum())
            for a, b in offsets
            if (place[0] + a, place[1] + b) in patch
        ]
        for place, here in patch.items()
    }
    every = torch.tensor([d for each in apart.values() for d in each]).double()
    h = layer.bandwidth
    weight = torch.zeros(side, side, dtype=torch.float64)
    for (i, j), each in apart.items():
        likeness = (-torch.tensor(each).double() / every.mean() / (2 * h * h)).exp().mean()
        weight[i, j] = likeness ** (1 / layer.temperature)  # exp(-I / T)
    share = weight / weight.sum()
    return 1 - (1 - share) ** (layer.rate * side * side)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_rates_are_the_formula_written_slowly(stride: int) -> None:
    conv = nn.Conv2d(2, 3, 3, stride=stride, padding=1)
    layer = drop(conv, temperature=0.3, bandwidth=0.7, radius=1)
    x = torch.rand(3, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    shape = tuple(conv(x).shape[2:])
    # Within one position there are eight neighbours, fewer than are sampled: all are used.
    offsets = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    got = layer.drop_rates(x, shape)
    assert got.shape == (3, 1, *shape) and not got.requires_grad
    for i in range(3):
        want = rates_slowly(layer, x[i : i + 1], offsets).float()
        torch.testing.assert_close(got[i, 0], want, atol=1e-5, rtol=1e-3)


def test_a_flat_image_is_dropped_evenly() -> None:
    layer = drop(nn.Conv2d(1, 1, 3))
    for _ in range(20):  # also where no sampled neighbour of a corner lies inside
        got = layer.drop_rates(torch.full((2, 1, 9, 9), 0.3), (7, 7))
        torch.testing.assert_close(got, torch.full_like(got, 1 - (1 - 1 / 49) ** (1.5 * 49)))


def test_the_drop_is_there_in_training_and_follows_the_generator() -> None:
    net = seeded(Own)
    made, x = defend.infodrop(net), images()
    assert isinstance(made.first, InfoDrop) and isinstance(made.second, nn.Conv2d)
    assert torch.equal(made.eval()(x), net.eval()(x))
    made.train()

    def once(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return made.first(x)

    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2))
    # One image's rates do not depend on its neighbours in the batch.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        many = made.first.drop_rates(x, (8, 8))
        torch.default_generator.manual_seed(1)
        one = made.first.drop_rates(x[:1], (8, 8))
    torch.testing.assert_close(many[:1], one)
    plain = defend.plain_again(made)
    assert type(plain.first) is nn.Conv2d and equal(state(plain), state(net))


@pytest.mark.parametrize(
    "given", [{"rate": 0.0}, {"temperature": -1.0}, {"radius": 0}, {"layers": ["norm"]}]
)
def test_drops_that_make_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        defend.infodrop(seeded(Own), **given)


def test_there_must_be_something_to_drop_or_to_take_away() -> None:
    with pytest.raises(InputError, match="no Conv2d"):
        defend.infodrop(nn.Linear(2, 2))
    with pytest.raises(InputError, match="no drops"):
        defend.plain_again(seeded(Own))
    with pytest.raises(KindError, match="batches"):
        defend.infodrop(nn.Sequential(nn.Conv2d(1, 2, 3)))(torch.rand(1, 8, 8))


# --- denoising blocks


@pytest.mark.parametrize("kind", ["nonlocal", "dot", "mean", "median"])
def test_a_block_is_the_identity_until_it_is_trained(kind: str) -> None:
    net, x = seeded(Own).eval(), images()
    made = defend.denoising_blocks(net, x, ["first", "second"], kind)
    assert (made(x) - net(x)).abs().max() < 1e-6
    trained = train(made, defend.losses.plain(), steps=2).eval()
    block = trained.first.block
    assert bool((block.norm.weight != 0).any())  # it does learn
    assert not torch.equal(block(net.first(x)), net.first(x))


def test_what_a_block_averages_written_slowly() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
    x, y = images(), torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(5))
    blocks = {k: defend.denoising_blocks(net, x, "0", k)[0].block for k in ("nonlocal", "dot")}
    for kind, block in blocks.items():
        with torch.no_grad():
            block.theta.weight.mul_(300), block.phi.weight.mul_(300)
            asked, held = block.theta(y).flatten(2), block.phi(y).flatten(2)
        assert asked.shape[1] == 2
        want = torch.zeros(2, 4, 30)
        for b in range(2):
            for i in range(30):
                alike = torch.stack([asked[b, :, i] @ held[b, :, j] for j in range(30)])
                weight = alike / 30 if kind == "dot" else (alike / 2**0.5).softmax(0)
                want[b, :, i] = sum(weight[j] * y[b, :, :, :].flatten(1)[:, j] for j in range(30))
        torch.testing.assert_close(block.denoised(y).flatten(2), want, atol=1e-4, rtol=1e-4)
    for kind, inside, corner in (
        ("mean", y[0, 0, 0:3, 0:3].mean(), y[0, 0, :2, :2].mean()),
        (
            "median",
            y[0, 0, 0:3, 0:3].median(),
            torch.stack(
                [y[0, 0, max(a, 0), max(b, 0)] for a in (-1, 0, 1) for b in (-1, 0, 1)]
            ).median(),
        ),
    ):
        got = defend.denoising_blocks(net, x, "0", kind)[0].block.denoised(y)
        torch.testing.assert_close(got[0, 0, 1, 1], inside)
        torch.testing.assert_close(got[0, 0, 0, 0], corner)


def test_blocks_are_seeded_and_take_no_random_state() -> None:
    net, x = seeded(Own), images()
    held = torch.get_rng_state()
    a, b, c = (defend.denoising_blocks(net, x, ["norm"], seed=s) for s in (0, 0, 1))
    assert torch.equal(held, torch.get_rng_state())
    assert equal(state(a), state(b)) and not equal(state(a), state(c))
    assert 0.005 < a.norm.block.conv.weight.std() < 0.02
    assert a.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("after", "kind", "match"),
    [
        (["norm"], "blur", "choose nonlocal"),
        (["nowhere"], "mean", "no submodule"),
        (["head"], "mean", "'head' gives"),
        ([], "mean", "no layer is named"),
    ],
)
def test_blocks_that_cannot_be_put(after: list[str], kind: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        defend.denoising_blocks(seeded(Own), images(), after, kind)


# --- softplus


def test_softplus_is_the_twin_and_can_be_trained() -> None:
    net, x = seeded(Own).eval(), images()
    made = defend.softplus(net, 4.0)
    twin = foible.models.softplus_twin(net, 4.0)
    torch.testing.assert_close(made(x), twin(x))
    assert not torch.allclose(made(x), net(x))
    before = state(made)
    trained = train(made, defend.losses.plain(), steps=1)
    assert not torch.equal(trained.net.second.weight, before["net.second.weight"])
    # Smooth: finite differences of the gradient exist where a ReLU has its kink.
    kink = defend.softplus(nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()), 2.0)
    at = torch.zeros(1, 1, requires_grad=True)
    assert kink(at).item() == pytest.approx(0.6931 / 2, abs=1e-3)


def test_softplus_needs_a_relu() -> None:
    with pytest.raises(InputError, match="no ReLU"):
        defend.softplus(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))(torch.rand(1, 2))
    with pytest.raises(InputError, match="beta"):
        defend.softplus(nn.ReLU(), 0.0)
