"""LEMNA: the fused solver against scipy, the EM against a literal one, planted bent boundaries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import linear, rand, randn
from replicas import lemna as replica
from torch import Tensor, nn

import foible
from foible import explain
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.explain import Lemna, Lime, lemna
from foible.explain.fused import fused_least_squares
from foible.explain.mixture import Fit, em_step, fit_mixture, likelihood
from foible.explain.nearby import hidden_samples
from foible.explain.removal import Grid
from foible.models import wrap
from foible.parts.objectives import Logit


def problem(seed: int, size: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Gram matrices of binary designs whose target is piecewise constant, with noise."""
    x = (rand(count, 60, size, seed=seed) < 0.6).double()
    x = x - x.mean(1, keepdim=True)
    steps = randn(count, 3, seed=seed + 1, dtype=torch.float64).repeat_interleave(-(-size // 3), 1)
    y = (x @ steps[:, :size, None]).squeeze(2) + randn(count, 60, seed=seed + 2).double()
    return x.mT @ x, (x.mT @ y[:, :, None]).squeeze(2)


def variation(b: Tensor) -> Tensor:
    return (b[..., 1:] - b[..., :-1]).abs().sum(-1)


def draw(rows: int, seed: int = 0) -> Draw:
    return Rng(seed).at(torch.arange(rows))


# --- the fused lasso


@pytest.mark.parametrize("size", [2, 9])
def test_the_solver_gives_the_optimum_of_scipy(size: int) -> None:
    gram, cross = problem(3, size)
    bound = torch.tensor([0.0, 0.7, 4.0, 300.0]).double()
    found = fused_least_squares(gram, cross, bound)
    for row in range(4):
        wanted = replica.fused(gram[row].numpy(), cross[row].numpy(), float(bound[row]))
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=2e-6)
    assert variation(found)[3] < 1e-12  # all weights equal at last
    plain = fused_least_squares(gram, cross, None)
    torch.testing.assert_close((gram @ plain[:, :, None]).squeeze(2), cross)
    torch.testing.assert_close(found[0], plain[0])


def test_the_constraint_and_the_penalty_have_the_same_optimum() -> None:
    gram, cross = problem(5, 12)
    penalised = fused_least_squares(gram, cross, torch.full((4,), 2.0).double())
    limit = variation(penalised)
    found = fused_least_squares(gram, cross, limit, limited=True)
    torch.testing.assert_close(found, penalised, rtol=0, atol=1e-9)
    loose = fused_least_squares(gram, cross, 100 * limit, limited=True)
    torch.testing.assert_close(loose, fused_least_squares(gram, cross, None))
    none = fused_least_squares(gram, cross, 0 * limit, limited=True)
    assert variation(none).max() < 1e-12
    level = cross.sum(1) / gram.sum((1, 2))
    torch.testing.assert_close(none, level[:, None].expand(4, 12))


def test_the_start_does_not_change_the_optimum_and_rows_stand_alone() -> None:
    gram, cross = problem(7, 20)
    bound = torch.tensor([0.3, 1.0, 3.0, 9.0]).double()
    found = fused_least_squares(gram, cross, bound)
    wild = fused_least_squares(gram, cross, bound, randn(4, 20, seed=1, dtype=torch.float64))
    torch.testing.assert_close(found, wild, rtol=0, atol=1e-9)
    alone = fused_least_squares(gram[2:3], cross[2:3], bound[2:3])
    torch.testing.assert_close(found[2:3], alone, rtol=0, atol=1e-12)


# --- the mixture


def two_planes(rows: int = 2, n: int = 150, size: int = 6) -> tuple[Tensor, Tensor]:
    x = (rand(rows, n, size, seed=1) < 0.7).double()
    weight = randn(rows, 2, size, seed=2, dtype=torch.float64)
    y = (x @ weight.mT).max(2).values + 0.2 * randn(rows, n, seed=3).double()
    return x, y


def test_one_component_without_penalties_is_least_squares() -> None:
    x, y = two_planes()
    found = fit_mixture(x, y, Fit(1, 0.0, ridge=0.0), draw(2))
    for row in range(2):
        design = np.hstack([np.ones((150, 1)), x[row].numpy()])
        wanted, rest, *_ = np.linalg.lstsq(design, y[row].numpy(), rcond=None)
        np.testing.assert_allclose(found.offset[row, 0], wanted[0], atol=1e-10)
        np.testing.assert_allclose(found.weight[row, 0], wanted[1:], atol=1e-10)
        np.testing.assert_allclose(found.sigma[row, 0] ** 2, rest[0] / 150, rtol=1e-10)
    assert found.share.tolist() == [[1.0], [1.0]]


def test_without_the_fused_penalty_it_is_the_ordinary_mixture() -> None:
    x, y = two_planes(rows=1)
    fit = Fit(2, 0.0, ridge=0.0, steps=1)
    now = fit_mixture(x, y, fit, draw(1))
    planes = [np.append(float(now.offset[0, k]), now.weight[0, k].numpy()) for k in range(2)]
    sides = now.share[0].numpy().copy(), now.sigma[0].numpy().copy()
    wanted = replica.em(x[0].numpy(), y[0].numpy(), planes, *sides, steps=7)
    said = [float(likelihood(now, x, y, fit))]
    for _ in range(7):
        now = em_step(now, x, y, fit, torch.zeros(1))
        said.append(float(now.likelihood))
    np.testing.assert_allclose(said, wanted[3], rtol=1e-10)
    np.testing.assert_allclose(now.weight[0], [p[1:] for p in wanted[0]], atol=1e-8)
    np.testing.assert_allclose(now.offset[0], [p[0] for p in wanted[0]], atol=1e-8)
    np.testing.assert_allclose(now.share[0], wanted[1], atol=1e-10)
    np.testing.assert_allclose(now.sigma[0], wanted[2], atol=1e-10)


@pytest.mark.parametrize(("fused", "limit"), [(0.0, None), (0.1, None), (2.0, None), (0.1, 1.5)])
def test_the_em_never_lowers_the_likelihood(fused: float, limit: float | None) -> None:
    """The penalised one; with a limit there is no penalty, and it is the likelihood itself."""
    x, y = two_planes(rows=4)
    fit = Fit(*((2, 0.0, limit, 0.0) if limit else (3, fused)), steps=1)
    now, said = fit_mixture(x, y, fit, draw(4)), []
    for _ in range(40):
        said.append(likelihood(now, x, y, fit))
        now = em_step(now, x, y, fit, torch.full((4,), 1e-3).double())
        if limit is not None:
            assert variation(now.weight).max() <= limit * (1 + 1e-9)
            bare = torch.logsumexp(now.log_parts(x, y), 1).sum(1)
            torch.testing.assert_close(now.likelihood, bare, rtol=1e-12, atol=0)
    gains = torch.stack(said).diff(dim=0)
    assert gains.min() >= -1e-9 and gains.sum() > 10.0


def test_a_mixture_does_not_depend_on_the_unit_or_on_other_rows() -> None:
    x, y = two_planes(rows=3)
    fit = Fit(2, 0.3)
    found, tenfold = (fit_mixture(x, k * y, replace(fit, ridge=0.0), draw(3)) for k in (1, 10))
    torch.testing.assert_close(tenfold.weight, 10 * found.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tenfold.share, found.share, rtol=0, atol=1e-7)
    many = fit_mixture(x, y, fit, draw(3))
    alone = fit_mixture(x[1:2], y[1:2], fit, Rng(0).at(torch.tensor([1])))
    torch.testing.assert_close(many.weight[1:2], alone.weight, rtol=0, atol=1e-10)
    assert many.steps[1] == alone.steps[0]


# --- planted boundaries


class Bent(nn.Module):
    """The larger of two planes of which pixels are lit; weights lie in blocks of neighbours."""

    def __init__(self, seed: int, size: int = 36) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        cuts = torch.arange(1, 4) * size // 4 + torch.randint(-2, 3, (3,), generator=g)
        block = torch.bucketize(torch.arange(size), cuts, right=True)
        level = torch.zeros(2, 4, dtype=torch.float64)
        for k in range(2):
            on = torch.randperm(4, generator=g)[:2]
            sign = torch.randn(2, generator=g).sign().double()
            level[k, on] = (torch.rand(2, generator=g).double() + 0.5) * sign
        self.weight = level[:, block]
        self.offset = -0.75 * self.weight.sum(1)  # they cross where a quarter is hidden
        if (self.weight.sum(1) + self.offset).argmax() == 1:
            self.weight, self.offset = self.weight.flip(0), self.offset.flip(0)

    def forward(self, x: Tensor) -> Tensor:
        lit = (x.flatten(1) > 0.5).double()
        score = (lit @ self.weight.T + self.offset).amax(1)
        # Two classes, and a little that no plane explains.
        return torch.stack([score + 0.02 * torch.sin(1e3 * score), -score], 1)


def near_error(model: nn.Module, weight: Tensor, seed: int) -> float:
    """The RMSE of a plane through x on inputs with one to four of 36 pixels out."""
    size = 1 + (rand(2000, seed=seed) * 4).long()
    lit = (rand(2000, 36, seed=seed + 1).argsort(1).argsort(1) >= size[:, None]).double()
    with torch.no_grad():
        full = model(torch.ones(1, 1, 6, 6).double())[0, 0]
        gap = model(lit.view(-1, 1, 6, 6))[:, 0] - full - (lit - 1) @ weight.flatten()
    return float(gap.square().mean().sqrt())


def test_lemna_is_nearer_to_a_bent_boundary_than_lime_and_names_its_blocks() -> None:
    ratios, recalls = [], []
    x = torch.ones(1, 1, 6, 6).double()
    for seed in range(7):
        model = Bent(seed)
        maps = [e(wrap(model), x, 0, seed=seed).flatten() for e in
                (lemna(600, 2, segments=1), Lime(600, segments=1))]  # fmt: skip
        error = [near_error(model, w, 100 + seed) for w in maps]
        on = model.weight[0] != 0
        top = [on[w.abs().topk(int(on.sum())).indices].double().mean() for w in maps]
        ratios.append(error[0] / error[1])
        recalls.append(torch.stack(top))
    recall = torch.stack(recalls).mean(0)
    assert np.median(ratios) <= 0.7, ratios
    assert recall[0] >= recall[1] and recall[0] >= 0.9, recall


# --- the explainer


def test_features_are_hidden_as_the_authors_hide_them() -> None:
    x = 0.5 + rand(3, 9, seed=1)
    net = wrap(linear(randn(2, 9, seed=2), randn(2, seed=3)), bounds=(0, 2))
    oracle, index = Oracle(net, 3), torch.arange(3)
    rows = Rows(index, index, x, torch.zeros(3, dtype=torch.int64))
    part, fill = Grid(1).of(rows), torch.tensor(0.0)
    shown, values = hidden_samples(Field(oracle, Logit(), 50), rows, draw(3), 200, part, fill)
    hidden = (1 - shown).sum(2)
    assert (hidden[:, 0] == 0).all()
    assert set(hidden[:, 1:].flatten().tolist()) == {1, 2, 3, 4}
    where = (1 - shown).sum((0, 1))
    assert where.min() > 0.7 * where.max()  # every feature is as likely as any other
    wanted = net((shown * x[:, None]).flatten(0, 1).float())[:, 0].view(3, 200)
    torch.testing.assert_close(values.float(), wanted)
    assert oracle.meter.forwards.tolist() == [200] * 3


@pytest.mark.parametrize("components", [1, 3])
def test_on_a_linear_model_it_is_the_weight(components: int) -> None:
    weight = randn(3, 8, seed=1, dtype=torch.float64)
    net = wrap(linear(weight, randn(3, seed=2, dtype=torch.float64)), bounds=(-5, 5))
    x = rand(4, 8, seed=3, dtype=torch.float64)
    deleted = lemna(100, components, fused=0.0)(net, x, 2)
    torch.testing.assert_close(deleted, weight[2] * x, rtol=1e-3, atol=1e-3)
    scale = tuple(rand(8, seed=4).add(0.1).tolist())
    moved = lemna(100, components, 0.0, noise=scale)
    torch.testing.assert_close(moved(net, x, 2), weight[2].expand(4, 8), rtol=1e-3, atol=1e-3)
    fit = moved.fit(net, x, 2)
    assert (fit.r2 > 0.999).all() and lemna().verb == "delete" and moved.verb == "push"
    torch.testing.assert_close(fit.intercept, net(x)[:, 2], rtol=1e-3, atol=1e-3)


def test_segments_move_together_and_share_a_slope() -> None:
    weight = randn(2, 16, seed=1, dtype=torch.float64)
    net = wrap(linear(weight, torch.zeros(2).double()))
    x = rand(2, 1, 4, 4, seed=2, dtype=torch.float64)
    found = lemna(300, 1, 0.0, noise=0.2, segments=2)(net, x, 1)
    summed = nn.functional.avg_pool2d(weight[1].view(1, 1, 4, 4), 2) * 4
    wanted = summed.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(2, 1, 4, 4)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_constraint_of_the_paper_holds_for_the_map() -> None:
    net = foible.zoo.load("standard")
    x, y = foible.zoo.sample()
    free = lemna(150, 2, segments=7)(net, x[:2], y[:2])
    tied = lemna(150, 2, limit=0.5, segments=7)(net, x[:2], y[:2])
    cells = [m[:, 0, ::7, ::7].flatten(1) for m in (free, tied)]
    assert variation(cells[1]).max() <= 0.5 * (1 + 1e-5) < variation(cells[0]).min()


def test_what_gives_nothing_to_fit_is_refused() -> None:
    for bad in ({"samples": 1}, {"components": 0}, {"fused": -1.0}, {"noise": 0.0},
                {"noise": (1.0, -1.0)}, {"limit": -1.0}, {"baseline": "median"}):  # fmt: skip
        with pytest.raises(InputError):
            lemna(**bad)
    with pytest.raises(InputError, match="one a feature"):
        lemna(10, noise=(0.1, 0.2))(nn.Linear(3, 2), rand(2, 3, seed=1))
    with pytest.raises(InputError, match="at least 2"):
        explain.scale_of(torch.zeros(1, 3))
    assert Lemna() == lemna()


def test_the_spread_of_a_table_is_not_moved_by_outliers() -> None:
    column = randn(4000, seed=1, dtype=torch.float64)
    rare = (torch.arange(4000) % 50 == 0).double()
    table = torch.stack([column, 3 * column, torch.ones(4000).double(), rare], 1)
    table[0, 0] = 1e9
    found = torch.tensor(explain.scale_of(table))
    torch.testing.assert_close(found[:2], torch.tensor([1.0, 3.0]), rtol=0.05, atol=0)
    assert found[2] == pytest.approx(1e-12) and found[3] == pytest.approx(float(rare.std()))
    half = torch.tensor(explain.scale_of(table, 0.5))
    torch.testing.assert_close(half[[0, 1, 3]], found[[0, 1, 3]] / 2)
