"""The detector of KDD'18: local surrogates say where a classifier of tables is evaded."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Lasso, LogisticRegression

from foible.core.errors import InputError
from foible.detect import surrogate_detector


def table(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 where the first of five features is above the second."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, 5))
    return x, (x[:, 0] > x[:, 1]).astype(int)


def test_a_linear_models_moves_are_along_its_weights() -> None:
    x, y = table()
    model = LogisticRegression(C=1e4).fit(x, y)
    moves = surrogate_detector(share=0.05).evade(model, x, y)
    unit = model.coef_[0] / np.linalg.norm(model.coef_)
    assert float((moves.direction @ unit).min()) > 0.9
    stayed = (moves.before - moves.length * moves.direction > 0).all(1)
    shift = moves.before[stayed] - moves.x[stayed]
    np.testing.assert_allclose(np.linalg.norm(shift, axis=1), moves.length)
    assert (model.predict_proba(moves.x)[:, 1] < model.predict_proba(moves.before)[:, 1]).all()


def test_the_seeds_are_the_narrowest_of_what_is_found() -> None:
    x, y = table()
    model = LogisticRegression().fit(x, y)
    p = model.predict_proba(x)
    found = [i for i in range(400) if y[i] == 1 and p[i, 1] > p[i, 0]]
    found.sort(key=lambda i: p[i, 1] - p[i, 0])
    moves = surrogate_detector(share=0.1).evade(model, x, y)
    assert moves.index.tolist() == found[: round(0.1 * len(found))]
    np.testing.assert_array_equal(moves.before, x[moves.index])
    away = [min(np.linalg.norm(x[i] - x[j]) for j in range(400) if y[j] == 0) for i in moves.index]
    assert moves.length == pytest.approx(0.5 * np.mean(away))


def test_a_surrogate_is_the_papers_written_slowly() -> None:
    x, y = table(120)
    model = RandomForestClassifier(10, min_samples_leaf=5, random_state=0).fit(x, y)
    made = surrogate_detector(share=0.05, samples=200)
    moves, rng = made.evade(model, x, y, seed=4), np.random.default_rng(4)
    for row, got in zip(moves.before, moves.direction, strict=True):
        away = min(np.linalg.norm(row - other) for other in x[y == 0])
        spread = np.sqrt(away / (np.sqrt(5) * 2.5))  # a variance, whose root is drawn with
        near = np.maximum(row + spread * rng.standard_normal((200, 5)), 0)
        weight = Lasso(alpha=1e-3).fit(near, model.predict(near)).coef_
        np.testing.assert_allclose(got, weight / np.linalg.norm(weight), rtol=1e-9)


def test_the_second_fit_finds_what_was_moved_and_the_first_does_not() -> None:
    (x, y), (fresh, marks) = table(800), table(800, seed=1)
    forest = RandomForestClassifier(10, min_samples_leaf=5, random_state=0)
    made = surrogate_detector(ratio=1.0)
    found = made.fit(forest, x, y)
    assert not hasattr(forest, "estimators_")
    held = made.evade(found.old, fresh, marks, seed=1)
    old, new = found.recall(held.x)
    assert new >= old + 0.2 and old < 0.9
    assert old == pytest.approx(float((found.old.predict(held.x) == 1).mean()))
    assert found.recall(held.random)[0] > old  # a random move evades less
    again = made.fit(forest, x, y)
    np.testing.assert_array_equal(again.moves.x, found.moves.x)


class Flat:
    """A classifier that is sure of everything."""

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return np.tile([0.2, 0.8], (len(x), 1))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.ones(len(x), dtype=int)


def test_where_the_classifier_is_constant_nothing_moves_and_bad_tables_are_refused() -> None:
    x, y = table(50)
    moves = surrogate_detector().evade(Flat(), x, y)
    np.testing.assert_array_equal(moves.x, moves.before)
    made = surrogate_detector()
    with pytest.raises(InputError, match="not negative"):
        made.evade(Flat(), x - 1, y)
    with pytest.raises(InputError, match="labels are 0 and 1"):
        made.evade(Flat(), x, y + 1)
    with pytest.raises(InputError, match="none of class 0"):
        made.evade(Flat(), x, np.ones(50, dtype=int))
    with pytest.raises(InputError, match="share=0"):
        surrogate_detector(share=0)
