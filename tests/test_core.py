"""The loop and the door: what a run costs, what it may ask, what its parts do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, filled, predicted, rand, randn
from suites import ATTACKS
from torch import Tensor, nn

from foible import attacks, explain
from foible.attacks import bim, curve, pgd, random_noise
from foible.core.access import Access
from foible.core.errors import AccessError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.problem import Fooled, Problem
from foible.core.progress import listening
from foible.core.rows import Rows, join, take
from foible.core.search import Evaluate, Evaluation, Search
from foible.core.solver import _Best, solve
from foible.models import TorchModel, wrap
from foible.parts.objectives import CrossEntropy
from foible.parts.threats import Linf

# --- meters


@pytest.mark.parametrize("chunk", [2, 7, 1000])
@pytest.mark.parametrize("name", ATTACKS)
def test_meters_equal_an_independent_count(name: str, chunk: int, case) -> None:
    model, x, y = case
    counter = Counter(model, at_most=chunk)
    result = ATTACKS[name](counter, x, y)
    assert int(result.forwards.sum()) == counter.forwards
    assert int(result.backwards.sum()) == counter.backwards
    assert max(counter.sizes) <= chunk, "a forward held more than the chunk"


def test_costs_of_a_row_are_what_the_method_says(case) -> None:
    """Clean, one a step, the last point, the verification; nothing for rows wrong before."""
    model, x, y = case
    y = y.clone()
    y[:3] = (y[:3] + 1) % 3
    result = pgd(Linf(1e-6), 9)(model, x, y)
    assert result.forwards.tolist() == [1] * 3 + [12] * 20
    assert result.backwards.tolist() == [0] * 3 + [9] * 20
    result = random_noise(Linf(1e-6), 5)(model, x, y)
    assert result.forwards.tolist() == [1] * 3 + [7] * 20 and int(result.backwards.sum()) == 0
    assert random_noise(Linf(1e-6), 1)(model, x, y).forwards.tolist() == [1] * 3 + [3] * 20


def test_meters_of_a_curve_and_of_repeated_rows(case) -> None:
    model, x, y = case
    counter = Counter(model, at_most=5)
    result = curve(bim(Linf(0.1), 4), [0.01, 0.02, 0.05, 0.1])(counter, x, y)
    assert int(result.forwards.sum()) == counter.forwards
    assert int(result.backwards.sum()) == counter.backwards


# --- access


class Given:
    """A model that gives labels only (as one-hot rows) or scores only, and no gradient."""

    def __init__(self, inner: TorchModel, access: Access) -> None:
        self.inner, self.access, self.bounds = inner, access, inner.bounds
        self.calls = 0

    def scores(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.inner.scores(x.detach()).detach()
        return out if self.access > Access.LABELS else F.one_hot(out.argmax(1), 3).to(out)

    def session(self, seed: int = 0, *, freeze: bool = True) -> Any:
        return self.inner.session(seed, freeze=freeze)

    def chunk(self, x: Tensor) -> int:
        return 8


@pytest.mark.parametrize("level", [Access.LABELS, Access.SCORES])
def test_a_model_that_gives_less_is_asked_for_no_more(level: Access, case) -> None:
    model, x, y = case
    given = Given(model, level)
    for attack in ATTACKS.values():
        before = given.calls
        if attack.access > level:
            with pytest.raises(AccessError, match="gives only"):
                attack(given, x, y)
            assert given.calls == before, "the model was called before the refusal"
        else:
            attack(given, x, y)
    for explainer in (explain.saliency(), explain.integrated_gradients(5), explain.smoothgrad(3)):
        with pytest.raises(AccessError, match="GRADIENTS"):
            explainer(given, x, 0)


def test_scores_are_enough_for_those_who_ask_for_scores(case) -> None:
    model, x, y = case
    given = Given(model, Access.SCORES)
    assert explain.lime(30)(given, x, y).abs().sum() > 0
    found = pgd(Linf(0.1), 3, direction=explain.lime(30))(given, x, y)
    plain = pgd(Linf(0.1), 3, direction=explain.lime(30))(model, x, y)
    assert torch.equal(found.x, plain.x) and int(found.backwards.sum()) == 0


def test_labels_are_enough_for_a_random_map(case) -> None:
    model, x, y = case
    given = Given(model, Access.LABELS)
    assert explain.random_map()(given, x, y).shape == x.shape
    assert random_noise(Linf(0.1)).access == Access.SCORES


def test_a_part_cannot_take_more_than_it_declared(case) -> None:
    model, x, y = case
    oracle = Oracle(model, 1, Access.LABELS)
    rows = Rows(torch.arange(1), torch.arange(1), x[:1], y[:1])
    assert oracle.labels(x[:1], rows).tolist() == y[:1].tolist()
    with pytest.raises(AccessError, match="asked for SCORES"):
        oracle.scores(x[:1], rows)
    oracle = Oracle(model, 1, Access.SCORES)
    with pytest.raises(AccessError, match="asked for GRADIENTS"):
        oracle.value_and_grad(lambda leaf: leaf.sum(1), x[:1], rows)
    with pytest.raises(AccessError):
        oracle.jacobian(x[:1], rows, torch.zeros(1, 1, dtype=torch.int64))


def test_the_jacobian_is_c_gradients(case) -> None:
    model, x, _ = case
    oracle = Oracle(model, len(x))
    rows = Rows(torch.arange(len(x)), torch.arange(len(x)), x, torch.zeros(len(x)).long())
    classes = torch.tensor([[2, 0]]).expand(len(x), 2)
    scores, jacobian = oracle.jacobian(x, rows, classes)
    for place, c in enumerate((2, 0)):
        assert torch.allclose(jacobian[:, place], explain.saliency()(model, x, c), atol=1e-14)
    assert torch.equal(scores, model(x).detach())
    assert (
        oracle.meter.forwards.tolist() == [1] * 23 and oracle.meter.backwards.tolist() == [2] * 23
    )


# --- the parts of the loop


def test_the_best_keeps_the_best_of_repeated_rows() -> None:
    rows = Rows(torch.arange(3), torch.arange(3), torch.zeros(3, 2), torch.zeros(3).long())
    best = _Best(rows)
    index = torch.tensor([0, 2, 0, 2, 2, 0])
    x = torch.arange(6.0)[:, None].expand(6, 2)
    success = torch.tensor([False, True, True, True, False, True])
    best.offer(index, x, success, torch.tensor([9.0, 1.0, 2.0, 5.0, 99.0, 1.0]), repeats=True)
    assert best.x[:, 0].tolist() == [2.0, 0.0, 3.0]
    assert best.success.tolist() == [True, False, True]
    assert best.rank.tolist() == [2.0, float("-inf"), 5.0]
    worse = torch.tensor([False, False, True])
    best.offer(torch.arange(3), x[:3] + 10, worse, torch.tensor([50.0, float("nan"), 4.0]))
    assert best.x[:, 0].tolist() == [2.0, 0.0, 3.0]
    best.offer(torch.arange(3), x[:3] + 10, ~worse, torch.tensor([2.5, -3.0, 99.0]))
    assert best.x[:, 0].tolist() == [10.0, 11.0, 3.0]
    assert best.success.tolist() == [True, True, True]


class Probe(NamedTuple):
    z: Tensor


class Probing(Search):
    """Asks several points of some rows in one step, the later the stronger."""

    def __init__(self) -> None:
        self.steps, self.seen = 2, []

    def init(self, problem: Problem, rows: Rows, draw: Any) -> Probe:
        return Probe(torch.zeros_like(rows.x))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Any, draw: Any
    ) -> Probe:
        which = torch.tensor([len(rows) - 1, 0, 0, len(rows) - 1])
        z = torch.tensor([0.01, 0.02, 0.03, 0.04])[:, None].expand(4, rows.x.shape[1])
        answer = evaluate(z.to(rows.x), rows.take(which), need="grad")
        self.seen.append((rows.index[which], answer))
        return state


def test_a_search_may_ask_any_rows_many_times(case) -> None:
    model, x, y = case
    oracle, index = Oracle(model, len(x)), torch.arange(len(x))
    threat = Linf(0.5).inside((0, 1))
    rows = Rows(index, index, x, y, None, threat.radii(len(x), x))
    search = Probing()
    with oracle.session():
        found = solve(Problem(oracle, threat, CrossEntropy(), Fooled()), rows, search)
    first: Evaluation = search.seen[0][1]
    assert search.seen[0][0].tolist() == [22, 0, 0, 22]
    for place, (i, d) in enumerate(((22, 0.01), (0, 0.02), (0, 0.03), (22, 0.04))):
        at = (x[i] + d).clamp(0, 1)[None]
        assert torch.allclose(first.scores[place], model(at)[0])
        assert torch.allclose(first.value[place], F.cross_entropy(model(at), y[i : i + 1]))
        gradient = -explain.saliency()(wrap(nn.Sequential(model.net, nn.LogSoftmax(1))), at, y[i])
        assert torch.allclose(first.grad[place], gradient[0], atol=1e-12)
    assert oracle.meter.forwards[[0, 1, 22]].tolist() == [2 * 2 + 1, 1, 2 * 2 + 1]
    moved = (found.x - x).abs().amax(1)
    assert set(moved.nonzero().flatten().tolist()) <= {0, 22}


def test_trees_are_sliced_and_joined_row_by_row() -> None:
    tree = {"a": torch.arange(4), "b": (torch.arange(8).view(4, 2), None, 3)}
    picked = take(tree, torch.tensor([2, 0]))
    assert picked["a"].tolist() == [2, 0] and picked["b"][0].tolist() == [[4, 5], [0, 1]]
    assert picked["b"][1:] == (None, 3)
    again = join(picked, take(tree, torch.tensor([True, False, False, True])))
    assert again["a"].tolist() == [2, 0, 0, 3] and again["b"][0].shape == (4, 2)
    rows = Rows(torch.arange(3), torch.arange(3), torch.rand(3, 2), torch.arange(3))
    rows = replace(rows, extra={"map": torch.arange(3.0)})
    assert rows.repeat(2).extra["map"].tolist() == [0, 1, 2, 0, 1, 2]
    assert join(rows, rows.take(torch.tensor([1]))).y.tolist() == [0, 1, 2, 1]


def test_progress_tells_every_row_once(case) -> None:
    model, x, y = case
    seen: list[int] = []
    with listening(seen.append):
        pgd(Linf(0.05), 9, stop="success")(Counter(model, at_most=8), x, y)
    assert sum(seen) == len(x)


def test_chunks_come_from_model_and_shape_alone(net: nn.Module, images: Tensor) -> None:
    model = wrap(net)
    sizes = {model.chunk(images[:k]) for k in (1, 4, 9)} | {wrap(net).chunk(images)}
    assert len(sizes) == 1
    big = wrap(nn.Conv2d(1, 64, 3, padding=1))
    assert 1 <= big.chunk(rand(1, 1, 64, 64, seed=0)) < wrap(net).chunk(images) <= 8192


def test_no_forward_holds_more_than_the_chunk(case) -> None:
    model, x, y = case
    guided = bim(Linf(0.05), 2, direction=explain.smoothgrad(3))
    for attack, chunk in ((bim(Linf(0.05), 2), 1), (guided, 3), (attacks.eot(guided, 4), 8)):
        counter = Counter(model, at_most=chunk)
        attack(counter, x[:6], y[:6])
        assert max(counter.sizes) <= chunk


@pytest.mark.parametrize("samples", [1, 4, 30])
def test_samples_and_rows_are_cut_so_that_they_fit_one_forward(case, samples: int) -> None:
    model, x, y = case
    rows = Rows(torch.arange(len(x)), torch.arange(len(x)), x, y)
    field = Field(Oracle(model, len(x)), lambda view: view.scores[:, 0], 13)
    blocks = field.blocks(5, samples)
    assert [k for block in blocks for k in block] == list(range(samples))
    assert all(5 * len(block) <= 13 for block in blocks)
    assert all(5 * (len(block) + 1) > 13 for block in blocks[:-1]), "a forward is left half empty"
    groups = field.groups(rows, samples)
    assert torch.cat(groups).tolist() == list(range(len(x)))
    assert all(len(group) == max(1, 13 // samples) for group in groups[:-1])


def test_memory_is_bounded_by_the_chunk() -> None:
    """Noise and masks of explainers are drawn for as many rows as one forward holds."""
    biggest = 0

    class Watching(Counter):
        def scores(self, x: Tensor) -> Tensor:
            nonlocal biggest
            biggest = max(biggest, len(x))
            return super().scores(x)

    model = Watching(wrap(filled(nn.Linear(6, 3), 1)), at_most=20)
    x = rand(50, 6, seed=1)
    for explainer in (explain.smoothgrad(15), explain.integrated_gradients(45), explain.lime(30)):
        biggest = 0
        explainer(model, x, 0)
        assert 10 <= biggest <= 20, type(explainer)


def test_random_noise_offers_as_many_points_as_it_says(case) -> None:
    model, x, y = case
    seen: list[Tensor] = []

    class Recording(Counter):
        def scores(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return super().scores(x)

    for points in (1, 2, 5):
        seen.clear()
        random_noise(Linf(0.01), points)(Recording(model, at_most=100), x, y)
        clean, *tried, verified, rest = seen  # verified in two batches of another size
        assert len(tried) == points
        assert all((abs((t - x).abs() - 0.01) < 1e-9).double().mean() > 0.9 for t in tried)
        assert len({float(t.sum()) for t in tried}) == points
        assert torch.equal(clean, x) and len(verified) + len(rest) == len(x)


def test_bending_moves_the_map_and_keeps_the_label() -> None:
    net = filled(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 3)), 4, 2.0)
    x = rand(4, 20, seed=1)
    y = predicted(net, x)
    order = randn(4, 20, seed=2).abs()
    bent = attacks.bend(Linf(0.2), explain.saliency(), 40)(net, x, y, order)
    assert bent.kept.all() and torch.equal(predicted(net, bent.x), y)
    assert (bent.x - x).abs().max() <= 0.2 + 1e-6
    by_hand = F.cosine_similarity(explain.saliency()(net, bent.x, y).abs(), order)
    torch.testing.assert_close(bent.similarity, by_hand)
    assert (bent.similarity >= bent.before - 1e-6).all() and (bent.similarity > bent.before).any()
