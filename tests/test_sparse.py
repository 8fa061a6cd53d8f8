"""sigma-zero and JSMA: the closed-form bar, their papers' steps, what they cost and refuse."""

from __future__ import annotations

from dataclasses import replace

import minimum
import pytest
import torch
from conftest import Counter, filled, predicted, rand, randn
from replicas import fast_minimum as slow
from test_fast_minimum import Recorder, smooth
from torch import nn

from foible import attacks, wrap, zoo
from foible.core.errors import InputError, KindError
from foible.core.problem import View
from foible.core.rows import Rows
from foible.core.search import Evaluation
from foible.parts.searches.jsma import Weighted, _best_pair
from foible.parts.searches.pruning import Kept, prune
from foible.parts.searches.sigma_zero import SigmaZero
from foible.parts.threats import L0, L2, Linf

MAKES = [attacks.sigma_zero, attacks.jsma]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_within_one_feature_of_the_optimum(make, classes: int, wide: bool) -> None:
    found = minimum.measure(make, "l0", classes, wide, False)
    assert found.success == 1.0 and found.extra.max() <= 1


def test_jsma_tries_a_second_time_where_all_other_classes_mislead() -> None:
    """Here one sample runs out of features while the sum of nine logits is pushed down."""
    found = minimum.measure(attacks.jsma, "l0", 10, False, False, seed=4)
    assert found.success == 1.0 and found.extra.max() <= 1


@pytest.mark.parametrize("make", MAKES)
def test_targets_are_reached(make) -> None:
    """The optimum is hard to know; that of the label alone is a bound from below."""
    case = minimum.small_case(4, True)
    result = make(L0())(case.model, case.x, case.y, target=case.target)
    assert result.success.float().mean() >= 0.9
    assert torch.equal(result.label[result.success], case.target[result.success])
    assert float(result.distance.median()) <= 2


def test_sigma_zero_steps_as_its_paper() -> None:
    net, x = smooth(), rand(4, 10, seed=2, dtype=torch.float64)
    y = predicted(net, x)
    target, search = (y + 1) % 4, SigmaZero(20, 0.01, 0.2, 0.1, 0.8, prune=0)
    model = Recorder(wrap(net))
    replace(attacks.sigma_zero(L0()), search=search)(model, x, y, target=target)
    for i, t in enumerate(target.tolist()):
        points = slow.sigma_zero(net, x[i], t, 20, (0.01, 0.2, 0.1, 0.8))
        found = torch.stack([seen[i] for seen in model.seen])
        torch.testing.assert_close(found, torch.stack(points), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("theta", [1.0, 0.25])
def test_jsma_changes_the_pairs_of_its_paper(theta: float) -> None:
    net, x = smooth(2), rand(6, 10, seed=3, dtype=torch.float64)
    y = predicted(net, x)
    target, walked = (y + 1) % 4, 0
    for i, t in enumerate(target.tolist()):
        model = Recorder(wrap(net))
        attacks.jsma(L0(), 5, theta)(model, x[i : i + 1], y[i : i + 1], target=target[i : i + 1])
        points = slow.jsma(net, x[i], t, 5, theta)
        for found, point in zip(model.seen, points, strict=False):
            torch.testing.assert_close(found[0], point, rtol=0, atol=1e-12)
            torch.testing.assert_close(found[1], point, rtol=0, atol=1e-12)
        walked += min(len(model.seen), len(points))
    assert walked >= 12


def test_the_best_pair_is_the_best_of_all() -> None:
    gain, loss = randn(20, 9, seed=1), randn(20, 9, seed=2)
    gain[0], loss[0] = -1.0, 1.0  # no pair raises the target
    gain[0, 4] = -0.5
    usable = torch.ones(20, 9, dtype=torch.bool)
    usable[:, 3] = False
    p, q = _best_pair(gain, loss, usable, 9)
    assert p[0] == 4 == q[0]
    for row in range(1, 20):
        values = {
            (i, j): -float((gain[row, i] + gain[row, j]) * (loss[row, i] + loss[row, j]))
            for i in range(9)
            for j in range(9)
            if i != j and 3 not in (i, j)
            if gain[row, i] + gain[row, j] > 0 > loss[row, i] + loss[row, j]
        }
        if not values:
            assert p[row] == q[row] == torch.where(usable, gain - loss, -9.0)[row].argmax()
            continue
        best = max(values.values())
        assert values[(int(p[row]), int(q[row]))] == pytest.approx(best)
    # Among the two best features only their pair is left.
    p, q = _best_pair(gain, loss, usable, 2)
    worth = torch.where(usable, gain - loss, float("-inf")).topk(2, dim=1).indices
    pairs = torch.stack([p, q], 1).sort(1).values
    both = (p != q).nonzero().squeeze(1)
    assert len(both) > 10 and torch.equal(pairs[both], worth.sort(1).values[both])


def test_pruning_leaves_what_is_needed() -> None:
    """Two of six changed features carry a linear score; one round at a time takes the rest."""
    weight = torch.tensor([3.0, 0.1, 2.0, 0.05, -0.4, 0.2, 0.0, 0.3])
    rows = Rows(torch.arange(2), torch.arange(2), torch.zeros(2, 8), torch.zeros(2).long())
    threat, asked = L0().inside((0.0, 1.0)), []

    def evaluate(z, given=None, need="labels", classes=None):
        asked.append((len(z), need))
        value = z @ weight - 4.5
        return Evaluation(value, value > 0, None, weight.expand_as(z))

    start = torch.zeros(2, 8)
    start[0, :6] = 1.0
    start[1, 7] = 1.0  # never worked: not touched
    kept = Kept(start, torch.tensor([6.0, float("inf")]), torch.zeros(2, dtype=torch.int64))
    sizes = []
    for _ in range(5):
        kept = prune(threat, rows, evaluate, kept)
        sizes.append(int(kept.many[0]))
        assert sizes[-1] == int((kept.z[0] != 0).sum())
    assert sizes[-1] == 2 and sorted(sizes, reverse=True) == sizes
    assert kept.z[0].nonzero().squeeze(1).tolist() == [0, 2]
    assert torch.equal(kept.z[1], start[1]) and kept.many[1] == float("inf")
    assert asked[:2] == [(1, "grad"), (12, "scores")] and kept.tries[0] > 0


def test_weighted_scores() -> None:
    scores, weights = randn(3, 4, seed=1), randn(3, 4, seed=2)
    rows = Rows(torch.arange(3), torch.arange(3), torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    view = View(None, rows, rows.x, scores=scores)  # type: ignore[arg-type]
    expected = scores.scatter(1, rows.y[:, None], -1e9).amax(1) - scores[range(3), range(3)]
    torch.testing.assert_close(Weighted()(view), expected)
    rows.extra["weights"] = weights
    torch.testing.assert_close(Weighted()(view), (scores * weights).sum(1))


@pytest.mark.parametrize("make", MAKES)
def test_what_is_paid_is_counted_and_what_is_found_holds(make, case) -> None:
    held, x, y = case
    model = Counter(held)
    result = make(L0(), 30)(model, x, y)
    assert model.forwards == result.forwards.sum() and model.backwards == result.backwards.sum()
    assert result.success.all() and (result.x >= 0).all() and (result.x <= 1).all()
    assert torch.equal(result.distance, (result.x != x).sum(1).double())
    pairs = 2 if make is attacks.jsma else 1
    assert int(result.forwards.max()) <= 4 + pairs * 30 + 10 * 12
    # With a budget it stops inside it, whoever shares the batch.
    attack = make(L0(1), 30)
    whole, parts = attack(held, x, y), attack(Counter(held, at_most=4), x, y)
    assert torch.equal(whole.success, parts.success) and whole.stop == "success"
    assert torch.equal(whole.success, result.distance <= 1)
    assert whole.forwards.sum() < result.forwards.sum()


def test_on_nets_it_beats_what_foolbox_finds() -> None:
    """First 32 right images. Foolbox 3.3.4's L0 FMN at 300 steps: medians 7 and 25 features."""
    x, y = zoo.sample()
    for name, most, left in (("standard", 6, 0.04), ("hardened", 19, 0.4)):
        net = zoo.load(name)
        right = (predicted(net, x[:60]) == y[:60]).nonzero().squeeze(1)[:32]
        result = attacks.sigma_zero(L0(), 100)(net, x[right], y[right])
        assert result.success.all() and float(result.distance.median()) <= most
        assert float((result.distance > 20).double().mean()) <= left


@pytest.mark.parametrize("make", MAKES)
def test_odd_models(make) -> None:
    one = filled(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), 4, 3.0)
    x = rand(5, 3, 2, 2, seed=6).to(memory_format=torch.channels_last)
    x[0] = 0.0
    x[1] = 1.0
    held = wrap(one, outputs="logit")
    result = make(L0(), 60)(held, x, predicted(held, x))
    assert result.success.all() and torch.isfinite(result.x).all()
    many = wrap(filled(nn.Linear(9, 1000), 7, 2.0), bounds=(float("-inf"), float("inf")))
    x = rand(1, 9, seed=8)
    result = make(L0(), 60)(many, x, predicted(many, x))
    assert result.success.all() and result.distance[0] <= 2
    flat = nn.Linear(9, 3)  # no gradient, no way
    with torch.no_grad():
        flat.weight.zero_()
        flat.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    result = make(L0(), 30)(flat, x, torch.zeros(1, dtype=torch.int64))
    assert not result.success.any() and torch.equal(result.x, x)


def test_jsma_keeps_to_its_share_and_its_theta(case) -> None:
    held, x, y = case
    short = attacks.jsma(L0(), 30, 0.05, 0.2)(held, x, y)
    assert (short.distance[short.success] <= 2).all() and not short.success.all()
    free = attacks.jsma(L0(), 30)(held, x, y)
    assert free.success.all() and (short.forwards < free.forwards).any()


def test_what_is_refused() -> None:
    for make, wrong in ((attacks.jsma, Linf()), (attacks.sigma_zero, L2())):
        with pytest.raises(KindError, match=f"{make.__name__} works in L0 and got"):
            make(wrong)
    with pytest.raises(InputError, match=r"theta=0: a share"):
        attacks.jsma(L0(), theta=0)
    with pytest.raises(InputError, match=r"gamma=1.5: a share"):
        attacks.jsma(L0(), gamma=1.5)
