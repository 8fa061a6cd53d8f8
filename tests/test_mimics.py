"""Students of a model's scores: what they learn, how it is measured, what they are good for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import rand
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.access import Access
from foible.core.errors import InputError, KindError, MissingExtra
from foible.explain.mimics import Student
from foible.models import estimator, wrap
from foible.models.standins import stand_in
from foible.parts.statistics import auc
from foible.parts.threats import L2

pytest.importorskip("sklearn")
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor


class Steps(nn.Module):
    """Log-probabilities that a tree of two splits can hold: (N, 2) or (N, 3) of the same kind."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        levels = {2: [[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]],
                  3: [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]}[classes]  # fmt: skip
        self.levels = torch.tensor(levels, dtype=torch.float64).log()

    def forward(self, x: Tensor) -> Tensor:
        place = torch.where(x[:, 0] < 0.5, 0, torch.where(x[:, 2] < 0.4, 1, 2))
        return self.levels[place]


class Sloped(nn.Module):
    """The probability of class 1 is a plane of x, within [0, 1]."""

    weight = (0.3, -0.1, 0.2, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        p = 0.3 + x @ torch.tensor(self.weight).to(x)
        return torch.stack([1 - p, p], 1).log()


def table(rows: int = 400, seed: int = 3) -> Tensor:
    """Rows of tenths and a half, so that the splits of `Steps` can be found exactly."""
    return ((rand(rows, 4, seed=seed, dtype=torch.float64) * 10).floor() + 0.5) / 10


@pytest.mark.parametrize("classes", [2, 3])
def test_a_tree_of_trees_is_the_teacher(classes: int) -> None:
    teacher, x = Steps(classes), table()
    found = explain.mimic(teacher, x, teacher(x).argmax(1))
    assert found.fidelity == pytest.approx(1, abs=1e-9) and found.agreement == 1
    assert found.accuracy == (1, 1) and found.rows == 100
    assert found.model.access == Access.SCORES and found.model.bounds == (0, 1)
    fresh = table(50, seed=9)
    torch.testing.assert_close(found.model(fresh), teacher(fresh), rtol=0, atol=1e-9)
    text = found.rules(["age", "b", "dose", "d"])
    assert "age <= 0.5" in text and "dose <= 0.4" in text and "|   b " not in text


def test_a_plane_is_found_and_told() -> None:
    found = explain.mimic(Sloped(), table(), student="linear")
    assert found.fidelity == pytest.approx(1, abs=1e-9) and found.auc is None
    lines = found.rules(["a", "b", "c", "d"]).splitlines()
    assert lines == ["class 1: 0.3", "  +0.3 * a", "  +0.2 * c", "  -0.1 * b", "  +0.05 * d"]
    net = stand_in(found.model)  # and it is a white box
    assert net is not None
    x = rand(60, 4, seed=5, dtype=torch.float64)
    assert torch.equal(net.scores(x).argmax(1), found.model(x).argmax(1))
    assert torch.equal(found.model(x).argmax(1), Sloped()(x).argmax(1))


def test_figures_are_what_they_say_and_on_rows_that_were_not_taught() -> None:
    """Against a student fitted by hand on the same split, a noisy teacher and false labels."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wild = torch.sin(1e4 * x[:, :2]).abs() * 0.5 + x[:, 2:4] * 0.5
            return (wild / wild.sum(1, keepdim=True)).log()

    x = rand(200, 4, seed=3, dtype=torch.float64)
    y = (rand(200, seed=8) < 0.4).long()
    found = explain.mimic(Noisy(), x, y, DecisionTreeRegressor(random_state=0), held_out=0.5)
    p, held = Noisy()(x).exp(), found.model(x).exp()
    gap = ((p - held) ** 2).sum(1)
    test = (gap > 1e-12).nonzero().flatten()  # a full-grown tree knows the taught ones by heart
    assert len(test) == found.rows == 100
    spread = ((p[test] - p[test].mean(0)) ** 2).sum()
    assert found.fidelity == pytest.approx(float(1 - gap[test].sum() / spread), abs=1e-9)
    assert found.fidelity < 0.6
    same = (p[test].argmax(1) == held[test].argmax(1)).double().mean()
    assert found.agreement == pytest.approx(float(same))
    right = [(s[test].argmax(1) == y[test]).double().mean() for s in (p, held)]
    assert found.accuracy == pytest.approx(tuple(map(float, right)))
    area = [auc(s[test, 1].numpy(), y[test].numpy() == 1) for s in (p, held)]
    assert found.auc == pytest.approx(tuple(area))
    told = str(found)
    assert f"{found.fidelity:.3f}" in told and f"{found.auc[1]:.3f}" in told and "100" in told


def test_the_area_counts_pairs() -> None:
    values = np.array([0.1, 0.4, 0.4, 0.8, 0.4, 0.9])
    positive = np.array([0, 1, 0, 1, 0, 0], bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert auc(values, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(values, positive & False) is None
    assert auc(values, positive | True) is None


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("student", ["boosted", RandomForestRegressor(10, random_state=0)])
def test_other_students(student, classes: int) -> None:
    found = explain.mimic(Steps(classes), table(), student=student)
    scores = found.model(table(20))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(20).double())
    assert found.fidelity > 0.9
    with pytest.raises(KindError, match="no rules"):
        found.rules()


def test_hard_labels_teach_labels() -> None:
    """Of a teacher that is never sure, a student of its labels is: less of it is left."""
    soft, hard = (explain.mimic(Steps(), table(), soft=how) for how in (True, False))
    assert soft.fidelity > 0.99 > 0.7 > hard.fidelity and hard.agreement == 1
    assert set(hard.model(table()).exp().round(decimals=6).flatten().tolist()) == {0.0, 1.0}
    x = table().numpy()
    labels = estimator(
        DecisionTreeClassifier(random_state=0).fit(x, x[:, 0] > 0.5), access=Access.LABELS
    )
    assert explain.mimic(labels, table(), soft=False).agreement == 1
    with pytest.raises(Exception, match="needs SCORES"):
        explain.mimic(labels, table())


@pytest.mark.parametrize("classes", [2, 3])
def test_a_tree_student_is_crossed_exactly_and_carries_over(classes: int) -> None:
    teacher = wrap(Steps(classes))
    x = table(60)
    y = teacher.scores(x).argmax(1)
    found = explain.mimic(teacher, table(), student=DecisionTreeRegressor(max_depth=3))
    moved = attacks.path_flip(found.model, L2())(found.model, x, y)
    assert bool(moved.success.all())
    assert float(moved.distance.max()) < 0.72
    carried = attacks.transfer(attacks.path_flip(found.model, L2(0.75)), found.model)(teacher, x, y)
    assert carried.success_rate > 0.5


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(MissingExtra, match=r"pip install 'foible\[sklearn\]'"):
        explain.mimic(Steps(), table(20))


def test_what_is_no_probability_is_cut() -> None:
    class Wild:
        n_features_in_ = 2

        def predict(self, table: np.ndarray) -> np.ndarray:
            return np.array([[1.2, 1.5, 0.0], [-1.0, -0.5, -2.0], [0.5, -1.0, 0.3]])[: len(table)]

    student, rows = Student(Wild(), 3), np.zeros((3, 2))
    wanted = [[0.5, 0.5, 0.0], [1 / 3] * 3, [0.625, 0.0, 0.375]]
    np.testing.assert_allclose(student.predict_proba(rows), wanted)
    assert student.predict(rows).tolist() == [1, 1, 0]  # as before the cut
    held = estimator(student, bounds=(0.0, 1.0))
    assert held(torch.zeros(3, 2)).argmax(1).tolist() == [1, 1, 0]


def test_what_cannot_be_taught_is_refused() -> None:
    x = table(20)
    with pytest.raises(InputError, match="choose 'tree'"):
        explain.mimic(Steps(), x, student="forest")
    with pytest.raises(KindError, match="is no regressor"):
        explain.mimic(Steps(), x, student=DecisionTreeClassifier())
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(InputError, match="two rows"):
            explain.mimic(Steps(), x, held_out=share)
    given = GradientBoostingRegressor(n_estimators=3)
    explain.mimic(Steps(), x, student=given)
    assert not hasattr(given, "estimators_")  # a clone was fitted
    with pytest.raises(InputError, match="class 2 and the model has classes"):
        explain.mimic(Steps(), x, torch.full((20,), 2))
    with pytest.raises(InputError, match="one score an input"):
        explain.mimic(nn.Sequential(nn.Linear(x.shape[1], 1)).to(x.dtype), x)
    for student in ("tree", "linear"):
        with pytest.raises(InputError, match="names for"):
            explain.mimic(Steps(), x, student=student).rules(["one"])
