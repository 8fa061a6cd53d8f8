"""EOT, BPDA and the density term: laws, costs, gradients, and what they break."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import Counter, filled, predicted, rand
from test_no_trace import everything_about, same
from torch import Tensor, nn

import foible
from foible.attacks import Attack, bim, eot, fgsm, pgd, random_noise, smoothgrad_attack
from foible.attacks.wrappers import Averaged, Settled
from foible.core.access import Access
from foible.core.errors import InputError, KindError, ModelError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.core.search import Search
from foible.models import TorchModel, bpda, wrap
from foible.parts import transforms
from foible.parts.objectives import CrossEntropy
from foible.parts.searches.sampling import Point
from foible.parts.threats import L2, Linf


def constant(x: Tensor, draw: Draw) -> Tensor:
    return x


def brighter(x: Tensor, draw: Draw) -> Tensor:
    return x + 0.3 * draw.scalars(1).to(x.dtype).reshape(-1, *([1] * (x.dim() - 1)))


class Round(nn.Module):
    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * (self.levels - 1)) / (self.levels - 1)


class Jitter(nn.Module):
    """A random model: noise on its input from the global generator."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.sigma * torch.randn_like(x))


def equal(a: foible.attacks.Result, b: foible.attacks.Result) -> bool:
    return (
        torch.equal(a.x, b.x) and torch.equal(a.success, b.success)
        and torch.equal(a.label, b.label) and a.status == b.status
        and torch.equal(a.forwards, b.forwards) and torch.equal(a.backwards, b.backwards)
    )  # fmt: skip


def rows_of(x: Tensor, y: Tensor) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, y)


# Expectation over transformations


@pytest.mark.parametrize("attack", [
    pgd(Linf(0.1), 5), pgd(L2(0.5), 4, objective="margin", restarts=3, stop="success"),
    random_noise(Linf(0.1), 3), smoothgrad_attack(Linf(0.1), 3, steps=2), bim(Linf(0.1), 4),
])  # fmt: skip
def test_one_draw_of_a_constant_is_the_attack_itself(attack, net, images) -> None:
    y = predicted(net, images)
    y[2] = (y[2] + 1) % 4
    plain = attack(net, images, y, seed=3)
    for transform in (None, constant):
        assert equal(eot(attack, 1, transform)(net, images, y, seed=3), plain)


@pytest.mark.parametrize("samples", [2, 7])
def test_more_draws_of_a_constant_cost_more_and_change_rounding_only(mlp, table, samples) -> None:
    y = predicted(mlp, table)
    plain = pgd(Linf(0.05), 6)(mlp, table, y)
    result = eot(pgd(Linf(0.05), 6), samples, constant)(mlp, table, y)
    torch.testing.assert_close(result.x, plain.x, rtol=0, atol=1e-9)
    assert torch.equal(result.success, plain.success)
    assert torch.equal(result.forwards, samples * plain.forwards)
    assert torch.equal(result.backwards, samples * plain.backwards)


@pytest.mark.parametrize("attack", [pgd(Linf(0.1), 3), smoothgrad_attack(Linf(0.1), 2)])
def test_the_meter_agrees_with_a_counting_model(attack, net, images) -> None:
    counter = Counter(wrap(net))
    result = eot(attack, 5, brighter)(counter, images, predicted(net, images))
    assert int(result.forwards.sum()) == counter.forwards
    assert int(result.backwards.sum()) == counter.backwards > 0


def test_a_forward_never_holds_more_than_the_chunk(net, images) -> None:
    counter = Counter(wrap(net), at_most=8)
    eot(pgd(Linf(0.1), 3), 4, brighter)(counter, images, predicted(net, images))
    assert max(counter.sizes) == 8  # two rows of four draws


def test_the_loss_is_averaged_and_not_the_scores(mlp, table) -> None:
    y, held = predicted(mlp, table), wrap(mlp)
    draw = Rng(5).at(torch.arange(len(table)), 3)
    oracle = Oracle(held, len(table))
    view = View(oracle, rows_of(table, y), table)
    view.draw = draw
    found = Averaged(CrossEntropy(), 3, brighter)(view)
    # By hand: draw k of a row at step s is the draw of step 3 s + k.
    each = [
        held(brighter(table, Draw(draw.rng, draw.ids, draw.step * 3 + k))) for k in range(3)
    ]  # fmt: skip
    losses = torch.stack([nn.functional.cross_entropy(s, y, reduction="none") for s in each])
    torch.testing.assert_close(found, losses.mean(0))
    mean = torch.stack([s.softmax(1) for s in each]).mean(0)
    torch.testing.assert_close(view.scores.exp(), mean)
    of_mean = nn.functional.cross_entropy(torch.stack(each).mean(0), y, reduction="none")
    assert (found - of_mean).abs().max() > 1e-4


def test_the_jacobian_is_of_the_expected_scores(mlp, table) -> None:
    """Minimum-norm searches linearise what the verdict is about, and pay for every draw."""
    y, held = predicted(mlp, table), wrap(mlp)
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Look(Search):
        steps: int = 1

        def init(self, problem, rows, draw):
            return Point(problem.threat.clean(rows))

        def step(self, problem, rows, evaluate, state, draw):
            asked = torch.arange(3).expand(len(rows), -1)
            seen.append(evaluate(state.z, need="jacobian", classes=asked).grad)
            return state

    result = eot(Attack("look", Linf(0.1), Look()), 4, brighter)(held, table, y)
    tried = result.attacked.nonzero().squeeze(1)
    assert result.backwards.tolist() == (12 * result.attacked).tolist() and len(tried) > 5
    draw = Rng(0).split(0).split(11).at(tried, 0)
    leaf = table[tried].requires_grad_()
    each = [held(brighter(leaf, Draw(draw.rng, draw.ids, draw.step * 4 + k))) for k in range(4)]
    mean = torch.stack([s.softmax(1) for s in each]).mean(0).log()
    for c in range(3):
        (grad,) = torch.autograd.grad(mean[:, c].sum(), leaf, retain_graph=True)
        torch.testing.assert_close(seen[0][:, c], grad)


def test_rows_meet_the_same_draws_whoever_shares_their_batch(mlp, table) -> None:
    y, attack = predicted(mlp, table), eot(pgd(Linf(0.1), 5), 3, brighter)
    ids = torch.arange(len(table))
    whole = attack(mlp, table, y, ids=ids)
    few = attack(Counter(wrap(mlp), at_most=4), table[4:7], y[4:7], ids=ids[4:7])
    torch.testing.assert_close(few.x, whole.x[4:7], rtol=0, atol=1e-9)


def test_a_random_model_is_refused_plainly_and_served_by_eot() -> None:
    x = rand(80, 10, seed=4)
    net = filled(nn.Linear(10, 3), 2, 2.0)
    y, noisy = predicted(net, x), Jitter(net, 0.5)
    with pytest.raises(ModelError, match="Average it over draws"):
        pgd(Linf(0.05), 10)(noisy, x, y)
    noisy = Jitter(net, 0.1)
    result = eot(pgd(Linf(0.1), 10), 30)(noisy, x, y)
    assert 0.1 < result.success_rate < 0.95
    # What it counts as fooled is fooled on average, in draws that it has never seen.
    with torch.no_grad():
        mean = torch.stack([noisy(result.x).softmax(1) for _ in range(200)]).mean(0)
    wrong = mean.argmax(1) != y
    counted = result.success & result.attacked
    assert (wrong & counted).sum() >= 0.95 * counted.sum()


def test_labels_are_judged_by_the_commonest() -> None:
    x = torch.full((4, 2), 0.5)
    flip = Settled(foible.core.problem.Fooled(), 5, None)
    labels = iter([0, 1, 1, 0, 1])

    class Flickering:
        bounds, access = (0.0, 1.0), Access.LABELS

        def scores(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), next(labels)), 2).float()

    oracle = Oracle(Flickering(), 4, Access.LABELS)
    view = View(oracle, rows_of(x, torch.tensor([0, 1, 0, 1])), x)
    assert flip(view).tolist() == [True, False, True, False]
    assert oracle.meter.forwards.tolist() == [5] * 4


def test_a_cap_counts_every_draw(net, images) -> None:
    attack = replace(random_noise(Linf(0.2), 50), cap=21)
    counter = Counter(wrap(net))
    result = eot(attack, 4, brighter)(counter, images, predicted(net, images))
    assert int(result.forwards.max()) == 20 and counter.forwards == int(result.forwards.sum())
    with pytest.raises(InputError, match="12 queries at least"):
        eot(replace(attack, cap=11), 4)
    with pytest.raises(InputError, match="one draw at least"):
        eot(attack, 0)
    with pytest.raises(InputError, match="averaged over draws already"):
        eot(eot(attack, 2), 2)


def test_noise_averaged_is_the_smoothgrad_attack(mlp, table) -> None:
    """One code path (A5, A11): on a linear model both are FGSM; on a net they agree mostly."""
    y = predicted(mlp, table)
    smooth = smoothgrad_attack(Linf(0.05), 200, 0.2)(mlp, table, y).x - table
    averaged = eot(fgsm(Linf(0.05)), 200, transforms.Noise(0.2))(mlp, table, y).x - table
    assert float((smooth.sign() == averaged.sign()).double().mean()) > 0.9


# Backward pass differentiable approximation


def test_bpda_on_an_identity_is_pgd_bit_for_bit(net, images) -> None:
    y = predicted(net, images)
    plain = nn.Sequential(nn.Identity(), net)
    for attack in (pgd(Linf(0.1), 5), pgd(L2(0.5), 4, objective="margin")):
        assert equal(attack(bpda(plain, "0"), images, y), attack(net, images, y))
        copy = bpda(plain, "0", backward=lambda x: x * 1.0)
        assert equal(attack(copy, images, y), attack(net, images, y))


@pytest.mark.parametrize("at", ["0", "Round", Round])
def test_bpda_gives_the_same_scores_and_the_gradient_of_its_stand_in(mlp, table, at) -> None:
    guarded = nn.Sequential(Round(), mlp)
    model = bpda(guarded, at)
    with model.session():
        leaf = table.clone().requires_grad_()
        scores = model.scores(leaf)
        with torch.no_grad():
            assert torch.equal(scores, guarded(table)) and torch.equal(model(table), scores)
        (found,) = torch.autograd.grad(scores[:, 1].sum(), leaf)
        inner = Round()(table).requires_grad_()
        (exact,) = torch.autograd.grad(mlp(inner)[:, 1].sum(), inner)
    assert torch.equal(found, exact) and found.abs().max() > 0
    soft = bpda(guarded, guarded[0], backward=lambda x: torch.sin(x))
    with soft.session():
        leaf = table.clone().requires_grad_()
        (found,) = torch.autograd.grad(soft.scores(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found, exact * torch.cos(table))


def test_bpda_leaves_no_hook_and_lets_a_defence_leave_torch(mlp, table) -> None:
    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy().round(1))  # fails on a tensor that requires grad

    guarded = nn.Sequential(Outside(), mlp)
    before = everything_about(guarded)
    model = bpda(guarded, "0")
    y = predicted(guarded, table)
    result = pgd(Linf(0.1), 10)(model, table, y)
    with pytest.raises(RuntimeError, match="boom"), model.session():
        raise RuntimeError("boom")
    after = everything_about(guarded)
    assert [k for k in before if not same(before[k], after[k])] == []
    assert result.success.any()
    assert not torch.equal(model.scores(table), torch.zeros(1))  # usable outside of a session


def test_bpda_keeps_how_a_model_is_wrapped_and_composes(mlp, table) -> None:
    def first(out: Tensor) -> Tensor:
        return out[:, :2]

    held = wrap(nn.Sequential(Round(), Round(8), mlp), (-1, 2), (0.5, 2.0), first)
    model = bpda(bpda(held, "0"), "1")
    assert model.bounds == (-1, 2) and model.outputs is first
    assert torch.equal(model(table), held(table)) and isinstance(model, TorchModel)
    assert fgsm(Linf(0.2))(model, table, predicted(held, table)).x.ne(table).any()
    one = bpda(held, ["0", "1"])
    ids = [m.identity() for m in (held, model, one, bpda(held, ["0", "1"], torch.nn.ReLU()))]
    assert all(a != b for a, b in itertools.combinations(ids, 2))


def test_bpda_says_what_it_cannot_do(mlp, table) -> None:
    with pytest.raises(InputError, match="no submodule of Sequential: choose from"):
        bpda(mlp, "nowhere")
    with pytest.raises(InputError, match="names no module"):
        bpda(mlp, [])
    with pytest.raises(KindError, match="holds no torch module"):
        bpda(Counter(wrap(mlp)), "0")
    y = predicted(mlp, table)
    with pytest.raises(ModelError, match="gives .* and its input has shape"):
        fgsm(Linf(0.1))(bpda(mlp, "0"), table, y)


def test_four_levels_mask_the_gradient_and_bpda_sees_through() -> None:
    """A11: 4 levels in front of the standard model, eps 0.3."""
    x, y = foible.zoo.sample()
    x, y = x[:64], y[:64]
    guarded = nn.Sequential(Round(4), foible.zoo.load("standard"))
    plain = bim(Linf(0.3), 10)(guarded, x, y)
    assert plain.robust_accuracy >= 0.6 and torch.equal(plain.x, x)
    assert pgd(Linf(0.3), 20)(bpda(guarded, "0"), x, y).robust_accuracy <= 0.05


def test_twenty_draws_beat_one_on_a_moving_defence() -> None:
    """A11: the accuracy that is left, over fresh draws of the defence, 15 points lower."""
    x, y = foible.zoo.sample()
    x, y = x[:32], y[:32]
    net = foible.zoo.weak.RandomResizePad(foible.zoo.load("hardened"), 0.7)
    left = []
    for samples in (1, 20):
        found = eot(pgd(Linf(0.15), 8), samples)(net, x, y).x
        with torch.no_grad(), torch.random.fork_rng():
            hits = [(net(found).argmax(1) == y).float().mean() for _ in range(20)]
        left.append(float(torch.stack(hits).mean()))
    assert left[0] - left[1] >= 0.15, left
