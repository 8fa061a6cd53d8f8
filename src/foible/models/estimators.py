"""Classifiers in the manner of scikit-learn as models: labels or scores, and no gradients."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError, KindError, ModelError

_MOST_CLASSES, _CHUNK = 10_000, 1024


class Estimator:
    """A fitted classifier with what an attack must know about it; made by `estimator`.

    Attributes: held (the classifier), bounds, access, classes (how many), places (the class
    number of each entry of `classes_`). Calling it gives scores (B, K).
    """

    def __init__(self, held: Any, bounds: tuple[float, float], access: Access) -> None:
        self.held, self.access = held, access
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.places = _places(held)
        self.classes = int(self.places.max()) + 1

    def __call__(self, x: Tensor) -> Tensor:
        """Return scores (B, K), as `scores` does."""
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        """Return log-probabilities (B, K); with labels only, 1 for the label and 0 elsewhere.

        The label is always what `predict` says: where the largest probability is another class's
        (which happens in scikit-learn's SVC), the two change places.
        """
        table = x.detach().flatten(1).cpu().double().numpy()
        wanted = getattr(self.held, "n_features_in_", table.shape[1])
        if table.shape[1] != wanted:
            raise InputError(
                f"x has {table.shape[1]} values a sample and {type(self.held).__name__} was fitted "
                f"on {wanted}: give the features that it knows, images flattened in the same order"
            )
        label = torch.from_numpy(self._labels(table))
        if self.access == Access.LABELS:
            scores = torch.zeros(len(table), self.classes, dtype=x.dtype)
            return scores.scatter_(1, label[:, None], 1.0).to(x.device)
        given = torch.from_numpy(np.asarray(self._ask("predict_proba", table), dtype=np.float64))
        if given.shape != (len(table), len(self.places)):
            raise ModelError(
                f"predict_proba gave shape {tuple(given.shape)} for {len(table)} samples and "
                f"{len(self.places)} classes: classifiers of several outputs are not supported"
            )
        scores = torch.full((len(table), self.classes), 1e-30, dtype=torch.float64)
        scores[:, torch.from_numpy(self.places)] = given.clamp_min(1e-30)
        scores = scores.log().to(x.dtype)
        top = scores.argmax(1)
        wrong = (top != label).nonzero().squeeze(1)
        if len(wrong):
            first, second = scores[wrong, top[wrong]], scores[wrong, label[wrong]]
            # Above even where the two were equal: the first of equals would win.
            scores[wrong, label[wrong]] = first + 1e-6 * (1 + first.abs())
            scores[wrong, top[wrong]] = second
        return scores.to(x.device)

    def session(self, seed: int = 0, *, freeze: bool = True) -> AbstractContextManager[None]:
        """Return a context that does nothing: there is no mode and no random state to hold."""
        return nullcontext()

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one call holds."""
        return _CHUNK

    def _labels(self, table: np.ndarray) -> np.ndarray:
        found = np.asarray(self._ask("predict", table))
        if found.shape != (len(table),):
            raise ModelError(
                f"predict gave shape {found.shape} for {len(table)} samples: classifiers of "
                "several outputs are not supported"
            )
        known = np.asarray(self.held.classes_)
        order = np.argsort(known, kind="stable")
        return np.asarray(self.places[order[np.searchsorted(known[order], found)]])

    def _ask(self, method: str, table: np.ndarray) -> Any:
        if not hasattr(self.held, "feature_names_in_"):
            return getattr(self.held, method)(table)
        with warnings.catch_warnings():
            # It was fitted on named columns and says at every call that an array has no names.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            return getattr(self.held, method)(table)


def estimator(
    held: Any, bounds: tuple[float, float] = (0, 1), access: Access | None = None
) -> Estimator:
    """Hold a fitted scikit-learn classifier, or anything that speaks like one, as a model.

    held: has `classes_` and `predict`, and may have `predict_proba`; a pipeline does. Inputs are
    flattened to (B, D) float64. bounds: the smallest and largest legal value of a feature.
    access: SCORES where there are probabilities, else LABELS; LABELS can be asked for. It never
    gives gradients: attack it with a score-based or decision-based attack, by `transfer` from a
    `substitute`, or, a tree, by `path_flip`.

    Class numbers: whole numbers from 0 in `classes_` are the classes as they are, gaps included;
    any other labels (words, -1 and 1) are numbered by their place in `classes_`.

    Raises KindError for what is no fitted classifier, InputError for bounds in the wrong order and
    for more access than it has.

    >>> class Signs:
    ...     classes_ = np.array([0, 1])
    ...     def predict(self, table):
    ...         return (table[:, 0] > 0.5).astype(int)
    >>> estimator(Signs())(torch.tensor([[0.2, 0.0], [0.7, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(held, nn.Module) or not hasattr(held, "predict"):
        raise KindError(
            f"{type(held).__name__} is no classifier with predict: pass a fitted scikit-learn "
            "classifier; a torch module is held by foible.wrap"
        )
    if not hasattr(held, "classes_"):
        raise KindError(f"{type(held).__name__} has no classes_: fit it first (classifiers only)")
    if not bounds[0] < bounds[1]:
        raise InputError(f"bounds are {tuple(bounds)}: the first must be below the second")
    most = Access.SCORES if hasattr(held, "predict_proba") else Access.LABELS
    if access is not None and access > most:
        raise InputError(f"{type(held).__name__} gives {most.name} at most, not {access.name}")
    return Estimator(held, bounds, most if access is None else access)


def _places(held: Any) -> np.ndarray:
    """Return the class number (K,) of each entry of `classes_`."""
    known = np.asarray(held.classes_)
    if known.ndim != 1 or (known.dtype == object and not all(isinstance(k, str) for k in known)):
        raise KindError(
            f"{type(held).__name__}.classes_ is not one list of labels: classifiers of several "
            "outputs are not supported"
        )
    if known.dtype.kind in "iufb":
        whole = known.astype(np.int64)
        if (whole == known).all() and whole.min() >= 0:
            if whole.max() >= _MOST_CLASSES:
                raise InputError(
                    f"classes_ holds {whole.max()}: number the classes from 0 before fitting"
                )
            return whole
    return np.arange(len(known))
