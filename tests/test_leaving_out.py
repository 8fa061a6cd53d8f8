"""Occlusion, leave-one-out and erasure beside captum; the smallest erasures beside all sets."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation
from captum.attr import Occlusion as CaptumOcclusion
from conftest import Counter, filled, linear, rand, randn
from test_removal import rows_of
from test_surrogate import mlp
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.errors import InputError
from foible.explain.removal import EveryFeature, LabelMap, Superpixels, plain
from foible.models import wrap


@pytest.fixture
def colour() -> tuple[nn.Module, Tensor]:
    net = filled(nn.Sequential(nn.Flatten(), nn.Linear(126, 5), nn.Tanh(), nn.Linear(5, 2)), 2)
    return net.double(), rand(3, 3, 7, 6, seed=1, dtype=torch.float64)


def by_captum(
    net: nn.Module, x: Tensor, window: tuple[int, ...], stride: tuple[int, ...], base: Any, c: int
) -> Tensor:
    """captum's sum over windows, and the mean from it: captum itself rounds the mean to float32."""
    theirs = CaptumOcclusion(net)
    rounded = theirs.attribute(x, window, stride, baselines=base, target=c)
    theirs.use_weights = False
    total = theirs.attribute(x, window, stride, baselines=base, target=c)
    hidden = torch.zeros(x.shape[1:])
    for start in product(
        *(range(0, n - w + s, s) for n, w, s in zip(x.shape[1:], window, stride, strict=True))
    ):
        hidden[tuple(slice(a, a + w) for a, w in zip(start, window, strict=True))] += 1
    torch.testing.assert_close((total / hidden).float(), rounded.float(), rtol=1e-5, atol=1e-7)
    return total / hidden


@pytest.mark.parametrize("width", [2, 100])
@pytest.mark.parametrize(
    ("window", "stride"), [((3, 2), (2, 2)), ((1, 1), (1, 1)), ((4, 5), (3, 2)), ((7, 6), (1, 1))]
)
def test_occlusion_is_captums(colour, window, stride, width) -> None:
    net, x = colour
    model = Counter(wrap(net), at_most=width)
    found = explain.occlusion(window, stride, 0.3)(model, x, 1)
    expected = by_captum(net, x, (3, *window), (3, *stride), 0.3, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert max(model.sizes) <= width
    counts = [1 + -(-(n - w) // s) for n, w, s in zip((7, 6), window, stride, strict=True)]
    assert model.forwards == 3 * (1 + counts[0] * counts[1]) + 1


def test_occlusion_of_a_table_and_of_one_number() -> None:
    net, x = mlp(9), rand(4, 9, seed=3, dtype=torch.float64)
    base = rand(9, seed=5, dtype=torch.float64)
    found = explain.occlusion(3, 2, base)(net, x, 2)
    expected = by_captum(net, x, (3,), (2,), base[None], 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    image = rand(2, 6, 6, seed=3, dtype=torch.float64)
    assert explain.occlusion(2, 1)(mlp(36), image, 0).shape == image.shape


@pytest.mark.parametrize("width", [2, 100])
def test_leave_one_out_is_captums_ablation(colour, width: int) -> None:
    net, x = colour
    label = torch.tensor([[0, 0, 1, 1, 4, 2]] * 7)
    kinds = [(LabelMap(plain(label)), label.expand(1, 3, 7, 6)), (3, None), (EveryFeature(), None)]
    cells = (torch.arange(7) // 3)[:, None] * 2 + torch.arange(6) // 3
    for kind, mask in kinds:
        if isinstance(kind, int):
            mask = cells.expand(1, 3, 7, 6)
        model = Counter(wrap(net), at_most=width)
        found = explain.leave_one_out(kind, 0.3)(model, x, 1)
        expected = FeatureAblation(net).attribute(x, 0.3, target=1, feature_mask=mask)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        count = len(mask.unique()) if mask is not None else 126
        assert model.forwards == 3 * (1 + count) + 1 and max(model.sizes) <= width


def test_superpixels_and_baselines_of_each_image(colour) -> None:
    net, x = colour
    kind = Superpixels(1.0, 3.0)
    found = explain.leave_one_out(kind, "mean")(net, x, 1)
    part = kind.of(rows_of(x))
    assert len(part.present.sum(1).unique()) > 1
    for i in range(3):
        base = x[i].mean((1, 2), keepdim=True).expand_as(x[i])[None]
        mask = part.label[i : i + 1].expand(1, 3, 7, 6)
        alone = FeatureAblation(net).attribute(x[i : i + 1], base, target=1, feature_mask=mask)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-9)


# --- erasure


def test_erasure_is_leave_one_out_of_the_log_likelihood_over_its_size() -> None:
    net, x = mlp(10), rand(4, 10, seed=3, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 1])
    logs = nn.Sequential(net, nn.LogSoftmax(1))
    lost = explain.leave_one_out()(logs, x, y)
    likely = logs(x).detach().gather(1, y[:, None])
    found = explain.erasure()(net, x, y)
    torch.testing.assert_close(found, lost / likely.abs(), rtol=0, atol=1e-12)
    for i in range(4):  # the formula, one dimension at a time
        for d in range(10):
            erased = x[i].clone()
            erased[d] = 0
            after = float(logs(erased[None]).detach()[0, y[i]])
            expected = (float(likely[i]) - after) / abs(float(likely[i]))
            assert abs(float(found[i, d]) - expected) < 1e-10


def test_what_is_not_used_is_worth_nothing() -> None:
    weight = randn(3, 8, seed=1, dtype=torch.float64)
    weight[:, [2, 5]] = 0
    net, x = linear(weight, torch.zeros(3).double()), rand(4, 8, seed=2, dtype=torch.float64)
    x[1, 6] = 0.0  # what already shows the baseline
    for method in (explain.erasure(), explain.leave_one_out(), explain.occlusion(1, 1)):
        maps = method(net, x, 1)
        assert bool((maps[:, [2, 5]] == 0).all()) and float(maps[1, 6]) == 0
        assert bool((maps[:, [0, 1, 3, 4, 7]] != 0).all())


def all_sets(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The size (B,) of the smallest set whose erasure changes the label, by trying every one."""
    masks = torch.tensor(list(product([0.0, 1.0], repeat=x.shape[1])), dtype=x.dtype)
    with torch.no_grad():
        label = net((x[:, None] * (1 - masks)).flatten(0, 1)).argmax(1).view(len(x), -1)
    return torch.where(label != y[:, None], masks.sum(1), torch.inf).amin(1)


def test_the_smallest_erasure_is_near_the_smallest_of_all() -> None:
    found = best = reachable = reached = 0.0
    for seed in range(8):
        net = filled(nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)), seed, 3.0)
        net, x = net.double(), rand(15, 10, seed=seed + 50, dtype=torch.float64)
        y = net(x).argmax(1)
        result = attacks.minimal_erasure()(net, x, y)
        smallest = all_sets(net, x, y)
        reachable += int(smallest.isfinite().sum())
        reached += int(result.success.sum())
        assert bool((result.distance >= smallest)[result.success].all())
        found += float(result.distance[result.success].sum())
        best += float(smallest[result.success].sum())
    assert reachable > 60 and reached >= 0.95 * reachable
    assert found <= 1.2 * best, (found, best)


def test_needless_erasures_are_put_back() -> None:
    """Greedy takes 0 first, which alone brings most; 1 and 2 together suffice."""

    class Trap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gone = 1 - x
            score = 0.6 * gone[:, 0] + torch.tensor(0.55) * (gone[:, 1] + gone[:, 2]) - 1.05
            score = score + 0.2 * gone[:, 3] - 0.15 * gone[:, 0] * gone[:, 1:3].sum(1)
            return torch.stack([0 * score, score], 1)

    x, y = torch.ones(1, 5), torch.zeros(1, dtype=torch.int64)
    result = attacks.minimal_erasure()(Trap(), x, y)
    assert float(result.distance) == 2 and result.x.tolist() == [[1.0, 0.0, 0.0, 1.0, 1.0]]


def test_segments_are_erased_whole_and_queries_are_counted() -> None:
    net, x = mlp(36), 0.1 + 0.9 * rand(6, 1, 6, 6, seed=2, dtype=torch.float64)
    with torch.no_grad():
        y = net(x).argmax(1)
    model = Counter(wrap(net), at_most=7)
    result = attacks.minimal_erasure(3, "mean")(model, x, y)
    assert int(result.forwards.sum()) == model.forwards and max(model.sizes) <= 7
    assert model.backwards == 0
    changed = (result.x != x)[:, 0].view(6, 2, 3, 2, 3).transpose(2, 3).reshape(6, 4, 9)
    assert bool((changed.all(2) == changed.any(2)).all()) and bool(result.success.any())
    assert torch.equal(
        result.distance[result.success] % 9, torch.zeros(int(result.success.sum())).double()
    )


def test_what_cannot_be_hidden_is_refused() -> None:
    with pytest.raises(InputError, match="never hidden"):
        explain.occlusion(2, 3)
    with pytest.raises(InputError, match="larger than the input"):
        explain.occlusion(8, 1)(mlp(36), rand(1, 1, 6, 6, seed=1).double(), 0)
    with pytest.raises(InputError, match="needs segments"):
        explain.occlusion(2, 1, "segment")(mlp(36), rand(1, 1, 6, 6, seed=1).double(), 0)
    with pytest.raises(InputError, match="give a number"):
        attacks.minimal_erasure(baseline="grey")
