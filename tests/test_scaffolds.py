"""A model that hides from LIME and SHAP, and the questions that it cannot tell from use."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import filled, linear, rand, randn
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import attacks, explain
from foible.attacks.scaffolds import Noise, Perturbation, Scaffold, Substitution
from foible.core.access import Access
from foible.core.errors import InputError, MissingExtra, ModelError
from foible.models import wrap

SENSITIVE, UNRELATED = 4, 5


def looks(column: int, wide: int = 6) -> nn.Module:
    """Two classes, told apart by one column alone."""
    weight = torch.zeros(2, wide, dtype=torch.float64)
    weight[0, column], weight[1, column] = -1, 1
    return linear(weight, torch.zeros(2, dtype=torch.float64))


def table(n: int, seed: int) -> Tensor:
    """Four columns of two hidden causes, and two coins of -1 and 1."""
    causes, mix = randn(n, 2, seed=seed), randn(2, 4, seed=70)
    columns = causes @ mix + 0.05 * randn(n, 4, seed=seed + 1)
    coins = 2.0 * (rand(n, 2, seed=seed + 2) < 0.5) - 1
    return torch.cat([columns, coins], 1).double()


@pytest.fixture(scope="module")
def against_lime() -> Scaffold:
    data = table(300, 1)
    return attacks.scaffolding(looks(SENSITIVE), looks(UNRELATED), data, Noise(0.3, 6), trees=30)


@pytest.fixture(scope="module")
def against_shap() -> Scaffold:
    how = Substitution(copies=4)
    return attacks.scaffolding(looks(SENSITIVE), looks(UNRELATED), table(300, 1), how, trees=30)


def top(explainer: explain.Explanation, model: object, x: Tensor) -> Tensor:
    return explainer(model, x, 1).abs().argmax(1)


def test_every_row_gets_one_of_the_two_answers_by_the_forest(against_lime: Scaffold) -> None:
    x = torch.cat([table(40, 5), 2 * randn(40, 6, seed=9, dtype=torch.float64)])
    real = np.stack([tree.predict(x.float().numpy()) for tree in against_lime.forest.estimators_])
    real = torch.from_numpy(real.mean(0)) >= 0.5
    assert 40 <= int(real.sum()) <= 50  # fully grown trees vote, so that their mean is the share
    assert torch.equal(against_lime.real(x), real)
    got = against_lime(x)
    assert torch.equal(got[real], looks(SENSITIVE)(x)[real])
    assert torch.equal(got[~real], looks(UNRELATED)(x)[~real])


def test_lime_is_deceived_on_rows_that_were_not_fitted(against_lime: Scaffold) -> None:
    x, lime = table(40, 5), explain.tabular_lime(200)
    assert (
        float((against_lime(x).argmax(1) == looks(SENSITIVE)(x).argmax(1)).double().mean()) >= 0.95
    )
    assert bool((top(lime, looks(SENSITIVE), x) == SENSITIVE).all())
    assert float((top(lime, against_lime, x) == UNRELATED).double().mean()) >= 0.9
    assert against_lime.detection(x) >= 0.9


def test_shap_is_deceived_too(against_shap: Scaffold) -> None:
    x = table(40, 5)
    shap = explain.kernel_shap(64, 1, tuple(table(300, 1).mean(0).tolist()))
    assert bool((top(shap, looks(SENSITIVE), x) == SENSITIVE).all())
    assert float((top(shap, against_shap, x) == SENSITIVE).double().mean()) <= 0.5
    assert against_shap.detection(x) >= 0.75


@pytest.mark.parametrize("made", ["against_lime", "against_shap"])
def test_real_rows_see_through_it(made: str, request: pytest.FixtureRequest) -> None:
    x, scaffold = table(40, 5), request.getfixturevalue(made)
    found = top(explain.data_lime(table(300, 1), 150, 1.0), scaffold, x)
    assert float((found == SENSITIVE).double().mean()) >= 0.95


def test_the_noise_is_limes() -> None:
    data = table(50, 3)
    made = Noise(0.3, 40).rows(data, torch.Generator().manual_seed(1))
    assert made.shape == (2000, 6)
    moved = made - data.repeat(40, 1)
    torch.testing.assert_close(moved.std(0), 0.3 * data.std(0), rtol=0.06, atol=0)
    torch.testing.assert_close(moved.mean(0), torch.zeros(6).double(), rtol=0, atol=0.05)


def test_the_substitution_is_shaps() -> None:
    """Each entry is its row's or the column's of some background row; D draws with replacement."""
    data, background = table(50, 3), randn(3, 6, seed=4, dtype=torch.float64)
    how = Substitution(tuple(map(tuple, background.tolist())), 40)
    made = how.rows(data, torch.Generator().manual_seed(1))
    own = made == data.repeat(40, 1)
    other = (made[:, None] == background).any(1)
    assert bool((own | other).all())
    assert float((~own).double().mean()) == pytest.approx(1 - (5 / 6) ** 6, abs=0.02)
    each = (made[:, None] == background).double().mean((0, 2))
    torch.testing.assert_close(each, each.mean().expand(3), rtol=0.06, atol=0)


def test_the_background_is_the_mean_and_ten_centres() -> None:
    data = torch.cat([table(20, 3), table(20, 8) + 50])
    centres = Substitution()._background(data)
    assert centres.shape == (11, 6)
    torch.testing.assert_close(centres[0], data.mean(0))
    # A centre is the mean of the rows that are nearest to it.
    nearest = torch.cdist(data, centres[1:]).argmin(1)
    for j in nearest.unique():
        torch.testing.assert_close(centres[1:][j], data[nearest == j].mean(0))


def test_a_perturbed_row_that_is_real_is_no_sign_of_an_explainer() -> None:
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    with pytest.raises(InputError, match="nothing to tell apart"):
        attacks.scaffolding(looks(0, 4), looks(1, 4), every, Substitution(((0.0, 0.0, 1.0, 1.0),)))


def test_the_seed_fixes_it_and_the_models_stay_as_they_are() -> None:
    one, two = (filled(nn.Linear(6, 2), s).train() for s in (1, 2))
    before = everything_about(one), everything_about(two)
    made = [
        attacks.scaffolding(one, two, table(60, 1).float(), Noise(0.3, 2), trees=5, seed=s)
        for s in (3, 3, 4)
    ]
    x = table(60, 8).float() + 0.05
    explain.tabular_lime(20)(made[0], x[:3], 1)
    for net, kept in zip((one, two), before, strict=True):
        after = everything_about(net)
        assert [k for k in kept if not same(kept[k], after[k])] == []
    seen = [m.forest.predict_proba(x.numpy())[:, 1].tolist() for m in made]
    assert seen[0] == seen[1] != seen[2]
    assert made[0].access == Access.SCORES and made[0].bounds == (0.0, 1.0)


class Shifted(Perturbation):
    """A perturbation of one's own."""

    def rows(self, data: Tensor, generator: torch.Generator) -> Tensor:
        return data + 5


def test_a_perturbation_of_ones_own() -> None:
    data = table(60, 1)
    hidden = attacks.scaffolding(looks(SENSITIVE), looks(UNRELATED), data, Shifted(), trees=5)
    assert torch.equal(hidden(data), looks(SENSITIVE)(data))
    assert torch.equal(hidden(data + 5), looks(UNRELATED)(data + 5))


def test_what_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(40, 1)
    for bad, match in (
        (lambda: attacks.scaffolding(looks(0), looks(1), data, "shape"), "choose 'lime' or 'shap'"),
        (lambda: attacks.scaffolding(looks(0), looks(1), data[0]), "batch"),
        (lambda: attacks.scaffolding(looks(0), looks(1), data[:1]), "at least 2"),
        (lambda: attacks.scaffolding(looks(0), looks(1), data, threshold=0.0), "threshold"),
        (lambda: Noise(0.0), "above 0"),
        (lambda: Substitution(copies=0), "at least 1"),
        (lambda: Substitution(((1.0, 2.0),)).rows(data, torch.Generator()), "one baseline a row"),
    ):
        with pytest.raises(InputError, match=match):
            bad()
    three = wrap(linear(torch.zeros(3, 6).double(), torch.zeros(3).double()))
    with pytest.raises(ModelError, match="the same classes"):
        attacks.scaffolding(looks(0), three, data, Noise(0.3, 1), trees=2)(data)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(MissingExtra, match=r"foible\[sklearn\]"):
        attacks.scaffolding(looks(0), looks(1), data)


def test_data_lime_is_its_regression() -> None:
    """By hand: the nearest rows, the kernel, and weighted least squares with a ridge."""
    data, x = table(80, 1), table(5, 7)
    net = filled(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), 3).double()
    scale = explain.scale_of(data)
    fit = explain.data_lime(data, 21).fit(net, x, 1)
    for i, row in enumerate(x):
        far = [float((((row - other) / torch.tensor(scale)) ** 2).sum()) for other in data]
        near = data[torch.tensor(far).argsort()[:20]]
        at = torch.cat([row[None], near])
        z = (at - row) / torch.tensor(scale).double()
        root = torch.exp(-(z**2).sum(1) / (0.75**2 * 6)).sqrt().sqrt()
        design = torch.cat([torch.ones(21, 1).double(), z], 1) * root[:, None]
        ridge = torch.eye(7).double()
        ridge[0, 0] = 0
        right = design.T @ (net(at)[:, 1].detach() * root)
        found = torch.linalg.solve(design.T @ design + ridge, right)
        torch.testing.assert_close(fit.weights[i], found[1:], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(fit.intercept[i], found[0], rtol=1e-5, atol=1e-7)


def test_data_lime_asks_about_real_rows_only() -> None:
    data, x = table(80, 1), table(3, 7)
    asked: list[Tensor] = []

    class Listens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.clone())
            return x[:, :2]

    explain.data_lime(data, 30)(Listens(), x, 1)
    known = {tuple(row) for row in torch.cat([data, x]).tolist()}
    assert {tuple(row) for row in torch.cat(asked).tolist()} <= known
    with pytest.raises(InputError, match="real rows of the same table"):
        explain.data_lime(data[:, :4])(Listens(), x, 1)
    with pytest.raises(InputError, match="scale has 2 values"):
        explain.data_lime(data, 30, (1.0, 2.0))(Listens(), x, 1)
    with pytest.raises(InputError, match="at least 2"):
        explain.data_lime(data[:1], 30, 1.0)
