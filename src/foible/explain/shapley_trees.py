"""Shapley values of trees in polynomial time, by the shap package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError, MissingExtra
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.explain.base import as_labels, check_inputs, targeted
from foible.models import Estimator


def tree_shap(
    model: Any, x: Tensor, target: Tensor | int | None = None, background: Tensor | None = None
) -> Tensor:
    """Return TreeSHAP (B11, Lundberg et al. 2020): exact Shapley values of a tree or an ensemble.

    model: `foible.models.estimator` of a tree, a forest, or boosted trees that the shap package
    reads (white box). x: (B, *shape), flattened to the features that it was fitted on. target:
    (B,) classes, one int, or None for the predicted ones. background: (N, *shape) rows that stand
    in for removed features (interventional); None lets the tree's own training counts weigh the
    branches that a removed feature would have chosen (path-dependent).

    The map (B, *shape) sums to the class's output at x minus its mean: of the probability for
    trees and forests, of the log-odds for boosted trees. No query; not differentiable, and no
    direction for an attack, because it explains the output and not an objective: `kernel_shap`
    does, on any model.

    Raises MissingExtra without shap, KindError for what is no such model.

    >>> tree_shap(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    Traceback (most recent call last):
    ...
    foible.core.errors.KindError: Linear is no held tree: pass foible.models.estimator(tree), or \
take kernel_shap, which needs scores only
    """
    if not isinstance(model, Estimator):
        raise KindError(
            f"{type(model).__name__} is no held tree: pass foible.models.estimator(tree), or take "
            "kernel_shap, which needs scores only"
        )
    check_inputs(x)
    labels = as_labels(x, target)
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x.detach(), torch.zeros_like(index))
    if len(x) == 0:
        return torch.zeros_like(x)
    y = targeted(Oracle(model, len(x), Access.LABELS), rows, labels).y
    values = _values(model.held, x, background)  # (B, D, entries of classes_)
    entry = np.full(model.classes, -1)
    entry[model.places] = np.arange(len(model.places))
    place = torch.from_numpy(entry)[y.cpu()]
    found = torch.from_numpy(values).gather(2, place.clamp_min(0)[:, None, None].expand(
        -1, values.shape[1], 1)).squeeze(2)  # fmt: skip
    found[place < 0] = 0  # a class that the model has never seen has no output
    return found.to(x).view_as(x)


def _values(held: Any, x: Tensor, background: Tensor | None) -> np.ndarray:
    """Return shap's values (B, D, K), K as `classes_`."""
    try:
        from shap import TreeExplainer  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra(
            "TreeSHAP is the shap package's: pip install 'foible[shap]', or take kernel_shap"
        ) from error
    if background is not None and background.shape[1:] != x.shape[1:]:
        raise InputError(
            f"the background has rows of shape {tuple(background.shape[1:])} and x "
            f"{tuple(x.shape[1:])}: they must be alike"
        )
    data = None if background is None else _table(held, background)
    how = "tree_path_dependent" if data is None else "interventional"
    try:
        explainer = TreeExplainer(held, data=data, feature_perturbation=how)
    except Exception as error:  # shap's own classes of errors, which its versions rename
        raise KindError(
            f"the shap package cannot read {type(held).__name__}: {error}; take kernel_shap, "
            "which needs scores only"
        ) from error
    found = np.asarray(explainer.shap_values(_table(held, x), check_additivity=False))
    if found.ndim == 2:  # boosted trees of two classes: the log-odds of the second
        found = np.stack([-found, found], 2)
    return found


def _table(held: Any, x: Tensor) -> np.ndarray:
    """Return x (B, D) float64, as the model compares it: scikit-learn's trees in float32."""
    flat = x.detach().flatten(1).cpu()
    wanted = getattr(held, "n_features_in_", flat.shape[1])
    if flat.shape[1] != wanted:
        raise InputError(
            f"x has {flat.shape[1]} values a sample and {type(held).__name__} was fitted on "
            f"{wanted}: give the features that it knows, flattened in the same order"
        )
    rounded = hasattr(held, "tree_") or hasattr(held, "estimators_")
    return np.asarray((flat.float() if rounded else flat).double().numpy())
