"""Visual counterfactuals: the best single swap, the greedy run, the threat, nets of other kinds."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallNet, filled, predicted, rand
from replicas import visual as paper
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import explain, wrap
from foible.core.errors import AccessError, InputError
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.explain import CellSwaps, visual_counterfactual
from foible.models import softplus_twin
from foible.parts.threats.swaps import Swaps


def sequential() -> nn.Sequential:
    body = [nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 4)]
    return filled(nn.Sequential(*body), 5, 2.0).double()


class Behind(nn.Module):
    """The same net in a module of its own, whose course nobody but it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sequential()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    """Images, and distractors of which the net says another class."""
    x = rand(60, 1, 6, 6, seed=6, dtype=torch.float64)
    label = predicted(sequential(), x)
    mine, theirs = x[label == label[0]], x[label != label[0]]
    count = min(6, len(mine), len(theirs))
    assert count >= 4
    return mine[:count], theirs[:count]


def pairs_of(found: CellSwaps, row: int) -> set[tuple[int, int]]:
    flat = found.cells[row].flatten()
    return {(int(i), int(flat[i])) for i in (flat >= 0).nonzero().flatten()}


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("layer", ["0", "1"])
def test_greedy_is_the_papers(pairs, layer: str, most: int) -> None:
    """With most=1, row B31's exact bar: the first edit is the best of all single edits."""
    x, other = pairs
    net = sequential()
    at = int(layer) + 1
    found = visual_counterfactual(layer, most)(net, x, other)
    assert torch.equal(found.target, predicted(net, other))
    with torch.no_grad():
        for row in range(len(x)):
            ends = (
                net[:at](x[row : row + 1].clone())[0],
                net[:at](other[row : row + 1].clone())[0],
            )
            head = net[at:]
            chosen = paper.greedy(
                lambda maps, head=head: head(maps.clone()), *ends, int(found.target[row]), most
            )
            ours = pairs_of(found, row)
            if not found.success[row] or most > 1:
                # Of the last swap any that succeeds will do; the paper's is the likeliest.
                assert len(ours) == len(chosen) and set(chosen[:-1]) <= ours
            if not found.success[row] or most == 1:  # two cells may be equal, after a ReLU
                values = [
                    torch.log_softmax(head(paper.swap(*ends, list(p))[None].clone()), 1)
                    for p in (ours, chosen)
                ]
                torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
            scores = head(paper.swap(*ends, sorted(pairs_of(found, row)))[None].clone())
            assert int(scores.argmax()) == int(found.label[row])
    assert torch.equal(found.success, found.label == found.target)


def test_a_net_of_its_own_course_gives_the_same_at_full_price(pairs) -> None:
    x, other = pairs
    plain = visual_counterfactual("1", 3)(sequential(), x, other)
    whole = visual_counterfactual("inner.1", 3)(Behind(), x, other)
    twice = visual_counterfactual(None, 3)(wrap(sequential(), (-1, 2)), x, other)
    for found in (whole, twice):
        assert torch.equal(found.cells, plain.cells) and torch.equal(found.label, plain.label)
    assert torch.equal(whole.forwards, plain.forwards)


def test_every_look_is_counted(pairs) -> None:
    """Two maps, a first label, 81 pairs, the point after the last swap, and the verdict."""
    x, other = pairs
    found = visual_counterfactual("1", 1)(sequential(), x, other)
    assert found.edits.tolist() == [1] * len(x)
    assert set(found.forwards.tolist()) <= {2 + 81 + 1, 2 + 81 + 1 + 1}


@pytest.mark.parametrize("layer", [None, "conv", "again#1", "again#2", "act#1"])
def test_nets_with_everything_are_left_alone(images: Tensor, layer: str | None) -> None:
    net = filled(SmallNet(), 5, 2.0).train()
    before = everything_about(net)
    x, other = images[:3], images[3:6]
    found = visual_counterfactual(layer, 2)(net, x, other, (predicted(net, x) + 1) % 4)
    assert found.cells.shape == (3, 6, 6) and (found.edits <= 2).all()
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_all_cells_at_once_are_the_distractor(pairs) -> None:
    """The last of all random swaps on a net that looks at sums only: the order cannot matter."""
    x, other = pairs
    head = filled(nn.Linear(3, 4), 9, 3.0).double()
    net = nn.Sequential(sequential()[0], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    wanted = predicted(net, other)
    found = visual_counterfactual("1", 9, "random")(net, x, other)
    assert found.success.all() and torch.equal(found.label, wanted)
    already = predicted(net, x) == wanted
    assert torch.equal(found.edits == 0, already)
    assert torch.equal(found.changed.flatten(1).sum(1), found.edits)
    assert torch.equal(found.taken.flatten(1).sum(1), found.edits)


def test_a_random_order_has_a_seed_and_is_the_worse(pairs) -> None:
    x, other = pairs
    net = sequential()
    one, two = (visual_counterfactual("1", 9, "random")(net, x, other, seed=s) for s in (1, 1))
    assert torch.equal(one.cells, two.cells)
    third = visual_counterfactual("1", 9, "random")(net, x, other, seed=2)
    assert not torch.equal(one.cells, third.cells)
    best = visual_counterfactual("1", 9)(net, x, other)
    assert best.success.all() and best.edits.double().mean() < one.edits.double().mean()


def test_the_threat_judges_swaps() -> None:
    x, other = rand(4, 1, 6, 6, seed=1), rand(4, 2, 2, 2, seed=2)
    index = torch.arange(4)
    rows = Rows(index, index, x, index, extra={"other": other})
    threat = Swaps()
    assert threat.clean(rows).shape == (4, 4)
    start = threat.start(rows, Rng(0).at(index))
    assert torch.equal(start.sort(1).values, torch.arange(1.0, 5).expand(4, 4))
    z = torch.tensor([[1.0, 0, 3, 0], [2, 2, 0, 0], [5, 0, 0, 0], [0.5, 0, 0, 0]])
    rows.extra["z"] = z
    assert threat.contains(rows, x).tolist() == [True, False, False, False]
    assert threat.distance(rows, x).tolist() == [2, 2, 1, 1]
    assert not threat.contains(rows, x + 1e-6).any()
    assert threat.project(rows, z - 0.6).min() == 0 and threat.project(rows, z).max() == 4
    with pytest.raises(InputError, match="distractor"):
        threat.clean(Rows(index, index, x, index))
    with pytest.raises(InputError, match="what was swapped"):
        threat.distance(Rows(index, index, x, index), x)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda x: visual_counterfactual(most=0), InputError, "most=0"),
        (lambda x: visual_counterfactual(order="best"), InputError, "'greedy' or 'random'"),
        (lambda x: visual_counterfactual("3")(sequential(), x, x), InputError, "cells"),
        (lambda x: visual_counterfactual("9")(sequential(), x, x), InputError, "no module"),
        (lambda x: visual_counterfactual()(sequential(), x, x[:1]), InputError, "one distractor"),
        (lambda x: visual_counterfactual()(sequential(), x, x, 4), InputError, "class 4"),
        (lambda x: visual_counterfactual()(softplus_twin(wrap(Behind())), x, x), None, ""),
    ],
)
def test_what_cannot_be_is_refused(make, error, says: str) -> None:
    x = rand(3, 1, 6, 6, seed=6, dtype=torch.float64)
    if error is None:  # a twin is a torch model as well
        assert make(x).edits.tolist() == [0, 0, 0]
        return
    with pytest.raises(error, match=says):
        make(x)


def test_a_model_without_layers_says_so(pairs) -> None:
    class Scores:
        bounds, access = (0.0, 1.0), wrap(sequential()).access

        def __init__(self) -> None:
            self.held = wrap(sequential())
            self.scores, self.session = self.held.scores, self.held.session
            self.chunk = self.held.chunk

    with pytest.raises(AccessError, match="no layers to look into"):
        explain.visual_counterfactual()(Scores(), *pairs)
