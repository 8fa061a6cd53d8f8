"""Randomized smoothing: the exact interval, the radius on a plane, and no attack within it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from conftest import SmallNet, filled, linear, rand
from test_no_trace import everything_about, same
from torch import Tensor, nn

import foible
from foible import attacks, defend, explain
from foible.core.errors import InputError, ModelError
from foible.core.progress import listening
from foible.core.randomness import Rng
from foible.models import wrap
from foible.parts.statistics import binomial_lower, binomial_tail

SIGMA = 0.3


def plane(weight: Tensor, bias: float) -> nn.Module:
    """Two classes; class 1 where weight . x + bias > 0."""
    return linear(torch.stack([torch.zeros_like(weight), weight]), torch.tensor([0.0, bias]))


def tail_by_hand(hits: int, n: int, p: float) -> float:
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits, n + 1))


# --- the interval


@pytest.mark.parametrize("n", [1, 7, 60])
def test_the_tail_is_the_sum(n: int) -> None:
    for p in (0.0, 1e-3, 0.2, 0.5, 0.93, 1.0):
        hits = torch.arange(n + 1)
        got = binomial_tail(hits, n, torch.full((n + 1,), p, dtype=torch.float64))
        want = torch.tensor([tail_by_hand(int(k), n, p) for k in hits], dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)


def test_the_bound_is_scipys_and_large_counts_are_no_trouble() -> None:
    from scipy.stats import beta

    for n in (10, 1000, 100_000):
        hits = torch.tensor([0, 1, n // 2, n - n // 5, n - 1, n])
        got = binomial_lower(hits, n, 0.001)
        want = torch.from_numpy(beta.ppf(0.001, hits.numpy(), n - hits.numpy() + 1)).nan_to_num(0.0)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        assert all(a < b for a, b in pairwise(got.tolist()))


@pytest.mark.parametrize("p", [0.03, 0.5, 0.8, 0.97])
def test_the_interval_covers_as_often_as_it_says(p: float) -> None:
    """Simulated: the bound is above the truth in at most alpha of the trials, and often close."""
    n, trials, alpha = 200, 20_000, 0.05
    chance = torch.full((trials,), p, dtype=torch.float64)
    hits = torch.binomial(
        torch.full_like(chance, n), chance, generator=torch.Generator().manual_seed(1)
    )
    over = float((binomial_lower(hits.long(), n, alpha) > p).double().mean())
    slack = 4 * math.sqrt(alpha * (1 - alpha) / trials)
    assert over <= alpha + slack
    # Exact, not merely safe: one hit less in the bound would be over far more often.
    assert (
        float((binomial_lower((hits.long() + 3).clamp_max(n), n, alpha) > p).double().mean()) > over
    )


# --- the certificate


def test_on_a_plane_the_radius_is_the_distance() -> None:
    """The probability under noise is Phi(distance / sigma), so the radius of it is the distance."""
    weight = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    x = torch.tensor(
        [[0.5, 0.2, 0.1], [0.2, 0.6, 0.3], [0.3, 0.2, 0.9], [0.4, 0.225, 0.5]]
    ).double()
    net = plane(weight, -0.3)
    distance = (x @ weight - 0.3) / 5
    model = defend.randomized_smoothing(net, SIGMA)
    found = model.certify(x, n0=100, n=20_000)
    want = (distance > 0).long()
    want[3] = -1  # on the plane itself nothing is certain
    assert found.labels.tolist() == want.tolist() and float(found.radii[3]) == 0.0
    ratio = found.radii[:3] / distance[:3].abs()
    assert bool((ratio <= 1).all()) and float(ratio.min()) > 0.75
    more = model.certify(x[:3], n=200_000).radii / distance[:3].abs()
    assert float(more.min()) > float(ratio.min()) and bool((more <= 1).all())
    assert model.predict(x, 20_000).tolist() == want.tolist()
    assert found.accuracy((distance > 0).long()) == 0.75
    assert found.accuracy((distance > 0).long(), float(found.radii.max())) == 0.0


def test_the_radius_by_hand() -> None:
    """All of n draws agree: alpha^(1/n) is the bound."""
    net = plane(torch.tensor([1.0]), 0.0)
    found = defend.randomized_smoothing(net, 0.1).certify(torch.tensor([[5.0]]), n=500, alpha=0.01)
    bound = torch.tensor(0.01 ** (1 / 500), dtype=torch.float64)
    assert float(found.radii[0]) == pytest.approx(0.1 * float(torch.special.ndtri(bound)), rel=1e-9)


def test_it_is_cohens_algorithm_written_slowly() -> None:
    net, x = filled(SmallNet(4), 5, 4.0).eval(), rand(4, 1, 6, 6, seed=1)
    n0, n, alpha, sigma = 30, 250, 0.05, 1.0
    found = defend.randomized_smoothing(net, sigma).certify(x, n0, n, alpha, seed=3)
    assert len(set(found.radii.tolist())) == 4  # not all draws agree, or any draws would do

    def count(image: Tensor, place: int, stream: int, draws: int) -> list[int]:
        counts, piece = [0] * 4, min(100, draws)
        for step, start in enumerate(range(0, draws, piece)):
            size = min(piece, draws - start)
            draw = Rng(3).split(stream).at(torch.tensor([place]), step)
            for noise in draw.normal((size, 1, 6, 6))[0]:
                counts[int(net(image[None] + sigma * noise[None]).argmax())] += 1
        return counts

    with torch.no_grad():
        for place, image in enumerate(x):
            first = count(image, place, 0, n0)
            label = first.index(max(first))
            hits, low, high = count(image, place, 1, n)[label], 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (
                    (middle, high) if tail_by_hand(hits, n, middle) < alpha else (low, middle)
                )
            assert int(found.labels[place]) == (label if low > 0.5 else -1)
            radius = sigma * float(torch.special.ndtri(torch.tensor(low, dtype=torch.float64)))
            assert float(found.radii[place]) == pytest.approx(max(0.0, radius), abs=1e-9)


def test_a_prediction_needs_a_two_sided_test_of_the_two_likeliest(monkeypatch) -> None:
    from scipy.stats import binomtest

    counts = torch.tensor([[16, 4, 0], [17, 3, 0], [3, 0, 17], [12, 4, 4], [40, 20, 30]])
    model = defend.randomized_smoothing(nn.Linear(2, 3), SIGMA)
    monkeypatch.setattr(model, "_counts", lambda *_: iter([(torch.arange(5), counts)]))
    for alpha in (0.2, 0.05, 0.01, 0.005):
        want = []
        for row in counts:
            (a, b), (label, _) = (part.tolist() for part in row.topk(2))
            want.append(label if binomtest(a, a + b, 0.5).pvalue <= alpha else -1)
        assert model.predict(torch.zeros(5, 2), alpha=alpha).tolist() == want
    assert -1 in want and max(want) >= 0


def test_noise_belongs_to_the_sample_and_no_trace_is_left() -> None:
    net, x = filled(SmallNet(4), 5, 2.0), rand(7, 1, 6, 6, seed=1)
    before = everything_about(net)
    model, ticks = defend.randomized_smoothing(net, 1.0), []
    with listening(ticks.append):
        whole = model.certify(x, 20, 150, seed=2)
    assert sum(ticks) == 7
    ids = torch.tensor([5, 2])
    part = model.certify(x[ids], 20, 150, seed=2, ids=ids)
    assert torch.equal(part.labels, whole.labels[ids]) and torch.equal(part.radii, whole.radii[ids])
    model.held._chunks = {k: 40 for k in model.held._chunks}
    again = model.certify(x, 20, 150, seed=2)
    assert torch.equal(again.radii, whole.radii) and torch.equal(again.labels, whole.labels)
    assert not torch.equal(model.certify(x, 20, 150, seed=3).radii, whole.radii)
    assert torch.equal(model.predict(x, 150, seed=2), model.predict(x, 150, seed=2))
    after = everything_about(net)
    assert [key for key in before if not same(before[key], after[key])] == []
    assert len(model.certify(x[:0]).labels) == 0 and len(model.predict(x[:0])) == 0


def test_it_is_a_model_whose_looks_are_counted() -> None:
    net, x = filled(SmallNet(4), 5, 2.0).eval(), rand(4, 1, 6, 6, seed=1)
    model = defend.randomized_smoothing(wrap(net, (-1, 1)), SIGMA, draws=5)
    assert model.bounds == (-1.0, 1.0) and model.looks == 5 and model.defence == ""
    y = model(x).argmax(1)
    found = attacks.eot(attacks.pgd(foible.L2(0.5), 3), 1)(model, x, y, seed=1)
    right = found.attacked
    assert found.forwards[right].tolist() == [30] * int(right.sum())  # clean, 3 + 1, verdict
    assert found.backwards[right].tolist() == [15] * int(right.sum())
    assert explain.saliency()(model, x, y).abs().sum() > 0
    with model.session(4), torch.no_grad():
        got = model(x).exp()
    with model.session(4), torch.no_grad():
        want = net(x.repeat(5, 1, 1, 1) + SIGMA * torch.randn(20, 1, 6, 6)).softmax(1)
    torch.testing.assert_close(got, want.view(5, 4, 4).mean(0))


def test_no_attack_within_the_radius_moves_the_label() -> None:
    net, x = filled(SmallNet(4), 5, 4.0).eval(), rand(40, 1, 6, 6, seed=1)
    model = defend.randomized_smoothing(net, SIGMA, draws=20)
    sure = model.certify(x, n=2000)
    some = sure.radii > 0.02
    assert int(some.sum()) >= 20
    x, labels, radii = x[some], sure.labels[some], sure.radii[some]
    attack = attacks.eot(attacks.pgd(foible.L2(radii), 10, objective="margin"), 1)
    x_adv = attack(model, x, labels).x
    far = (x_adv - x).flatten(1).norm(dim=1)
    assert bool((far <= radii * 1.001).all()) and float((far / radii).median()) > 0.5
    there = model.predict(x_adv, 2000, seed=9)
    assert bool(((there == labels) | (there == -1)).all())
    # The same attack at ten times the radius does move it.
    wide = attacks.eot(attacks.pgd(foible.L2(10 * radii), 10, objective="margin"), 1)
    moved = model.predict(wide(model, x, labels).x, 2000, seed=9)
    assert ((moved != labels) & (moved != -1)).double().mean() > 0.3


def test_training_under_noise_is_training_under_that_noise() -> None:
    x, y = rand(64, 6, seed=1), torch.arange(64) % 2
    loss = defend.with_noise(0.5)
    batch = defend.Batch(wrap(nn.Linear(6, 2)), x, y, torch.arange(64) + 100, seed=4)
    noise = batch.draw(23).normal((6,))
    want = nn.functional.cross_entropy(batch.net(x + 0.5 * noise), y, reduction="none")
    torch.testing.assert_close(loss(batch), want)
    assert not torch.equal(loss(batch), loss(defend.Batch(batch.model, x, y, batch.ids, seed=5)))
    with pytest.raises(InputError, match="sigma"):
        defend.with_noise(0.0)


def test_a_model_that_gives_nan_is_certified_of_nothing() -> None:
    x = torch.tensor([[0.2], [0.9]])
    model = defend.randomized_smoothing(Rooted(), SIGMA)
    for call in (model.certify, model.predict):
        with pytest.raises(ModelError, match="NaN under noise"):
            call(x)


class Rooted(nn.Module):
    """Fine in the bounds, and NaN below them, where only noise leads."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.sqrt(), 1 - x], 1)


def test_bad_input() -> None:
    model = defend.randomized_smoothing(nn.Linear(3, 2), SIGMA)
    x = rand(2, 3, seed=0)
    for call in (
        lambda: defend.randomized_smoothing(nn.Linear(3, 2), 0.0),
        lambda: defend.randomized_smoothing(nn.Linear(3, 2), 0.1, 0),
        lambda: model.certify(x, n=0),
        lambda: model.certify(x, n0=0),
        lambda: model.certify(x, alpha=0.0),
        lambda: model.predict(x, alpha=1.0),
        lambda: model.predict(x * float("nan")),
    ):
        with pytest.raises(InputError):
            call()
