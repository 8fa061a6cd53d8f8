"""The laws of the design: identities that hold to the bit or to a stated tolerance."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import SmallNet, filled, linear_case, rand, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn

from foible.attacks import Attack, bim, fgsm, mim, pgd, r_fgsm, random_noise, smoothgrad_attack
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.explain import saliency
from foible.models import TorchModel, wrap
from foible.parts.projections import l1_in_box, l2_in_box
from foible.parts.searches import Ascent
from foible.parts.threats import L0, L1, L2, Ball, Deletion, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
BOXES = [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (-255.0, 0.0), (float("-inf"), float("inf"))]
EPS = [0.0, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 7.5]


def rows_of(x: Tensor, eps: float) -> Rows:
    index = torch.arange(len(x))
    radius = torch.full((len(x),), eps, dtype=x.dtype)
    return Rows(index, index, x, torch.zeros_like(index), None, radius)


@pytest.fixture
def victim() -> tuple[TorchModel, Tensor, Tensor]:
    model = wrap(filled(SmallNet(), 5, 2.0))
    x = rand(9, 1, 6, 6, seed=6)
    with model.session(), torch.no_grad():
        return model, x, model.scores(x).argmax(1)


# --- one step


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5), L0(3)])
def test_pgd_of_one_full_step_from_the_clean_point_is_fgsm(threat: Ball, victim) -> None:
    model, x, y = victim
    one = fgsm(threat)(model, x, y)
    many = Attack("pgd", threat, Ascent(steps=1, length=None, share=1.0, start="clean"))
    for same in (many, bim(threat, steps=1), mim(threat, steps=1)):
        if same.name == "mim" and threat.norm == "l2":
            continue  # the velocity is normalised once more, which rounds
        assert torch.equal(same(model, x, y).x, one.x), same.name
    assert not torch.equal(one.x, x)


def test_bim_of_one_step_of_eps_is_fgsm(victim) -> None:
    model, x, y = victim
    one = fgsm(Linf(0.05))(model, x, y)
    assert torch.equal(bim(Linf(0.05), steps=1, step=0.05)(model, x, y).x, one.x)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5), L0(3)])
def test_the_smoothgrad_attack_without_noise_is_fgsm(threat: Ball, victim) -> None:
    model, x, y = victim
    found = smoothgrad_attack(threat, samples=25, sigma=0.0)(model, x, y)
    assert torch.equal(found.x, fgsm(threat)(model, x, y).x)


def test_the_smoothgrad_attack_on_a_linear_model_is_fgsm() -> None:
    case = linear_case(2, 7, 27)
    a = smoothgrad_attack(Linf(0.01), samples=7, sigma=1e-4)(case.model, case.x, case.y)
    torch.testing.assert_close(a.x, fgsm(Linf(0.01))(case.model, case.x, case.y).x)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5), L0(3)])
def test_the_gradient_as_direction_is_the_gradient(threat: Ball, victim) -> None:
    model, x, y = victim
    plain, pointed = pgd(threat, 7), pgd(threat, 7, direction=saliency())
    assert torch.equal(plain(model, x, y).x, pointed(model, x, y).x)


def test_r_fgsm_without_a_random_share_is_fgsm(victim) -> None:
    model, x, y = victim
    found = r_fgsm(Linf(0.05), alpha=0.0)(model, x, y)
    assert torch.equal(found.x, fgsm(Linf(0.05))(model, x, y).x)


def test_equation_8_of_the_survey() -> None:
    """grad J = -(1 / f_c) grad f_c, so their signs are opposite on every entry but zeros."""
    net = filled(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5)), 8).double()
    x, y = rand(20, 12, seed=9, dtype=torch.float64), torch.arange(20) % 5
    p_c = saliency()(wrap(net, outputs=_softmax), x, y)
    loss = -saliency()(wrap(net, outputs=_log_softmax), x, y)
    with torch.no_grad():
        share = torch.softmax(net(x), 1).gather(1, y[:, None])
    assert torch.equal(loss.sign(), -p_c.sign())
    torch.testing.assert_close(loss, -p_c / share, rtol=1e-10, atol=1e-14)


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, 1)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, 1)


# --- project and contains


@st.composite
def points(draw: st.DrawFn) -> tuple[Rows, Tensor, Threat]:
    """Random x inside a box, any z, any radius; constant rows and the box's ends come often."""
    low, high = draw(st.sampled_from(BOXES))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    count, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**20))
    ends = (low, high) if np.isfinite(low) else (-1e4, 1e4)
    u = rand(3, count, seed=seed, dtype=torch.float64)
    kind = draw(st.sampled_from(["uniform", "constant", "ends"]))
    u = {"uniform": u, "constant": u[:, :1].expand_as(u), "ends": u.round()}[kind]
    x = (ends[0] + u * (ends[1] - ends[0])).to(dtype).clamp(*ends)
    size = draw(st.sampled_from([1e-9, 1e-4, 1.0, 1e4]))
    z = (randn(3, count, seed=seed + 1, dtype=torch.float64) * size).to(dtype)
    if draw(st.booleans()):
        z = z[:, :1].expand_as(z).contiguous()
    ball = draw(st.sampled_from(list(BALLS.values())))
    eps = draw(st.sampled_from(EPS)) if ball is not L0 else float(draw(st.integers(0, count)))
    return rows_of(x, eps), z, ball(eps).inside((low, high))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(points())
def test_contains_accepts_what_project_gives(given) -> None:
    rows, z, threat = given
    projected = threat.project(rows, z)
    x_adv = threat.render(rows, projected)
    assert threat.contains(rows, x_adv).all()
    assert x_adv.dtype == rows.x.dtype and x_adv.shape == rows.x.shape
    again = threat.project(rows, projected)
    if threat.norm in ("linf", "l0"):
        assert torch.equal(again, projected)
    else:
        scale = projected.abs().amax(1, keepdim=True).double()
        assert ((again - projected).abs().double() <= 1e-6 * scale).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(points())
def test_contains_refuses_what_lies_outside(given) -> None:
    """The judge owes nothing to project: one entry moved by more than eps is too much."""
    rows, _, threat = given
    if threat.norm == "l0":
        return
    x_adv, eps = rows.x.double().clone(), float(rows.eps[0])
    away = (1.01 * eps + 1e-6) * max(1.0, threat.box.width)
    x_adv[:, 0] += torch.where(x_adv[:, 0] > sum(_ends(threat)) / 2, -away, away)
    assert not threat.contains(rows, x_adv).any()


def _ends(threat: Threat) -> tuple[float, float]:
    box = threat.box
    return (box.low, box.high) if np.isfinite(box.high) else (0.0, 0.0)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
@pytest.mark.parametrize("eps", [1e-8, 1e-3, 0.3])
@pytest.mark.parametrize("norm", ["linf", "l1", "l2"])
def test_contains_agrees_with_exact_arithmetic(norm: str, eps: float, bounds) -> None:
    """Just inside and just outside of 1e-6 eps + 1e-7 of the box, in rational numbers."""
    low, high = bounds
    threat = BALLS[norm](eps).inside(bounds)
    allowed = Fraction(eps) * (1 + Fraction(1, 10**6)) + Fraction(high - low) / 10**7
    seen = set()
    for part in (Fraction(-1, 10**4), Fraction(-1, 10**7), Fraction(1, 10**7), Fraction(1, 10**4)):
        x = rand(1, 5, seed=3, dtype=torch.float64) * 0.2 + (low + high) / 2
        step = float(allowed * (1 + part)) / {"linf": 1, "l1": 5, "l2": 5**0.5}[norm]
        x_adv = x + step * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
        change = [
            Fraction(b) - Fraction(a) for a, b in zip(x[0].tolist(), x_adv[0].tolist(), strict=True)
        ]
        size = {
            "linf": max(abs(c) for c in change) <= allowed,
            "l1": sum(abs(c) for c in change) <= allowed,
            "l2": sum(c * c for c in change) <= allowed**2,
        }[norm]
        edge = abs(part) < Fraction(1, 10**5) and eps < 1e-6  # below the rounding of x itself
        if not edge:
            assert bool(threat.contains(rows_of(x, eps), x_adv)) == size, float(part)
            seen.add(size)
    assert seen == {True, False}


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
@pytest.mark.parametrize("kind", list(BALLS.values()))
def test_the_box_is_judged_exactly(kind: type[Ball], bounds) -> None:
    low, high = bounds
    threat = kind(1000.0).inside(bounds)
    slack = Fraction(high - low) / 10**7
    x = torch.full((1, 4), high, dtype=torch.float64)
    for end, sign in ((low, -1), (high, 1)):
        for part, fine in ((Fraction(9, 10), True), (Fraction(11, 10), False)):
            x_adv = x.clone()
            x_adv[0, 2] = float(Fraction(end) + sign * slack * part)
            assert bool(threat.contains(rows_of(x, 1000.0), x_adv)) is fine


def test_l0_is_judged_in_whole_features() -> None:
    x = torch.zeros(1, 3_000_000)
    x_adv = x.clone()
    x_adv[0, :2_000_001] = 1e-20
    assert not L0(2_000_000).inside((0, 1)).contains(rows_of(x, 2_000_000.0), x_adv)
    assert L0(2_000_001).inside((0, 1)).contains(rows_of(x, 2_000_001.0), x_adv)


def test_a_deletion_begins_with_nothing_or_with_half_and_marks_are_whole() -> None:
    x = rand(40, 25, seed=3)
    rows = replace(rows_of(x, 1.0), extra={"baseline": torch.zeros_like(x)})
    threat = Deletion().inside((0, 1))
    assert torch.equal(threat.render(rows, threat.clean(rows)), x)
    assert not threat.distance(rows, x).any()
    start = threat.start(rows, Rng(1).at(rows.id))
    assert set(start.unique().tolist()) == {0.0, 1.0} and abs(float(start.mean()) - 0.5) < 0.06
    marks = torch.tensor([0.0, 0.4, 0.5, 0.51, 1.0])
    assert threat.project(rows, marks).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    gone = threat.render(rows, start)
    assert torch.equal(gone == 0, start == 1)
    assert threat.distance(rows, gone).tolist() == start.sum(1).tolist()


def test_a_deletion_is_judged_bit_for_bit() -> None:
    x = torch.tensor([[0.2, 0.4, 0.6]])
    rows = replace(rows_of(x, 0.0), extra={"baseline": torch.zeros_like(x)})
    threat = Deletion().inside((0, 1))
    assert threat.contains(rows, torch.tensor([[0.0, 0.4, 0.6]]))
    assert not threat.contains(rows, torch.tensor([[1e-9, 0.4, 0.6]]))
    assert threat.distance(rows, torch.tensor([[0.0, 0.4, 0.0]])).item() == 2


# --- the projections against a slow reference


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_projections_equal_a_slow_reference(norm: str, seed: int) -> None:
    v = randn(1, 8, seed=seed, dtype=torch.float64)
    low = -rand(1, 8, seed=seed + 100, dtype=torch.float64)
    high = rand(1, 8, seed=seed + 200, dtype=torch.float64)
    high[0, 0] = low[0, 1] = 0.0  # an entry without room on one side
    radius = torch.tensor([[0.2 + 0.15 * seed]], dtype=torch.float64)
    fast = {"l1": l1_in_box, "l2": l2_in_box}[norm](v, low, high, radius)[0].numpy()
    slow = bisected(norm, v[0].numpy(), low[0].numpy(), high[0].numpy(), float(radius))
    np.testing.assert_allclose(fast, slow, atol=1e-10)


def bisected(norm: str, v, low, high, radius: float) -> np.ndarray:
    """Bisect the multiplier of the ball in the conditions of Karush, Kuhn and Tucker."""

    def at(t: float) -> np.ndarray:
        moved = np.sign(v) * np.maximum(np.abs(v) - t, 0) if norm == "l1" else v / (1 + t)
        return np.clip(moved, low, high)

    def size(d: np.ndarray) -> float:
        return np.abs(d).sum() if norm == "l1" else np.sqrt((d * d).sum())

    if size(at(0.0)) <= radius:
        return at(0.0)
    few, many = 0.0, 1e6
    for _ in range(300):
        t = (few + many) / 2
        few, many = (t, many) if size(at(t)) > radius else (few, t)
    return at(many)


def test_the_slow_reference_is_the_nearest_point() -> None:
    """The bisection itself, against a general solver that knows nothing of multipliers."""
    for seed in range(3):
        v = randn(1, 5, seed=seed, dtype=torch.float64)[0].numpy()
        low, high, radius = -np.full(5, 0.6), np.full(5, 0.3), 0.55
        found = minimize(
            lambda d, v=v: ((d - v) ** 2).sum(), np.zeros(5), method="SLSQP",
            bounds=list(zip(low, high, strict=True)), options={"ftol": 1e-15, "maxiter": 400},
            constraints={"type": "ineq", "fun": lambda d, r=radius: r**2 - (d * d).sum()},
        )  # fmt: skip
        np.testing.assert_allclose(found.x, bisected("l2", v, low, high, radius), atol=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_float32_projections_stay_close_on_images(norm: str) -> None:
    v = randn(4, 3072, seed=1) * 0.1
    x = rand(4, 3072, seed=2)
    radius = torch.tensor([[0.5], [3.0], [12.0], [40.0]])
    project = {"l1": l1_in_box, "l2": l2_in_box}[norm]
    single = project(v, -x, 1 - x, radius)
    double = project(v.double(), -x.double(), 1 - x.double(), radius.double())
    assert (single.double() - double).abs().max() < 1e-6
    order = 1 if norm == "l1" else 2
    assert (torch.linalg.vector_norm(single.double(), order, 1) <= radius[:, 0] * (1 + 1e-6)).all()


# --- random starts and returned samples


@pytest.mark.parametrize("bounds", BOXES)
@pytest.mark.parametrize("kind", list(BALLS.values()))
def test_random_starts_lie_inside_and_differ(kind: type[Ball], bounds) -> None:
    ends = bounds if np.isfinite(bounds[0]) else (-3.0, 3.0)
    x = ends[0] + rand(6, 20, seed=1) * (ends[1] - ends[0])
    eps = 3.0 if kind is L0 else 0.2 * (ends[1] - ends[0])
    threat, rows = kind(eps).inside(bounds), rows_of(x, eps)
    z = threat.start(rows, Rng(0).at(rows.id))
    assert threat.contains(rows, threat.render(rows, z)).all()
    assert len({tuple(row.tolist()) for row in z}) == 6
    size = threat.length(z.double())
    # Not a point near the centre: starts fill the ball, and the box's whole width in L0.
    assert size.max() > (0.5 * eps if kind is not L1 else 0.05 * eps)
    if kind is L0:
        assert z.abs().max() > 0.2 * (ends[1] - ends[0] if np.isfinite(bounds[0]) else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (-1e9, 1e9)])
@pytest.mark.parametrize("norm", BALLS)
def test_every_returned_sample_is_inside(norm: str, bounds, dtype: torch.dtype) -> None:
    """Budget, box and dtype, again in numpy float64, from the returned samples alone."""
    net = filled(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)), 2).to(dtype)
    low, high = bounds if bounds[1] < 1e6 else (-50.0, 50.0)
    model = wrap(net, bounds=bounds, preprocess=((low + high) / 2 * 1.0, (high - low) / 2))
    x = (low + rand(8, 12, seed=3, dtype=torch.float64) * (high - low)).to(dtype).clamp(low, high)
    eps = 3.0 if norm == "l0" else 0.3 * (high - low) * {"linf": 0.3, "l2": 1, "l1": 3}[norm]
    with torch.no_grad():
        y = model(x).argmax(1)
    threat = BALLS[norm](eps)
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    for attack in (fgsm(threat), bim(threat), mim(threat), pgd(threat, 7), random_noise(threat, 3)):
        result = attack(model, x, y)
        adv = result.x.numpy()
        assert result.x.dtype == dtype
        assert adv.min() >= bounds[0] and adv.max() <= bounds[1]
        size = [np.linalg.norm(d, order) for d in adv.astype(np.float64) - x.double().numpy()]
        assert max(size) <= float(torch.tensor(eps, dtype=dtype)) * (1 + 1e-6)
        assert max(size) > 0.2 * eps, attack.name
        with torch.no_grad():
            assert torch.equal(model(result.x).argmax(1) != y, result.success)
