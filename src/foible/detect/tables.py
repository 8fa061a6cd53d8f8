"""A classifier of tables, shown where it is evaded: local surrogates, moves, a second fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foible.core.errors import InputError
from foible.detect.heads import sklearn


@dataclass(frozen=True)
class Moves:
    """Rows of class 1 that are nearly taken for class 0, and where an evader would move them.

    index: (n,) their places in the data. x: (n, F) moved. before: (n, F). direction: (n, F) of unit
    length, or 0 where the classifier is constant around a row, which then is not moved. length: of
    every move. random: (n, F) the same rows, moved as far in a random direction: the control.
    """

    index: np.ndarray
    x: np.ndarray
    before: np.ndarray
    direction: np.ndarray
    length: float
    random: np.ndarray


@dataclass(frozen=True)
class Retrained:
    """A classifier before and after it has seen the moves: `old`, `new`, and the `moves` shown."""

    old: Any
    new: Any
    moves: Moves

    def recall(self, x: np.ndarray) -> tuple[float, float]:
        """Return the shares of rows x (n, F) of class 1 that the old and the new one find."""
        old, new = ((model.predict(x) == 1).mean() for model in (self.old, self.new))
        return float(old), float(new)


@dataclass(frozen=True)
class SurrogateDetector:
    """Where a classifier of tables is evaded, and its second fit; made by `surrogate_detector`."""

    share: float = 0.1
    ratio: float = 0.5
    samples: int = 600
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.ratio > 0 and self.samples >= 10 and self.alpha > 0):
            raise InputError(
                f"share={self.share}, ratio={self.ratio}, samples={self.samples}, "
                f"alpha={self.alpha}: a share in (0, 1], ten samples at least, the rest above 0"
            )

    def evade(self, classifier: Any, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Moves:
        """Return the moves of a fitted classifier's evasion-prone rows.

        classifier: of scikit-learn's kind, with `predict_proba`, classes 0 and 1. x: (N, F) float,
        not negative. y: (N,) of 0 and 1.
        """
        x, y = checked(x, y)
        shares = classifier.predict_proba(x)
        found = ((y == 1) & (shares[:, 1] > shares[:, 0])).nonzero()[0]
        if len(found) == 0 or not (y == 0).any():
            raise InputError("the classifier finds no row of class 1, or there is none of class 0")
        edge = shares[found, 1] - shares[found, 0]
        prone = found[np.argsort(edge, kind="stable")[: max(1, round(self.share * len(found)))]]
        benign = x[y == 0]
        away = np.stack([np.sqrt(((row - benign) ** 2).sum(1)).min() for row in x[prone]])
        rng = np.random.default_rng(seed)
        direction = np.stack(
            [self._slope(classifier, row, d, rng) for row, d in zip(x[prone], away, strict=True)]
        )
        length = float(away.mean() * self.ratio)
        other = rng.normal(size=direction.shape)
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        before = x[prone]
        moved, control = (np.clip(before - length * d, 0, None) for d in (direction, other))
        return Moves(prone, moved, before, direction, length, control)

    def fit(self, classifier: Any, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Retrained:
        """Fit a classifier, find its moves, and fit another with them added as class 1.

        classifier: not fitted; both are clones of it, and it is left as it was.
        """
        clone = sklearn("base").clone
        x, y = checked(x, y)
        old = clone(classifier).fit(x, y)
        moves = self.evade(old, x, y, seed)
        more = np.concatenate([y, np.ones(len(moves.x), dtype=y.dtype)])
        return Retrained(old, clone(classifier).fit(np.concatenate([x, moves.x]), more), moves)

    def _slope(self, classifier: Any, row: np.ndarray, away: float, rng: Any) -> np.ndarray:
        """Return the unit direction (F,) in which the surrogate of a row rises."""
        # As in the authors' code this is a variance: the deviation is its root.
        variance = max(away, 1e-12) / (np.sqrt(len(row)) * 2.5)
        near = rng.normal(row, np.sqrt(variance), (self.samples, len(row))).clip(0, None)
        lasso = sklearn("linear_model").Lasso(alpha=self.alpha)
        weight: np.ndarray = lasso.fit(near, classifier.predict(near)).coef_
        size = np.linalg.norm(weight)
        return weight / size if size > 0 else weight


def checked(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a table and labels as arrays; refuse what is none."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    if x.ndim != 2 or y.shape != (len(x),) or not np.isfinite(x).all() or (x < 0).any():
        raise InputError(
            f"a table of shape {x.shape} with labels {y.shape}: give (N, F) finite numbers that "
            "are not negative (scale them to [0, 1]) and one label a row"
        )
    if not set(np.unique(y).tolist()) <= {0, 1}:
        raise InputError("labels are 0 and 1, 1 for what is looked for")
    return x, y


def surrogate_detector(
    share: float = 0.1, ratio: float = 0.5, samples: int = 600, alpha: float = 1e-3
) -> SurrogateDetector:
    """Return the detector with interpreted moves for tables (T12, Liu et al. 2018, KDD).

    Of the rows of class 1 that a classifier finds, the `share` that it finds most narrowly are
    prone to evasion. Around each a linear model (LASSO with penalty `alpha`, on `samples` Gaussian
    points) says which features give it away; moved against them by `ratio` times the mean distance
    to the nearest row of class 0 it is shown to a second fit, as class 1. `.fit(classifier, x, y)`
    does all of it, `.evade(fitted, x, y)` makes moves of rows that were kept back. The second fit
    knows moves of this length; others are to be measured.

    >>> from sklearn.linear_model import LogisticRegression
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(size=(200, 3)); y = (x[:, 0] > 0.5).astype(int)
    >>> made = surrogate_detector().fit(LogisticRegression(), x, y)
    >>> bool(made.moves.direction[:, 0].mean() > 0.9)
    True
    """
    return SurrogateDetector(share, ratio, samples, alpha)
