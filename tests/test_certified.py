"""Sparsified SmoothGrad beside its definition, its certificate beside known truths."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Counter, SmallNet, filled, rand
from torch import Tensor, nn

from foible import explain
from foible.core.errors import InputError, KindError
from foible.core.randomness import Rng
from foible.explain.certified import Certificate, marks
from foible.models import wrap


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


class Hinge(nn.Module):
    """Logit 1 is x1 + 10 relu(x0 - 0.5): feature 0 has the larger gradient where x0 > 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        logit = x[:, 1] + 10 * torch.relu(x[:, 0] - 0.5)
        return torch.stack([torch.zeros_like(logit), logit], 1)


def hinge_points(*far: float) -> Tensor:
    """Points whose feature 0 lies as far above the hinge."""
    return torch.tensor([[0.5 + d, 0.3] for d in far], dtype=torch.float64)


# --- the map


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_map_is_the_papers(chunk: int) -> None:
    net, x = filled(SmallNet(), 1).double().eval(), rand(3, 1, 6, 6, seed=2, dtype=torch.float64)
    found = explain.sparsified_smoothgrad(150, 0.3, 0.2)(
        Counter(wrap(net), at_most=chunk), x, torch.tensor([0, 1, 2]), seed=4
    )
    for i in range(3):
        drawn = Rng(4).split(5).at(torch.tensor([i]))
        noise = torch.cat([drawn.split(n).normal((m, 1, 6, 6), x.dtype)[0]
                           for n, m in enumerate((128, 22))])  # fmt: skip
        count = torch.zeros(36, dtype=torch.float64)
        for e in noise:
            at = (x[i] + 0.3 * e)[None].requires_grad_()
            grad = torch.autograd.grad(net(at)[0, i], at)[0].flatten().abs()
            count[grad.argsort(descending=True)[:7]] += 1  # round(0.2 * 36)
        torch.testing.assert_close(found[i].flatten(), count / 150, rtol=0, atol=1e-12)


def test_ties_are_marked_together_and_zeros_never() -> None:
    grads = torch.tensor([[2.0, -2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    assert marks(grads, 2).tolist() == [[True, True, True, False], [False, False, False, True]]
    flat = explain.sparsified_smoothgrad(9)(nn.Linear(5, 2), rand(2, 5, seed=1), 1)
    assert flat.shape == (2, 5) and set(flat.flatten().tolist()) <= {0.0, 1.0}


def test_noise_is_not_cut_at_the_box_nor_measured_by_it() -> None:
    """At a corner of the box half of the copies lie below the hinge only if none is clipped."""
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logit = x[:, 1] + 10 * torch.relu(x[:, 0] - 1)
            return torch.stack([torch.zeros_like(logit), logit], 1)

    for bounds in ((0.0, 1.0), (-5.0, 5.0), (float("-inf"), float("inf"))):
        found = explain.sparsified_smoothgrad(4000, 0.2, 0.5)(wrap(Corner(), bounds=bounds), x, 1)
        assert abs(float(found[0, 0]) - 0.5) < 0.03 and abs(float(found.sum()) - 1) < 1e-12


# --- the certificate


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_of_a_linear_model_all_is_certain_up_to_the_errors_own_radius(share: float) -> None:
    """Marks never change, so v~ is 1 and 0, and the radius is sigma Phi^-1(1 - err)."""
    net = nn.Linear(40, 3).double()
    x, k = rand(4, 40, seed=1, dtype=torch.float64), round(share * 40)
    found = explain.certify(explain.sparsified_smoothgrad(300, 0.2, share), net, x, 2)
    err = math.sqrt(math.log(2 * 40 / 0.05) / 600)
    assert found.err == pytest.approx(err, abs=1e-12)
    edge = 0.2 * float(torch.special.ndtri(torch.tensor(1 - err).double()))
    torch.testing.assert_close(found.radii(k), torch.full((4, k), edge, dtype=torch.float64))
    assert bool((found.overlap(k, 0.999 * edge) == 1).all())
    assert bool((found.overlap(k, 1.001 * edge) == 0).all())


def test_the_radius_is_the_true_one_as_samples_grow_and_never_more() -> None:
    """Half-spaces are the bound's worst case: the true radius is the distance to the hinge."""
    far = (0.02, 0.1, 0.2)
    x, radius = hinge_points(*far), []
    for q in (200, 2000, 20_000):
        found = explain.certify(explain.sparsified_smoothgrad(q, 0.2, 0.5), Hinge(), x, 1)
        assert phi(0.1 / 0.2) == pytest.approx(float(found.map[1, 0]), abs=found.err)
        radius.append(found.radii(1)[:, 0])
        assert bool((radius[-1] <= torch.tensor(far).double() + 1e-9).all())
    assert bool((radius[0] < radius[1]).all() and (radius[1] < radius[2]).all())
    assert float((radius[2] - torch.tensor(far)).abs().max()) < 0.02


def test_a_certificate_that_is_twice_as_wide_would_be_wrong() -> None:
    """Just past the true radius the order of the true means is the other one."""
    true = [phi((0.1 - moved) / 0.2) for moved in (0.099, 0.101)]
    assert true[0] > 0.5 > true[1]
    found = explain.certify(
        explain.sparsified_smoothgrad(20_000, 0.2, 0.5), Hinge(), hinge_points(0.1), 1
    )
    assert 2 * float(found.radii(1)) > 0.101


def by_hand(v: list[float], k: int, radius: float, q: int, sigma: float, p: float) -> float:
    """The paper's count, as its authors' code has it: one feature and its rival at a time."""
    n = len(v)
    ranked = sorted(v, reverse=True)
    err, count = math.sqrt(math.log(2 * n / (1 - p)) / (2 * q)), 0
    normal = torch.distributions.Normal(0.0, 1.0)
    for i in range(1, k + 1):
        if 2 * k - i + 1 > n:
            count += 1
            continue
        if ranked[i - 1] - err <= 0:
            continue
        z = float(normal.icdf(torch.tensor(ranked[i - 1] - err).double())) - 2 * radius / sigma
        count += phi(z) - err > ranked[2 * k - i]
    return count / k


@pytest.mark.parametrize("k", [1, 3, 7, 10, 14, 20])
@pytest.mark.parametrize("radius", [0.0, 0.02, 0.1, 0.3])
def test_the_count_is_the_papers(k: int, radius: float) -> None:
    v = rand(6, 20, seed=k, dtype=torch.float64)
    v[0] = (v[0] > 0.5).double()
    v[1, :10] = 0
    v[2] = 0.4  # all tie: nothing is certain
    found = Certificate(v, 5000, 0.3, 0.9).overlap(k, radius)
    wanted = [by_hand(row.tolist(), k, radius, 5000, 0.3, 0.9) for row in v]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)
    assert float(found[2]) == max(0, 2 * k - 20) / k


def test_no_map_that_the_certificate_allows_overlaps_less() -> None:
    """Every true map within its reach keeps the certain number, the worst arrangement included."""
    sigma, radius, q, k = 0.3, 0.05, 100_000, 5
    v = rand(200, 12, seed=9, dtype=torch.float64)
    found = Certificate(v, q, sigma, 0.95)
    shift, z = radius / sigma, torch.special.ndtri
    top = torch.zeros_like(v, dtype=torch.bool).scatter_(1, v.topk(k, 1).indices, True)
    low, high = z((v - found.err).clamp(0, 1)) - shift, z((v + found.err).clamp(0, 1)) + shift
    least = torch.full((200,), float(k)).double()
    for cut in range(k + 1):
        # The enemy lowers `cut` of the top, the weakest, and raises every outsider.
        lowered = top & (v.masked_fill(~top, 2).argsort(1).argsort(1) < cut)
        after = torch.where(top & ~lowered, z(v.clamp(0, 1)) + shift, torch.where(top, low, high))
        stay = top.gather(1, after.topk(k, 1).indices).sum(1).double()
        least = torch.minimum(least, stay)
    certain = found.overlap(k, radius) * k
    assert bool((certain <= least).all())
    assert bool((certain == least).any()) and 0 < float(certain.mean()) < k


def test_less_is_certain_farther_away_with_fewer_samples_or_asked_more_surely() -> None:
    v, k = rand(4, 50, seed=3, dtype=torch.float64), 10
    found = Certificate(v, 5000, 0.2)
    by_radius = torch.stack([found.overlap(k, r) for r in (0.0, 0.01, 0.03, 0.1, 0.3, 5.0)])
    assert bool((by_radius.diff(dim=0) <= 0).all()) and bool((by_radius[0] > by_radius[3]).all())
    assert bool((by_radius >= 0).all() and (by_radius <= 1).all()) and not by_radius[-1].any()
    by_samples = torch.stack([Certificate(v, q, 0.2).overlap(k, 0.02) for q in (1, 50, 500, 50000)])
    assert bool((by_samples.diff(dim=0) >= 0).all()) and not by_samples[0].any()
    assert bool((Certificate(v, 5000, 0.2, 0.999999).radii(k) < found.radii(k)).all())
    each = torch.tensor([0.0, 0.01, 0.03, 0.1])
    assert found.overlap(k, each).tolist() == by_radius[:4].diagonal().tolist()


def test_an_attack_never_leaves_less_than_was_certain() -> None:
    """L2 changes of the radius, random and uphill against the marks, on a net."""
    net, x = filled(SmallNet(), 1).double().eval(), rand(4, 1, 6, 6, seed=5, dtype=torch.float64)
    y, k, radius = torch.tensor([0, 1, 2, 3]), 8, 0.1
    explainer = explain.sparsified_smoothgrad(1500, 0.3, 0.25)
    found = explain.certify(explainer, net, x, y)
    certain, before = found.overlap(k, radius), found.map
    assert float(certain.mean()) > 0.1
    moves = [rand(*x.shape, seed=s, dtype=x.dtype) - 0.5 for s in range(2)]
    moves += [explain.smoothgrad(20, 0.3)(net, x, y) * s for s in (1, -1)]
    for number, move in enumerate(moves):
        size = move.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        after = explainer(net, x + radius * move / size, y, seed=10 + number)
        assert bool((explain.topk_intersection(before, after, k) >= certain).all())


def test_what_cannot_be_certified_is_refused() -> None:
    net, x = nn.Linear(4, 2), rand(2, 4, seed=1)
    with pytest.raises(KindError, match="no certificate"):
        explain.certify(explain.smoothgrad(), net, x, 1)
    for p in (0.0, 1.0):
        counted = Counter(wrap(net))
        with pytest.raises(InputError, match="p lies between"):
            explain.certify(explain.sparsified_smoothgrad(5), counted, x, 1, p=p)
        assert counted.forwards == 0
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"sigma": 0.0}, {"samples": 0},
                  {"sigma": float("nan")}):  # fmt: skip
        with pytest.raises(InputError):
            explain.sparsified_smoothgrad(**wrong)
    with pytest.raises(KindError, match="torch tensor"):
        explain.certify(explain.sparsified_smoothgrad(5), net, x.numpy(), 1)
    none = explain.certify(explain.sparsified_smoothgrad(5), net, x[:0], 1)
    assert none.overlap(2, 0.1).shape == (0,)
    found = Certificate(x, 100, 0.2)
    for k in (0, 5):
        with pytest.raises(InputError, match="choose 1 to 4"):
            found.overlap(k, 0.1)
    for radius in (-0.1, float("nan"), rand(2, 2, seed=1), torch.full((3,), 0.1)):
        with pytest.raises(InputError, match="radius"):
            found.overlap(2, radius)
