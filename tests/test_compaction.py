"""Seeds, chunks and neighbours change nothing; finished rows leave and waiting ones enter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, filled, linear_case, predicted, softened
from suites import ATTACKS

from foible import attacks
from foible.attacks import bim, curve, pgd
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.solver import solve
from foible.models import wrap
from foible.parts.objectives import CrossEntropy, Margin
from foible.parts.searches import Ascent
from foible.parts.threats import L1, L2, Linf

# --- determinism


@pytest.mark.parametrize("name", ATTACKS)
def test_same_seed_same_bits_other_seed_other_bits(name: str, case) -> None:
    model, x, y = case
    one, two = (ATTACKS[name](model, x, y, seed=7) for _ in range(2))
    for field in ("x", "success", "distance", "forwards", "backwards", "label"):
        assert torch.equal(getattr(one, field), getattr(two, field)), field
    random_ones = ("pgd", "pgd success", "restarts success", "random", "smoothgrad", "lime")
    if name in random_ones:
        assert not torch.equal(ATTACKS[name](model, x, y, seed=8).x, one.x)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_chunk_changes_nothing(name: str, case) -> None:
    model, x, y = case
    results = [ATTACKS[name](Counter(model, at_most=c), x, y) for c in (1, 3, 1000)]
    for other in results[1:]:
        assert torch.equal(other.success, results[0].success)
        assert torch.equal(other.forwards, results[0].forwards)
        torch.testing.assert_close(other.x, results[0].x, rtol=0, atol=1e-9)
    assert results[0].success.any() or name == "random"


@pytest.mark.parametrize("name", ["pgd", "restarts success", "random", "smoothgrad", "lime"])
def test_a_row_does_not_know_who_shares_its_batch(name: str, case) -> None:
    model, x, y = case
    together = ATTACKS[name](model, x, y)
    for rows in ([5], [20, 5], [3, 5, 11]):
        which = torch.tensor(rows)
        alone = ATTACKS[name](model, x[which], y[which], ids=which)
        torch.testing.assert_close(alone.x, together.x[which], rtol=0, atol=1e-9)
        assert torch.equal(alone.success, together.success[which])


def test_draws_depend_on_seed_stream_row_and_step_alone() -> None:
    ids = torch.tensor([4, 9, 2])
    base = Rng(3).at(ids, 5).normal((7,))
    assert torch.equal(Rng(3).at(ids[[2, 0]], 5).normal((7,)), base[[2, 0]])
    assert torch.equal(Rng(3).at(ids, 5).take(torch.tensor([1])).normal((7,)), base[[1]])
    steps = torch.tensor([1, 5, 0])
    assert torch.equal(Rng(3).at(ids, steps).normal((7,))[1], base[1])
    others = [
        Rng(4).at(ids, 5), Rng(3).at(ids, 6), Rng(3).split(0).at(ids, 5), Rng(3).at(ids + 1, 5),
        Rng(3).at(ids, 5).split(1), Rng(-3).at(ids, 5),
    ]  # fmt: skip
    drawn = [base, *(d.normal((7,)) for d in others)]
    assert len({tuple(row.tolist()) for d in drawn for row in d}) == 3 * len(drawn)


def test_draws_have_the_distribution_they_name() -> None:
    draw = Rng(0).at(torch.arange(200))
    normal, uniform = draw.normal((500,)), draw.uniform((500,))
    assert abs(float(normal.mean())) < 0.02 and abs(float(normal.std()) - 1) < 0.02
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    assert abs(float(draw.bernoulli((500,), 0.3).double().mean()) - 0.3) < 0.01
    correlation = np.corrcoef(normal[:, 0].numpy(), normal[:, 1].numpy())[0, 1]
    assert abs(correlation) < 0.25
    assert torch.equal(draw.normal((500,)), normal)


# --- compaction


@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize("make", [pgd, bim])
def test_stopping_at_success_gives_the_verdicts_of_the_full_run(make, chunk: int, case) -> None:
    model, x, y = case
    counter = Counter(model, at_most=chunk)
    full = make(Linf(0.05), 12)(counter, x, y)
    quick = make(Linf(0.05), 12, stop="success")(counter, x, y)
    assert torch.equal(full.success, quick.success)
    assert 0 < int(full.success.sum()) < len(x)
    fell = full.success
    assert (quick.forwards[fell] < full.forwards[fell]).all()
    assert torch.equal(quick.forwards[~fell], full.forwards[~fell])
    assert torch.equal(quick.x[~fell], full.x[~fell])
    loss = [F.cross_entropy(model(r.x), y, reduction="none") for r in (full, quick)]
    assert (loss[0] >= loss[1] - 1e-12).all() and (loss[0] > loss[1] + 1e-6)[fell].any()
    assert full.stop == "never" and quick.stop == "success"


def test_waiting_rows_take_the_place_of_finished_ones(case) -> None:
    """With room for 8, the batch stays full while rows wait, and no row is run twice."""
    model, x, y = case
    counter = Counter(model, at_most=8)
    quick = pgd(Linf(0.05), 12, stop="success")(counter, x, y)
    sizes = counter.sizes[3:]  # 23 clean rows come in three forwards
    assert sizes[0] == 8 and max(sizes) == 8
    # Refilled in gulps of a quarter: while rows waited, never fewer than 8 - 2 + 1 at work.
    entered, waiting = 8, 23 - 8
    assert sum(s >= 7 for s in sizes) > 12, "the batch was not refilled"
    chunks = Counter(model, at_most=8)
    for part in torch.arange(23).split(8):
        pgd(Linf(0.05), 12, stop="success")(chunks, x[part], y[part], ids=part)
    assert len(counter.sizes) < len(chunks.sizes), "refilling should save forwards"
    assert entered + waiting == len(x) and torch.equal(
        quick.success, pgd(Linf(0.05), 12, stop="success")(model, x, y).success
    )


def test_eps_a_row_equals_separate_runs(case) -> None:
    model, x, y = case
    for kind, scale in ((Linf, 1.0), (L2, 2.5), (L1, 8.0)):
        eps = scale * torch.linspace(0.0, 0.1, len(x), dtype=torch.float64)
        together = pgd(kind(eps), 6)(model, x, y)
        for i in (0, 7, 22):
            which = torch.tensor([i])
            alone = pgd(kind(float(eps[i])), 6)(model, x[which], y[which], ids=which)
            torch.testing.assert_close(alone.x, together.x[which], rtol=0, atol=1e-9)
        assert together.distance[0] == 0 and torch.equal(together.x[0], x[0])
        assert (together.distance <= eps * (1 + 1e-6)).all()


def test_restarts_run_on_survivors_only(case) -> None:
    model, x, y = case
    once = pgd(Linf(0.05), 6, stop="success")(model, x, y)
    more = pgd(Linf(0.05), 6, stop="success", restarts=3)(model, x, y)
    fell = once.success
    assert torch.equal(more.forwards[fell], once.forwards[fell])
    assert (more.forwards[~fell] > once.forwards[~fell]).all()
    assert (more.success | ~fell).all()
    full = pgd(Linf(0.05), 6)(model, x, y)
    thrice = pgd(Linf(0.05), 6, restarts=3)(model, x, y)
    assert (thrice.backwards == 3 * full.backwards).all()
    losses = [F.cross_entropy(model(r.x), y, reduction="none") for r in (full, thrice)]
    assert (losses[1] >= losses[0] - 1e-12).all() and (losses[1] > losses[0] + 1e-9).any()


def test_restarts_on_the_margin_go_for_one_class_each() -> None:
    case = linear_case(6, 9, 11)
    rows = Rows(
        torch.arange(9), torch.arange(9), case.x, case.y, None, None, case.model(case.x).detach()
    )
    oracle = Oracle(case.model, 9)
    from foible.core.problem import View

    for k in range(1, 6):
        value = Margin(k)(View(oracle, rows, case.x))
        others = rows.scores.scatter(1, case.y[:, None], float("-inf")).sort(1, descending=True)
        mine = rows.scores.gather(1, case.y[:, None]).squeeze(1)
        assert torch.allclose(value.detach(), others.values[:, k - 1] - mine)


def test_targets_and_rows_that_were_wrong_before(case) -> None:
    model, x, y = case
    target = (y + 1) % 3
    labels = y.clone()
    labels[4:8] = (y[4:8] + 1) % 3
    plain = pgd(Linf(0.3), 20)(model, x, labels)
    assert [s == "wrong" for s in plain.status] == [4 <= i < 8 for i in range(23)]
    assert torch.equal(plain.x[4:8], x[4:8]) and plain.success[4:8].all()
    assert (plain.distance[4:8] == 0).all() and (plain.distance[plain.attacked] > 0).all()
    assert plain.success_rate == float(plain.success[plain.attacked].float().mean())
    reached = pgd(Linf(0.3), 20)(model, x, y, target=target)
    assert torch.equal(reached.success, predicted(model, reached.x) == target)
    assert torch.equal(reached.label, predicted(model, reached.x))
    assert reached.success.float().mean() > 0.5
    held = pgd(Linf(0.3), 20)(model, x, y, target=y)  # where the target is the class already
    assert held.status == ["wrong"] * 23 and torch.equal(held.x, x)
    assert held.success_rate is None and torch.equal(held.clean_label, y)


def test_everything_wrong_before_costs_one_forward(case) -> None:
    model, x, y = case
    result = attacks.ig_deletion()(model, x, (y + 1) % 3)
    assert result.forwards.tolist() == [1] * 23 and result.status == ["wrong"] * 23


def test_the_judge_gives_the_verdict(case) -> None:
    """Searched on one model, judged on another: the best point is the judge's."""
    model, x, y = case
    other = wrap(filled(softened(), 77, 2.0).double())
    oracle, judge = Oracle(other, len(x)), Oracle(model, len(x))
    index = torch.arange(len(x))
    threat = Linf(0.2).inside((0, 1))
    rows = Rows(index, index, x, y, None, threat.radii(len(x), x))
    problem = Problem(oracle, threat, CrossEntropy(), Fooled(), "success", judge=judge)
    with oracle.session(), judge.session():
        found = solve(problem, rows, Ascent(8, None, 0.2))
    assert torch.equal(found.success, predicted(model, found.x) != y)
    assert found.success.any() and not torch.equal(found.success, predicted(other, found.x) != y)
    assert int(judge.meter.backwards.sum()) == 0 and int(oracle.meter.backwards.sum()) > 0
    assert torch.equal(judge.meter.forwards, oracle.meter.forwards)


# --- the curve


def test_a_curve_agrees_with_separate_runs(case) -> None:
    model, x, y = case
    grid = [0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2]
    y = y.clone()
    y[0] = (y[0] + 1) % 3
    for attack in (bim(Linf(1.0), 10, objective="margin"), bim(L2(1.0), 10)):
        found = curve(attack, grid)(model, x, y)
        for eps, accuracy in zip(grid, found.accuracy, strict=True):
            run = attack.within(type(attack.threat)(eps))(model, x, y)
            assert abs(accuracy - run.robust_accuracy) <= 1.5 / len(x), eps
        assert found.smallest[0] == 0 and found.accuracy == sorted(found.accuracy, reverse=True)
        broken = torch.isfinite(found.smallest)
        assert (predicted(model, found.x[broken]) != y[broken]).all()
        size = attack.threat.inside((0, 1)).length(found.x - x)
        assert (size[broken] <= found.smallest[broken] * (1 + 1e-6)).all()
