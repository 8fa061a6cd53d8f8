"""Detectors of layers: each is its formula, has a gradient, and falls to what knows it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import foible
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.detect import Detector, Feature, Largest, Logistic, adaptive, load
from foible.detect.base import State, features_of, learned_of, part_of
from foible.detect.features import (
    ClassDensity,
    Codes,
    DensityAndUncertainty,
    Layer,
    LocalDimension,
    MahalanobisDistance,
    Uncertainty,
)
from foible.detect.features.activations import activations, chosen
from foible.detect.features.density import SCALES
from foible.detect.features.dimensions import dimension
from foible.detect.watching import noisy
from foible.models import wrap


def tiny(dropout: bool = False) -> nn.Sequential:
    """Two hidden layers in float64, for eight numbers and three classes."""
    parts = [nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)]
    if dropout:
        parts.insert(2, nn.Dropout(0.3))
    net = nn.Sequential(*parts).double()
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(
                torch.randn(p.shape, generator=rng, dtype=p.dtype) * (1.5 if p.dim() > 1 else 0.3)
            )
    return net


def given(net: nn.Module, n: int = 120) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        return x, net(x).argmax(1)


def hidden(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What its ReLUs give."""
    found = []
    with torch.no_grad():
        for part in net.eval():
            x = part(x)
            if isinstance(part, nn.ReLU):
                found.append(x)
    return found


def learned(feature: Feature, net: nn.Module, n: int = 120) -> tuple[State, Tensor, Tensor]:
    x, y = given(net, n)
    return learned_of(feature, net, x, y), x, y


def fresh(n: int = 9) -> Tensor:
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


# --- formulas


def test_the_mahalanobis_distance_is_its_formula() -> None:
    from sklearn.covariance import shrunk_covariance

    net, feature = tiny(), MahalanobisDistance(2, 0.2)
    state, x, y = learned(feature, net)
    got = features_of(feature, net, fresh(), state)
    for layer, (clean, asked) in enumerate(zip(hidden(net, x), hidden(net, fresh()), strict=True)):
        means = {int(c): clean[y == c].mean(0).numpy() for c in y.unique()}
        away = np.stack([a.numpy() - means[int(c)] for a, c in zip(clean, y, strict=True)])
        inverse = np.linalg.inv(shrunk_covariance(away.T @ away / len(away), 0.2))
        for i, a in enumerate(asked.numpy()):
            wanted = min((a - m) @ inverse @ (a - m) for m in means.values())
            assert float(got[i, layer]) == pytest.approx(wanted, rel=1e-8)
    with pytest.raises(InputError, match="shrinkage=0"):
        MahalanobisDistance(2, 0)
    with pytest.raises(InputError, match=r"layers=\(\)"):
        MahalanobisDistance(())


def test_the_local_dimension_is_its_formula_and_leaves_itself_out() -> None:
    net, feature = tiny(), LocalDimension(2, 5, 60)
    state, x, _ = learned(feature, net)
    got = features_of(feature, net, fresh(), state)
    for layer, asked in enumerate(hidden(net, fresh())):
        points = state[f"points{layer}"]
        assert points.shape[0] == 60
        for i, a in enumerate(asked):
            r = sorted(math.dist(a.tolist(), p.tolist()) for p in points)[:5]
            wanted = -1 / (sum(math.log(one / r[-1]) for one in r) / 5)
            assert float(got[i, layer]) == pytest.approx(wanted, rel=1e-6)
    # An input of the reference: as if it were not there.
    first = state["points0"][0]
    which = int((hidden(net, x)[0] - first).abs().sum(1).argmin())
    r = sorted(math.dist(first.tolist(), p.tolist()) for p in state["points0"][1:])[:5]
    wanted = -1 / (sum(math.log(one / r[-1]) for one in r) / 5)
    own = features_of(feature, net, x[which : which + 1], state)[0, 0]
    assert float(own) == pytest.approx(wanted, rel=1e-6)
    # Even points of a plane have two dimensions, those of a line one.
    for size in (1, 2, 3):
        cloud = torch.rand(4000, size, generator=torch.Generator().manual_seed(1)).double()

        found = dimension(cloud[:200] * 0.5 + 0.25, cloud, 50).mean()
        assert float(found) == pytest.approx(size, rel=0.1)
    with pytest.raises(InputError, match="neighbours=20, reference=20"):
        LocalDimension(2, 20, 20)


def test_the_density_is_that_of_the_predicted_class() -> None:
    from sklearn.neighbors import KernelDensity

    net, feature = tiny(), ClassDensity(bandwidth=0.7)
    state, x, y = learned(feature, net)
    got = features_of(feature, net, fresh(), state)
    clean, asked = hidden(net, x)[-1], hidden(net, fresh())[-1]
    unit = 5 * math.log(0.7) + 2.5 * math.log(2 * math.pi)  # theirs is a density, ours is not
    with torch.no_grad():
        seen = net(fresh()).argmax(1)
    for i, c in enumerate(seen):
        peer = KernelDensity(bandwidth=0.7).fit(clean[y == c].numpy())
        wanted = -(peer.score_samples(asked[i : i + 1].numpy())[0] + unit)
        assert float(got[i, 0]) == pytest.approx(wanted, rel=1e-8)


def test_the_bandwidth_is_the_likeliest_for_what_is_left_out() -> None:
    from sklearn.neighbors import KernelDensity

    net = tiny()
    state, x, y = learned(ClassDensity(), net, 60)
    clean = hidden(net, x)[-1]
    clean = clean[:, clean.std(0) > 0]  # a dead unit is no dimension
    large = [c for c in y.unique() if int((y == c).sum()) > 2]
    pairs = [
        math.dist(a.tolist(), b.tolist()) for c in large for i, a in enumerate(clean[y == c])
        for j, b in enumerate(clean[y == c]) if i != j
    ]  # fmt: skip
    middle = sorted(pairs)[(len(pairs) - 1) // 2]
    worth = []
    for h in SCALES * middle:
        scores = []
        for c in large:
            group = clean[y == c].numpy()
            for i in range(len(group)):
                rest = KernelDensity(bandwidth=float(h)).fit(np.delete(group, i, 0))
                scores.append(rest.score_samples(group[i : i + 1])[0])
        worth.append(float(np.mean(scores)))
    best = float(SCALES[int(np.argmax(worth))]) * middle
    assert float(state["bandwidth"]) == pytest.approx(best, rel=1e-6)


def test_the_uncertainty_is_the_variance_over_masks() -> None:
    for dropout in (True, False):
        net, feature = tiny(dropout), Uncertainty(4, 0.5)
        x = fresh(3)
        got = features_of(feature, net, x, {}, seed=2)
        draw = Rng(2).split(23).at(torch.arange(3))
        rate, after = (0.3, 1) if dropout else (0.5, 3)  # the dropout, or the last hidden layer
        parts = [part for part in net if not isinstance(part, nn.Dropout)]
        ps = []
        for turn in range(4):
            at = torch.full((3,), turn)
            a = x
            for i, part in enumerate(parts):
                a = part(a)
                if i == after:
                    kept = (
                        draw.rng.split(31).at(draw.ids, at).bernoulli(tuple(a.shape[1:]), 1 - rate)
                    )
                    a = a * kept / (1 - rate)
            ps.append(a.softmax(1).detach().numpy())
        wanted = np.stack(ps).var(0).mean(1)
        np.testing.assert_allclose(got[:, 0].numpy(), wanted, rtol=1e-9)
        assert (wanted > 0).all()
        alone = features_of(feature, net, x[1:2], {}, seed=2, ids=torch.tensor([1]))
        torch.testing.assert_close(alone, got[1:2])
    assert not any(m._forward_hooks for m in net.modules())
    maps = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(12, 2))
    whole = Uncertainty(2)
    index = torch.arange(2)
    oracle = Oracle(wrap(maps), 2, Access.INTERNALS)
    with oracle.session():
        assert whole.places(oracle, torch.rand(2, 1, 4, 4)) == {"1": (0.5, True)}
        rows = Rows(index, index, torch.rand(2, 1, 4, 4), index)
        assert whole(oracle, rows, {}, Rng(0).at(index)).shape == (2, 1)
    with pytest.raises(InputError, match="passes=1"):
        Uncertainty(1)


def test_codes_are_levels_between_clean_quantiles() -> None:
    net, feature = tiny(), Codes(2, 4)
    state, x, _ = learned(feature, net)
    got = features_of(feature, net, fresh(), state)
    clean, asked = (torch.cat(hidden(net, at), 1).numpy() for at in (x, fresh()))
    for i, row in enumerate(asked):
        for j, a in enumerate(row):
            cuts = [np.quantile(clean[:, j], q) for q in (0.25, 0.5, 0.75)]
            assert int(got[i, j]) == sum(a > cut for cut in cuts)
    assert got.unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="levels=1"):
        Codes(2, 1)


# --- gradients


def at(
    feature: Feature, net: nn.Module, state: State, x: Tensor, grad: bool
) -> tuple[Tensor, Tensor]:
    """The sum of a feature of each input, and its gradient."""
    index = torch.arange(len(x))
    oracle = Oracle(wrap(net), len(x), Access.INTERNALS)
    rows = Rows(index, index, x, torch.zeros_like(index))
    with oracle.session(), torch.no_grad():
        rows = replace(rows, y=net(x).argmax(1))
        draw = Rng(0).split(23).at(index)

        def value(leaf: Tensor) -> Tensor:
            return feature(oracle, rows.at(leaf), state, draw, create_graph=grad).flatten(1).sum(1)

        return oracle.value_and_grad(value, x, rows) if grad else (value(x), x)


@pytest.mark.parametrize(
    "feature",
    [MahalanobisDistance(2), LocalDimension(2, 5, 60), ClassDensity(), Uncertainty(5),
     DensityAndUncertainty(ClassDensity(), Uncertainty(3)), Layer("3")],
    ids=lambda f: type(f).__name__,
)  # fmt: skip
def test_a_gradient_is_that_of_finite_differences(feature: Feature) -> None:
    net = tiny()
    state, _, _ = learned(feature, net)
    x, h = fresh(4), 1e-6
    value, grad = at(feature, net, state, x, True)
    torch.testing.assert_close(value, at(feature, net, state, x, False)[0].double())
    for j in range(8):
        step = torch.zeros(8, dtype=x.dtype)
        step[j] = h
        up, down = (at(feature, net, state, x + sign * step, False)[0] for sign in (1, -1))
        torch.testing.assert_close(grad[:, j], (up - down) / (2 * h), rtol=1e-4, atol=1e-6)
    assert float(grad.abs().sum()) > 0


def test_codes_pass_the_gradient_of_a_smooth_staircase() -> None:
    net, feature = tiny(), Codes(("3",), 3)
    state, _, _ = learned(feature, net)
    x = fresh(4)
    value, grad = at(feature, net, state, x, True)
    assert torch.equal(value, at(feature, net, state, x, False)[0])
    leaf = x.clone().requires_grad_()
    a = net[:4](leaf)
    stairs = sum(torch.sigmoid((a - cut) / state["spread"]) for cut in state["cuts"])
    (wanted,) = torch.autograd.grad(stairs.sum(), leaf)
    torch.testing.assert_close(grad, wanted)
    assert float(grad.abs().sum()) > 0


# --- layers


def test_layers_are_found_by_name_by_number_and_without_modules() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    x = fresh(2)
    for net, asked, wanted in (
        (tiny(), 1, ("3",)), (tiny(), 9, ("1", "3")), (tiny(), ("0", "3"), ("0", "3")),
        (Functional().double(), 2, ("a",)),
    ):  # fmt: skip
        oracle = Oracle(wrap(net), 2, Access.INTERNALS)
        with oracle.session():
            assert chosen(oracle, x, asked) == wanted
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    oracle, index = Oracle(wrap(net), 3, Access.INTERNALS), torch.arange(3)
    rows = Rows(index, index, torch.rand(3, 1, 4, 4), index)
    with oracle.session():
        (pooled,), (flat,) = (activations(oracle, rows, 1, pooled=p) for p in (True, False))
    assert pooled.shape == (3, 2) and flat.shape == (3, 8)
    torch.testing.assert_close(pooled, flat.view(3, 2, 4).mean(2))
    assert int(oracle.meter.forwards.sum()) == 6


def test_a_model_without_layers_is_refused_by_name() -> None:
    net = tiny()
    x, y = given(net)
    several = foible.models.ensemble([net, tiny(True)])
    with pytest.raises((KindError, foible.FoibleError), match=r"layers|INTERNALS"):
        Detector("m", MahalanobisDistance(), Largest()).fit(several, (x, y))


# --- whole detectors


def test_noise_is_as_long_as_the_adversarial_changes() -> None:
    good = torch.full((50, 20), 0.5)
    rng = torch.Generator().manual_seed(0)
    bad = good[:8] + 0.07 * torch.randn(8, 20, generator=rng).sign()
    added = noisy(good, bad, (0, 1), 3) - good
    torch.testing.assert_close(added.norm(dim=1), torch.full((50,), 0.07 * 20**0.5))
    assert float(noisy(good, bad * 50, (0, 1), 3).max()) == 1


@pytest.mark.parametrize(
    "made",
    [foible.detect.mahalanobis(2), foible.detect.mahalanobis(2, supervised=False),
     foible.detect.local_dimension(2, 10, 60), foible.detect.safetynet(2, 4),
     foible.detect.kde_uncertainty(passes=4)],
    ids=lambda d: f"{d.name}-{type(d.head).__name__}",
)  # fmt: skip
def test_it_is_the_same_from_a_file_and_falls_to_what_knows_it(
    made: Detector, tmp_path: Path
) -> None:
    net = tiny()
    x, y = given(net, 150)
    threat = foible.Linf(0.3)
    watch = made.fit(net, (x, y), attack=foible.attacks.pgd(threat, 10))
    watch.save(tmp_path / "watch")
    again = load(tmp_path / "watch")
    assert again.detector == made
    assert torch.equal(again.score(net, x, seed=3), watch.score(net, x, seed=3))
    level = watch.threshold(0.05).value
    asked, labels = x[:60], y[:60]
    plain = foible.attacks.pgd(threat, 20)(net, asked, labels)
    fooled = plain.success & plain.attacked
    seen = watch.score(net, plain.x) > level
    found = adaptive(watch, threat, steps=40)(net, asked, labels)
    unseen = int((found.success & found.attacked).sum())
    assert unseen >= int((fooled & ~seen).sum())
    assert unseen >= 0.8 * int(fooled.sum()) > 0


def test_the_regression_weighs_what_tells_adversarials_apart() -> None:
    """On tiny nets in float64 the two of T4 are right ways round, each alone."""
    net = tiny()
    x, y = given(net, 200)
    result = foible.attacks.pgd(foible.Linf(0.4), 20)(net, x, y)
    bad = result.x[result.success]
    feature = DensityAndUncertainty(ClassDensity(), Uncertainty(20))
    watch = Detector("t4", feature, Logistic()).fit(net, (x, y), adversarial=bad)
    known = part_of(watch.state, "feature")
    good, worse = (features_of(feature, net, part, known) for part in (x, bad))
    assert float(worse[:, 0].median()) > float(good[:, 0].median())
