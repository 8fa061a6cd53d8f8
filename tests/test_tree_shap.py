"""TreeSHAP beside brute force over all sets, on trees, forests and boosted trees."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import rand
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from foible import explain
from foible.core.errors import InputError, KindError, MissingExtra
from foible.models import estimator

SIZE = 6


def data(classes: int) -> tuple[np.ndarray, np.ndarray]:
    table = rand(150, SIZE, seed=1).double().numpy()
    score = table[:, 0] + table[:, 1] * table[:, 2] + 0.3 * (table[:, 3] > 0.5)
    edges = np.quantile(score, np.arange(1, classes) / classes)
    return table, np.searchsorted(edges, score)


def shapley(worth: Callable[[frozenset[int]], np.ndarray]) -> np.ndarray:
    """(D, K) from the definition."""
    held = {
        frozenset(s): worth(frozenset(s))
        for k in range(SIZE + 1)
        for s in combinations(range(SIZE), k)
    }
    values = np.zeros((SIZE, len(held[frozenset()])))
    for i in range(SIZE):
        for s in held:
            if i not in s:
                n = len(s)
                w = math.factorial(n) * math.factorial(SIZE - n - 1) / math.factorial(SIZE)
                values[i] += w * (held[s | {i}] - held[s])
    return values


def by_path(tree, x: np.ndarray, present: frozenset[int], node: int = 0) -> np.ndarray:
    """The tree's expectation: a removed feature follows both branches, by the training counts."""
    left, right = tree.children_left[node], tree.children_right[node]
    if left < 0:
        value = tree.value[node, 0]
        return value / value.sum()
    if tree.feature[node] in present:
        below = np.float32(x[tree.feature[node]]) <= tree.threshold[node]
        return by_path(tree, x, present, left if below else right)
    counts = tree.weighted_n_node_samples
    parts = [counts[child] * by_path(tree, x, present, child) for child in (left, right)]
    return (parts[0] + parts[1]) / counts[node]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_tree_has_the_values_of_brute_force(depth: int, classes: int) -> None:
    table, y = data(classes)
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(table, y)
    x = torch.from_numpy(table[:4])
    for c in range(classes):
        found = explain.tree_shap(estimator(tree), x, c)
        for i in range(4):
            expected = shapley(lambda s, i=i: by_path(tree.tree_, table[i], s))[:, c]
            assert np.abs(found[i].numpy() - expected).max() < 1e-9


def test_a_background_takes_the_place_of_what_is_removed() -> None:
    table, y = data(3)
    forest = RandomForestClassifier(4, max_depth=4, random_state=0).fit(table, y)
    x, background = torch.from_numpy(table[:2]), torch.from_numpy(table[50:60])
    label = torch.tensor([2, 0])
    found = explain.tree_shap(estimator(forest), x, label, background)

    def worth(i: int, present: frozenset[int]) -> np.ndarray:
        mixed = table[50:60].copy()
        mixed[:, list(present)] = table[i, list(present)]
        return forest.predict_proba(mixed).mean(0)

    for i in range(2):
        expected = shapley(lambda s, i=i: worth(i, s))[:, int(label[i])]
        assert np.abs(found[i].numpy() - expected).max() < 1e-6
    gap = forest.predict_proba(table[:2]) - forest.predict_proba(table[50:60]).mean(0)
    assert np.abs(found.sum(1).numpy() - gap[[0, 1], label]).max() < 1e-6


def test_kernel_shap_agrees_on_the_log_odds_of_boosted_trees() -> None:
    """One baseline row is a background of one: both then explain the same log-odds."""
    table, y = data(2)
    boosted = GradientBoostingClassifier(n_estimators=5, max_depth=3, random_state=0).fit(table, y)
    x, base = torch.from_numpy(table[:3]).float().double(), torch.from_numpy(table[70:71])
    base = base.float().double()
    trees = explain.tree_shap(estimator(boosted), x, 1, base)
    kernel = explain.kernel_shap(64, baseline=base[0])
    both = kernel(estimator(boosted), x, 1) - kernel(estimator(boosted), x, 0)
    torch.testing.assert_close(trees, both, rtol=0, atol=1e-6)
    torch.testing.assert_close(explain.tree_shap(estimator(boosted), x, 0, base), -trees)


def test_classes_shapes_and_the_predicted_label() -> None:
    table, y = data(2)
    gaps = np.array([1, 4])[y]
    held = estimator(DecisionTreeClassifier(max_depth=3, random_state=0).fit(table, gaps))
    x = torch.from_numpy(table[:5]).float().view(5, 2, 3)
    maps = explain.tree_shap(held, x)
    assert maps.shape == x.shape and maps.dtype == x.dtype
    assert torch.equal(maps, explain.tree_shap(held, x, held(x).argmax(1)))
    torch.testing.assert_close(explain.tree_shap(held, x, 1), -explain.tree_shap(held, x, 4))
    assert bool((explain.tree_shap(held, x, 2) == 0).all())
    assert explain.tree_shap(held, x[:0]).shape == (0, 2, 3)


def test_what_it_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table, y = data(3)
    x = torch.from_numpy(table[:2])
    boosted = GradientBoostingClassifier(n_estimators=2, random_state=0).fit(table, y)
    with pytest.raises(KindError, match="cannot read GradientBoosting"):
        explain.tree_shap(estimator(boosted), x)
    tree = estimator(DecisionTreeClassifier(max_depth=2).fit(table, y))
    with pytest.raises(InputError, match="fitted on 6"):
        explain.tree_shap(tree, x[:, :4], 0)
    with pytest.raises(InputError, match="background has rows"):
        explain.tree_shap(tree, x, 0, x[:, :4])
    with pytest.raises(InputError, match="classes"):
        explain.tree_shap(tree, x, 3)
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(MissingExtra, match=r"foible\[shap\]"):
        explain.tree_shap(tree, x, 0)
