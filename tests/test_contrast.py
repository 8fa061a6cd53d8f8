"""Pertinent negatives and positives, and the autoencoder term: convex optima, laws, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import Counter, filled, linear, predicted, rand, randn
from torch import Tensor, nn

from foible import attacks, wrap
from foible.attacks.contrast import Positive
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.core.spec import build, spec
from foible.models import as_model
from foible.parts.objectives import Margin
from foible.parts.residual import Reconstructed, Residual
from foible.parts.searches.penalty import prune
from foible.parts.threats import L0, L1, L2, Added, Kept, Linf

FEATURES = 8


class Coder(nn.Module):
    """A linear autoencoder: the projection onto a few directions, about a middle."""

    def __init__(self, seed: int = 3, kept: int = 3) -> None:
        super().__init__()
        basis = torch.linalg.qr(randn(FEATURES, kept, seed=seed, dtype=torch.float64)).Q
        self.register_buffer("matrix", basis @ basis.T)

    def forward(self, x: Tensor) -> Tensor:
        return 0.4 + (x - 0.4) @ self.matrix.to(x)


def coder() -> nn.Module:
    return Coder().eval()


def two_classes(rows: int = 6, seed: int = 1) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    weight = randn(2, FEATURES, seed=seed, dtype=torch.float64)
    x = rand(rows, FEATURES, seed=seed + 1, dtype=torch.float64)
    bias = -(weight @ x.mean(0))
    y = (x @ weight.T + bias).argmax(1)
    return linear(weight, bias), x, y, torch.cat([weight, bias[:, None]], 1)


def least(problem: str, plane: Tensor, x: Tensor, y: int, prices: tuple[float, float]) -> float:
    """The convex optimum of the paper's objective: class by a constraint, not by a penalty."""
    cvxpy = pytest.importorskip("cvxpy")
    beta, gamma = prices
    matrix = np.asarray(coder().matrix)
    sign = 1 if (y == 0) == (problem == "negative") else -1
    gain = sign * (plane[1] - plane[0]).numpy()
    d, start = cvxpy.Variable(FEATURES), x.numpy() if problem == "negative" else np.zeros(FEATURES)
    at = start + d
    gap = at - 0.4 - matrix @ (at - 0.4)
    cost = beta * cvxpy.norm1(d) + cvxpy.sum_squares(d) + gamma * cvxpy.sum_squares(gap)
    within = [d >= 0, at <= (1 if problem == "negative" else x.numpy())]
    task = cvxpy.Problem(cvxpy.Minimize(cost), [*within, gain[:-1] @ at + gain[-1] >= 0])
    task.solve(solver=cvxpy.CLARABEL)
    return float(task.value) if task.status.startswith("optimal") else float("inf")


def price(x: Tensor, start: Tensor, prices: tuple[float, float]) -> Tensor:
    change = (x - start).flatten(1)
    with torch.no_grad():
        gap = (x - coder()(x)).flatten(1)
    size = prices[0] * change.abs().sum(1) + change.square().sum(1)
    return size + prices[1] * gap.square().sum(1)


@pytest.mark.parametrize("prices", [(0.1, 0.0), (10.0, 0.0), (0.5, 2.0)], ids=str)
@pytest.mark.parametrize("kind", ["negative", "positive"])
def test_the_objective_is_the_convex_optimum(kind: str, prices: tuple[float, float]) -> None:
    """On a linear model with a linear autoencoder, against a solver of convex programs."""
    net, x, y, plane = two_classes()
    part = coder() if prices[1] else None
    attack = attacks.contrastive(kind, part, prices[1], prices[0], steps=60, searches=8)
    found = attack(net, x, y)
    optimum = torch.tensor(
        [least(kind, plane, a, int(b), prices) for a, b in zip(x, y, strict=True)]
    )
    begun = torch.tensor([s == "wrong" for s in found.status])
    asked = ~begun
    assert torch.equal(found.success[asked], optimum.isfinite()[asked])
    hit = asked & found.success
    assert int(hit.sum()) >= 3
    reached = price(found.x, x if kind == "negative" else torch.zeros_like(x), prices)
    ratio = (reached / optimum)[hit]
    assert ratio.min() >= 1 - 1e-5 and ratio.median() <= 1.02 and ratio.max() <= 1.08, ratio


def image_net(classes: int = 3) -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes)]
    return filled(nn.Sequential(*body), 8, 2.0)


@pytest.mark.parametrize(
    ("dtype", "blank"), [(torch.float32, None), (torch.float32, 0.37), (torch.float64, 0.37)]
)
def test_negatives_only_add_ink_and_positives_only_keep_it(dtype, blank: float | None) -> None:
    """Row A13's exact bar, bit for bit; blank in the middle of the box as well."""
    net, x = image_net().to(dtype), rand(12, 1, 6, 6, seed=2, dtype=dtype)
    x[x < 0.25] = 0.0 if blank is None else blank
    y = predicted(net, x)
    added = attacks.contrastive(Added(blank=blank), steps=30, searches=4)(net, x, y)
    kept = attacks.contrastive(Kept(blank=blank), steps=30, searches=4)(net, x, y)
    paper = blank or 0.0
    assert added.success.float().mean() >= 0.6 and kept.success.all()
    assert not torch.equal(added.x, x) and not torch.equal(kept.x, x)
    assert ((added.x - paper).abs() >= (x - paper).abs()).all()
    assert (((added.x - paper) * (x - paper)) >= 0).all()
    low, high = x.clamp_max(paper), x.clamp_min(paper)
    assert (kept.x >= low).all() and (kept.x <= high).all()
    assert torch.equal(predicted(net, kept.x), y)
    assert (predicted(net, added.x) != y)[added.success].all()
    size = (kept.x - paper).double().abs().flatten(1).sum(1)
    torch.testing.assert_close(kept.distance, size, rtol=1e-5, atol=1e-5)
    assert (kept.distance < (x - paper).double().abs().flatten(1).sum(1)).all()


@pytest.mark.parametrize("kind", ["positive", Kept(blank=0.2), Added(blank=0.2)], ids=str)
def test_every_kind_survives_a_plan(kind: str | Kept | Added) -> None:
    attack = attacks.contrastive(kind, steps=5)
    again = build(json.loads(json.dumps(spec(attack))))
    assert again == attack and type(again) is type(attack)
    assert isinstance(attack, Positive) == (kind != Added(blank=0.2))


def test_a_blank_page_that_is_of_the_class_needs_nothing() -> None:
    net, x = image_net(), rand(9, 1, 6, 6, seed=2)
    blank = int(predicted(net, torch.zeros(1, 1, 6, 6)))
    found = attacks.contrastive("positive", steps=5, searches=2)(net, x, torch.full((9,), blank))
    assert found.status == ["wrong"] * 9 and (found.x == 0).all() and (found.distance == 0).all()


@pytest.mark.parametrize("kind", ["negative", "positive"])
def test_kappa_is_a_margin_in_acceptance_too(kind: str) -> None:
    net, x, y, _ = two_classes()
    found = attacks.contrastive(kind, kappa=0.2, steps=60, searches=6)(net, x, y)
    label = (1 - y if kind == "negative" else y)[:, None]
    scores = net(found.x)
    lead = (scores.gather(1, label) - scores.gather(1, 1 - label)).squeeze(1)
    searched = found.success & torch.tensor([s == "fooled" for s in found.status])
    assert searched.sum() >= 3 and (lead[searched] >= 0.2).all()


def test_pruning_lets_fall_what_the_class_does_not_need() -> None:
    """By hand: the first two entries decide, and the small ones go, the larger first spared."""
    z = torch.tensor([[0.9, 0.6, 0.3, 0.1, 0.05], [0.5, 0.4, 0.3, 0.2, 0.1]])
    index = torch.arange(2)

    class Asked:
        success = torch.zeros(2, dtype=torch.bool)

        def __init__(self, z: Tensor) -> None:
            self.value = torch.stack([z[0, :2].sum() - 1.4, z[1].sum() - 1.35])

    rows = Rows(index, index, torch.zeros(2, 5), index)
    left = prune(lambda z, rows, need: Asked(z), rows, z, 12)
    assert left.tolist() == [z[0, :2].tolist() + [0.0] * 3, [*z[1, :4].tolist(), 0.0]]


# --- the autoencoder term on any attack


def test_the_gradient_of_the_term_is_its_difference_quotient() -> None:
    net, x, y, _ = two_classes()
    term = Reconstructed(Margin(), Residual(coder(), 3.0))
    index = torch.arange(len(x))
    rows, oracle = Rows(index, index, x, y), Oracle(as_model(net), len(x))

    def value(at: Tensor) -> Tensor:
        return term(View(oracle, rows, at))

    _, grad = oracle.value_and_grad(value, x, rows)
    for i in range(FEATURES):
        step = torch.zeros_like(x)
        step[:, i] = 1e-5
        quotient = (value(x + step) - value(x - step)).detach() / 2e-5
        torch.testing.assert_close(grad[:, i], quotient, rtol=1e-4, atol=1e-6)
    alone = Margin()(View(oracle, rows, x)) - value(x).detach()
    by_hand = 3.0 * ((x - coder()(x)) ** 2).sum(1)
    torch.testing.assert_close(alone.detach(), by_hand)


@pytest.mark.parametrize("name", ["pgd", "apgd", "cw", "ead", "ead-en", "square"])
def test_the_term_brings_attacks_nearer_to_what_is_reconstructed(name: str) -> None:
    net, x, y, _ = two_classes(16)
    attack, weight = {
        "pgd": (attacks.pgd(Linf(0.4), 20, objective="margin"), 2.0),
        "apgd": (attacks.apgd(L2(0.9), 20, "margin"), 20.0),
        "cw": (attacks.cw(L2(), 60, 6), 5.0),
        "ead": (attacks.ead(L1(), 60, 6), 5.0),
        "ead-en": (attacks.ead(L1(), 60, 6, 0.1, "en"), 5.0),
        "square": (attacks.square(Linf(0.4), 100, stop="never"), 20.0),
    }[name]
    judge = Residual(coder())
    plain = attack(net, x, y)
    drawn = attacks.autoencoder_penalty(attack, coder(), weight)(net, x, y)
    assert torch.equal(plain.success, drawn.success) and plain.success.sum() >= 10
    before, after = judge(plain.x[plain.success]), judge(drawn.x[plain.success])
    assert after.mean() <= 0.85 * before.mean() and (after <= before + 0.02).float().mean() > 0.8


def test_cw_and_ead_pay_for_size_and_residual_together() -> None:
    """The least of both, against a solver of convex programs (two sides, no one-way ink)."""
    cvxpy = pytest.importorskip("cvxpy")
    net, x, y, plane = two_classes()
    matrix, weight = np.asarray(coder().matrix), 0.5
    for name, attack in (("cw", attacks.cw(L2())), ("ead", attacks.ead(L1()))):
        found = attacks.autoencoder_penalty(attack, coder(), weight)(net, x, y)
        change = (found.x - x).double()
        size = change.square().sum(1) if name == "cw" else change.abs().sum(1)
        total = size + weight * Residual(coder())(found.x)
        for row in range(len(x)):
            gain = (1 if y[row] == 0 else -1) * (plane[1] - plane[0]).numpy()
            d = cvxpy.Variable(FEATURES)
            at = x[row].numpy() + d
            gap = at - 0.4 - matrix @ (at - 0.4)
            size_of = cvxpy.sum_squares(d) if name == "cw" else cvxpy.norm1(d)
            task = cvxpy.Problem(
                cvxpy.Minimize(size_of + weight * cvxpy.sum_squares(gap)),
                [at >= 0, at <= 1, gain[:-1] @ at + gain[-1] >= 0],
            )
            task.solve(solver=cvxpy.CLARABEL)
            assert 1 - 1e-5 <= float(total[row]) / task.value <= 1.05, (name, row)


def test_without_weight_the_term_changes_nothing_and_is_not_transformed() -> None:
    net, x, y, _ = two_classes()
    attack = attacks.pgd(Linf(0.3), 5, objective="margin")
    none = attacks.autoencoder_penalty(attack, coder(), 0.0)
    assert torch.equal(none(net, x, y).x, attack(net, x, y).x)
    assert torch.equal(none(net, x, y).backwards, attack(net, x, y).backwards)
    both = attacks.autoencoder_penalty(attacks.eot(attack, 3), coder())
    assert isinstance(both.objective.inner, Reconstructed)


def test_the_terms_gradient_is_counted_and_its_net_left_alone() -> None:
    net, x, y, _ = two_classes()
    judge = nn.Sequential(coder(), nn.BatchNorm1d(FEATURES)).double().eval()
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    attack = attacks.cw(L2(), 8, 2)
    counted = Counter(wrap(net))
    found = attacks.autoencoder_penalty(attack, judge)(counted, x, y)
    assert counted.forwards == int(found.forwards.sum())
    rank = len(x)  # of classes, once a sample
    assert int(found.backwards.sum()) <= 2 * (counted.backwards - 2 * rank) + 2 * rank
    assert int(found.backwards.sum()) > counted.backwards
    assert all(torch.equal(v, before[k]) for k, v in judge.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3]


def run(autoencoder: nn.Module) -> None:
    net, x, y, _ = two_classes()
    attacks.autoencoder_penalty(attacks.bim(Linf(0.1), 2), autoencoder)(net, x, y)


def bounded(attack: attacks.Attack, ends: tuple[float, float]) -> None:
    net, x, y, _ = two_classes()
    attack(wrap(net, ends), x, y)


INFINITE = (-float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: attacks.contrastive("both"), InputError, "'negative', 'positive'"),
        (lambda: attacks.contrastive(beta=0.0), InputError, "beta=0.0"),
        (lambda: attacks.contrastive(gamma=-1.0), InputError, "gamma=-1.0"),
        (lambda: attacks.contrastive(kappa=-1.0), InputError, "confidence=-1.0"),
        (lambda: attacks.contrastive(steps=0), InputError, "steps=0"),
        (lambda: attacks.contrastive("negative", "net"), KindError, "autoencoder is str"),
        (lambda: bounded(attacks.contrastive(), INFINITE), InputError, "give it, e.g. blank"),
        (lambda: bounded(attacks.contrastive(Added(blank=2.0)), (0, 1)), InputError, "outside"),
        (lambda: bounded(attacks.ead(Kept()), (0, 1)), InputError, "needs the image"),
        (lambda: Residual(nn.Dropout()), InputError, "training mode"),
        (lambda: Residual(coder(), -1.0), InputError, "weight=-1.0"),
        (lambda: run(Narrow().eval()), InputError, "the shape that it takes"),
        (lambda: penalty(attacks.fmn(L2())), InputError, "fmn reads the boundary"),
        (lambda: penalty(attacks.cw(L0())), InputError, "cw reads the boundary"),
        (lambda: penalty(attacks.lbfgs()), InputError, "lbfgs reads the boundary"),
        (lambda: penalty(attacks.boundary(L2(0.1), 9)), InputError, "labels only|the boundary"),
    ],
)
def test_what_cannot_be_is_refused(make, error, says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def penalty(attack: attacks.Attack) -> None:
    attacks.autoencoder_penalty(attack, coder())
