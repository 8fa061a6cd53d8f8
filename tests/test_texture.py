"""What a net reads: images without texture or shape, maps on edges, and how far a layer moves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import Own, images, seeded
from torch import Tensor, nn

import foible
from foible.core.errors import InputError
from foible.core.randomness import Rng
from foible.explain import (
    edge_alignment,
    feature_noise,
    gini,
    patch_shuffled,
    saturated,
    texture_or_shape,
)
from foible.explain.textures import edges
from foible.figures import FEATURE_COLUMNS, feature_tiles


def draw(count: int, seed: int = 0) -> Any:
    return Rng(seed).at(torch.arange(count))


# --- saturation and shuffling


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("p", [1.0, 2.0, 8.0, 1024.0, math.inf])
def test_saturation_is_the_papers(p: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    x = low + (high - low) * images().double()
    got = saturated(x, p, bounds)
    for value, after in zip(x.flatten()[:50].tolist(), got.flatten()[:50].tolist(), strict=True):
        v = (value - low) / (high - low)
        want = math.copysign(1, 2 * v - 1) * abs(2 * v - 1) ** (2 / p) / 2 + 0.5
        assert after == pytest.approx(low + (high - low) * want, abs=1e-9)
    if p == 2:
        torch.testing.assert_close(got, x)
    if p == math.inf:
        assert set(got.unique().tolist()) == {low, high}
    assert bool(((got - (low + high) / 2).sign() == (x - (low + high) / 2).sign()).all())


def test_shuffled_patches_keep_their_pixels() -> None:
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    moved = patch_shuffled(x, 4, draw(2))

    def patches(image: Tensor) -> list[Any]:
        cut = [image[:, i : i + 2, j : j + 2] for i in range(0, 8, 2) for j in range(0, 8, 2)]
        return sorted(p.flatten().tolist() for p in cut)

    for before, after in zip(x, moved, strict=True):
        assert patches(before) == patches(after) and not torch.equal(before, after)
    orders = (moved - moved.flatten(1).min(1).values[:, None, None, None]).flatten(1)
    assert not torch.equal(orders[0], orders[1])  # each image has its own order
    assert torch.equal(patch_shuffled(x[1:], 4, Rng(0).at(torch.tensor([1])))[0], moved[1])
    assert torch.equal(patch_shuffled(x, 1, draw(2)), x)
    assert not torch.equal(patch_shuffled(x, 4, draw(2, seed=1)), moved)
    for k in (0, 3):
        with pytest.raises(InputError, match="equal patches"):
            patch_shuffled(x, k, draw(2))
    with pytest.raises(InputError, match="p=0"):
        saturated(x, 0)


class Mean(nn.Module):
    """Reads texture alone: how bright the image is, wherever that is."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Left(nn.Module):
    """Reads shape alone: which half is the brighter one."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        return torch.stack([x[..., half:].mean((1, 2, 3)), x[..., :half].mean((1, 2, 3))], 1)


def test_a_reader_of_texture_and_a_reader_of_shape_are_told_apart() -> None:
    g = torch.Generator().manual_seed(0)
    # Both halves bright or pale: the mean is 0.45 or 0.55, but most pixels are above a half.
    y = torch.randint(2, (200,), generator=g)
    x = torch.full((200, 1, 8, 8), 0.6)
    x[:, :, ::2, ::4] = (0.0 + 0.8 * y)[:, None, None, None]
    bright = texture_or_shape(Mean(), x, (x.mean((1, 2, 3)) > 0.5).long())
    assert bright.clean == 1 and bright.shuffled == 1 and bright.shape_lost == 0
    x = torch.full((200, 1, 8, 8), 0.3)
    for i in range(200):
        x[i, :, :, 4 * int(1 - y[i]) : 4 * int(1 - y[i]) + 4] = 0.7
    side = texture_or_shape(Left(), x, y, k=4)
    assert side.clean == 1 and side.saturated == 1 and side.texture_lost == 0
    assert 0.3 < side.shuffled < 0.7 and side.shape_lost == 1 - side.shuffled
    assert side.n == 200 and (side.p, side.k) == (1024.0, 4)


def test_the_accuracies_are_those_of_the_changed_inputs() -> None:
    net = foible.zoo.load("standard")
    x, y = foible.zoo.sample()
    x, y = x[:60], y[:60]
    found = texture_or_shape(net, x, y, p=8.0, k=2, seed=3)
    changed = (x, saturated(x, 8.0), patch_shuffled(x, 2, draw(60, 3)))
    rates = [float((net(v).argmax(1) == y).double().mean()) for v in changed]
    assert [found.clean, found.saturated, found.shuffled] == pytest.approx(rates)
    # The changes come before the preprocessing, in the bounds of the input.
    scaled = foible.wrap(net, bounds=(0, 255), preprocess=([0.0], [255.0]))
    assert texture_or_shape(scaled, 255 * x, y, p=8.0, k=2, seed=3) == found
    nothing = texture_or_shape(net, x, (net(x).argmax(1) + 1) % 10)
    assert nothing.clean == 0 and math.isnan(nothing.texture_lost)
    with pytest.raises(InputError, match="empty"):
        texture_or_shape(net, x[:0], y[:0])


# --- maps


def test_edges_are_sobels_written_slowly() -> None:
    x = images(2).double()
    got = edges(x)
    kernel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    for b in range(2):
        for i in range(8):
            for j in range(8):
                across = down = 0.0
                for a in range(3):
                    for c in range(3):
                        row, column = min(max(i + a - 1, 0), 7), min(max(j + c - 1, 0), 7)
                        across += kernel[a][c] * float(x[b, 0, row, column])
                        down += kernel[c][a] * float(x[b, 0, row, column])
                assert float(got[b, i, j]) == pytest.approx(math.hypot(across, down))


def test_alignment_is_the_share_on_the_steepest_pixels() -> None:
    x = torch.full((3, 1, 10, 10), 0.25)
    x[:, :, 3:7, 3:7] = 0.75
    steep = edges(x)
    on = steep > 0
    count = int(on[0].sum())
    maps = torch.stack([on[0].float(), (~on[1]).float(), torch.ones(10, 10)])[:, None]
    got = edge_alignment(torch.cat([maps, -maps], 1), x, count / 100)
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, count / 100]))
    assert math.isnan(float(edge_alignment(0 * maps[:1], x[:1])))
    for bad in ({"share": 0.0}, {"maps": maps[:, :, :5]}):
        with pytest.raises(InputError):
            edge_alignment(**{"maps": maps, "x": x, **bad})


def test_gini_is_the_mean_difference() -> None:
    maps = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    size = maps.abs().flatten(1)
    apart = (size[:, :, None] - size[:, None]).abs().mean((1, 2)) / (2 * size.mean(1))
    torch.testing.assert_close(gini(maps), apart)
    torch.testing.assert_close(gini(-7 * maps), gini(maps))
    assert math.isnan(float(gini(torch.zeros(1, 3))))


# --- feature noise


def test_feature_noise_is_the_relative_change_of_a_layer() -> None:
    net = seeded(Own).eval()
    x = images(5)
    moved = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    found = feature_noise(net, x, moved, "second")

    def second(x: Tensor) -> Tensor:
        return net.second(torch.relu(net.norm(net.first(x)))).detach()

    torch.testing.assert_close(found.clean, second(x))
    torch.testing.assert_close(found.adversarial, second(moved))
    for i in range(5):
        want = (second(moved)[i] - second(x)[i]).norm() / second(x)[i].norm()
        assert float(found.change[i]) == pytest.approx(float(want), rel=1e-5)
    assert bool((feature_noise(net, x, x).change == 0).all())
    with pytest.raises(InputError, match="before and after"):
        feature_noise(net, x, moved[:3])
    with pytest.raises(InputError, match="nowhere"):
        feature_noise(net, x, moved, "nowhere")
    dead = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        dead[0].bias.fill_(-9)
    assert bool(feature_noise(dead, x, moved, "1").change.isnan().all())


def test_an_adversarial_moves_a_layer_further_than_noise_of_its_size() -> None:
    net = foible.zoo.load("standard")
    x, y = foible.zoo.sample()
    x, y = x[:50], y[:50]
    x_adv = foible.attacks.pgd(foible.Linf(0.05), steps=20)(net, x, y).x
    g = torch.Generator().manual_seed(0)
    noise = 0.05 * (2 * torch.rand(x.shape, generator=g) - 1)
    last = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    attacked = feature_noise(net, x, x_adv, last).change
    random = feature_noise(net, x, (x + noise).clamp(0, 1), last).change
    assert float(attacked.mean()) > 3 * float(random.mean())


def test_the_most_changed_channels_are_drawn_on_one_scale() -> None:
    clean = np.zeros((3, 4, 4))
    moved = clean.copy()
    moved[2, 0, 0], moved[0, 1, 1] = 4.0, -1.0
    rows = feature_tiles(clean, moved, 2)
    assert [len(row) for row in rows] == [len(FEATURE_COLUMNS)] * 2
    assert "channel 2" in rows[0][0] and "channel 0" in rows[1][0]
    assert all("<img" in tile for row in rows for tile in row)
    assert rows[0][1] != rows[0][0] and rows[0][2] != rows[1][2]
    assert len(feature_tiles(clean, moved, 9)) == 3
    with pytest.raises(InputError, match="of one sample"):
        feature_tiles(clean, moved[:2])
