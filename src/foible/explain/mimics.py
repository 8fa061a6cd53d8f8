"""Mimics: a model that can be read, taught by the scores of one that cannot."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError, MissingExtra
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.explain.base import as_labels, check_classes, check_inputs
from foible.models import Estimator, as_model, estimator
from foible.parts.statistics import auc

STUDENTS = ("tree", "linear", "boosted")


class Student:
    """A fitted regressor of probabilities that speaks like a classifier; `estimator` holds it.

    regressor: predicts (N,), the probability of the second of two classes, or (N, K).
    """

    def __init__(self, regressor: Any, classes: int) -> None:
        self.regressor, self.classes_ = regressor, np.arange(classes)
        self.n_features_in_ = regressor.n_features_in_
        tree, plane = getattr(regressor, "tree_", None), getattr(regressor, "coef_", None)
        if tree is not None:
            # What `foible.attacks.path_flip` reads of a classifier's tree: shares (nodes, 1, K).
            names = ("children_left", "children_right", "feature", "threshold")
            read = {name: getattr(tree, name) for name in names}
            value = np.asarray(tree.value)[:, :, 0]
            self.tree_ = SimpleNamespace(**read, value=_shares(value, classes)[:, None])
        if plane is not None:
            # Above 0 a plane of two classes speaks for the second.
            self.coef_ = np.atleast_2d(plane)
            self.intercept_ = np.atleast_1d(regressor.intercept_) - (0.5 if classes == 2 else 0)

    def predict_proba(self, table: np.ndarray) -> np.ndarray:
        """Return probabilities (N, K): cut to [0, 1], then scaled to the sum 1."""
        return _shares(self._raw(table), len(self.classes_))

    def predict(self, table: np.ndarray) -> np.ndarray:
        """Return the classes (N,) of the largest outputs, before they are cut."""
        raw = self._raw(table)
        if raw.shape[1] == 1:
            return np.asarray((raw[:, 0] > 0.5).astype(np.int64))
        return np.asarray(raw.argmax(1))

    def _raw(self, table: np.ndarray) -> np.ndarray:
        found = np.asarray(self.regressor.predict(table), dtype=np.float64)
        return found[:, None] if found.ndim == 1 else found


def _shares(raw: np.ndarray, classes: int) -> np.ndarray:
    cut = raw.clip(0, 1)
    if cut.shape[1] == 1:
        return np.concatenate([1 - cut, cut], 1)
    total = cut.sum(1, keepdims=True)
    return np.where(total > 0, cut / np.where(total > 0, total, 1), 1 / classes)


@dataclass(frozen=True)
class Mimic:
    """A student and how far it can be believed, measured on `rows` rows that it has not seen.

    model: the student, held with SCORES access: it can be attacked and explained as any model.
    fidelity: R^2 of its probabilities to the teacher's, all classes together; agreement: the share
    of rows with the teacher's label. accuracy, auc: (teacher, student) against the true labels,
    where these were given; auc: the mean over classes, each against the rest.
    """

    model: Estimator
    fidelity: float
    agreement: float
    rows: int
    accuracy: tuple[float, float] | None = None
    auc: tuple[float, float] | None = None

    def __str__(self) -> str:
        told = f"fidelity R^2 {self.fidelity:.3f}, same label {self.agreement:.3f}"
        for name, pair in (("accuracy", self.accuracy), ("AUC", self.auc)):
            if pair is not None:
                told += f"; {name} {pair[1]:.3f}, the teacher's {pair[0]:.3f}"
        return f"{told} ({self.rows} held-out rows)"

    def rules(self, names: list[str] | None = None) -> str:
        """Return the tree as text, or a plane's weights, the largest first.

        names: of the features, in the order of the flattened input. A value is the probability of
        the second of two classes, or of each class. Raises KindError for a student of another kind.
        """
        regressor = self.model.held.regressor
        names = names or [f"x{i}" for i in range(regressor.n_features_in_)]
        if len(names) != regressor.n_features_in_:
            raise InputError(
                f"{len(names)} names for {regressor.n_features_in_} features: give one a feature"
            )
        if hasattr(regressor, "tree_"):
            tell = _sklearn().export_text
            return str(tell(regressor, feature_names=list(names), max_depth=100))
        if not hasattr(regressor, "coef_"):
            raise KindError(
                f"{type(regressor).__name__} has no rules that can be read: mimic by a "
                '"tree" or a "linear" student'
            )
        lines, planes = [], np.atleast_2d(regressor.coef_)
        for place, (plane, level) in enumerate(
            zip(planes, np.atleast_1d(regressor.intercept_), strict=True)
        ):
            lines.append(f"class {place if len(planes) > 1 else 1}: {level:.3g}")
            order = np.argsort(-np.abs(plane), kind="stable")
            lines += [f"  {plane[i]:+.3g} * {names[i]}" for i in order]
        return "\n".join(lines)


def mimic(
    teacher: Any,
    x: Tensor,
    y: Tensor | None = None,
    student: Any = "tree",
    *,
    soft: bool = True,
    held_out: float = 0.25,
    seed: int = 0,
) -> Mimic:
    """Return a student that mimics a model's scores (B7, Che et al. 2016; survey 3.1.2).

    "Interpretable Deep Models for ICU Outcome Prediction", whose students are boosted trees; the
    teacher may be any model here. teacher: with SCORES access. x: (N, *shape) rows to ask it about,
    one forward each; no labels are needed to teach. y: (N,) true labels, only to measure with.
    student: "tree" (of depth 5 at most), "linear", "boosted" (100 trees a class), or a scikit-learn
    regressor, which is cloned. It learns the teacher's probabilities by squared error (of the
    second class, where there are two); soft=False: 1 and 0 of its labels, the control. held_out:
    the share of the rows that is only measured on. seed: of that choice, and of the student.

    The student is a white box in the teacher's stead: `foible.attacks.path_flip` crosses a tree
    exactly, and `transfer` carries what was found back to the teacher.

    Raises MissingExtra without scikit-learn, KindError for another student, InputError for too few
    rows.
    """
    check_inputs(x)
    held, truth = as_model(teacher), as_labels(x, y)
    if not 0 < held_out < 1 or min(len(x) * held_out, len(x) * (1 - held_out)) < 2:
        raise InputError(f"held_out={held_out} of {len(x)} rows: both parts need two rows at least")
    fresh = _regressor(student, seed)
    wanted = _answers(held, x, soft, seed)
    classes = wanted.shape[1]
    if classes < 2:
        raise InputError(
            "the teacher gives one score an input, and its probability is always 1: for a binary "
            'net with a single logit use foible.wrap(net, outputs="logit")'
        )
    if truth is not None:
        check_classes(truth, classes)
    index = torch.arange(len(x))
    order = Rng(seed).split(9).at(index).uniform(()).argsort()
    cut = round(len(x) * held_out)
    table = x.detach().flatten(1).cpu().double().numpy()
    test, train = order[:cut].numpy(), order[cut:].numpy()
    goal = wanted if soft else np.eye(classes)[wanted.argmax(1)]
    goal = goal[:, 1] if classes == 2 else goal
    fitted = _fitted(fresh, table[train], goal[train])
    found = Student(fitted, classes)
    proba, label = found.predict_proba(table[test]), found.predict(table[test])
    taught = wanted[test]
    spread = float(((taught - taught.mean(0)) ** 2).sum())
    missed = float(((taught - proba) ** 2).sum())
    fidelity = 1 - missed / spread if spread > 0 else float(missed == 0)
    accuracy = area = None
    if truth is not None:
        true = truth.cpu().numpy()[test]
        accuracy = (float((taught.argmax(1) == true).mean()), float((label == true).mean()))
        area = (_area(taught, true), _area(proba, true))
    return Mimic(
        estimator(found, held.bounds), fidelity, float((label == taught.argmax(1)).mean()),
        len(test), accuracy, area,
    )  # fmt: skip


def _answers(held: Any, x: Tensor, soft: bool, seed: int) -> np.ndarray:
    """Return the teacher's probabilities (N, K) float64; 1 and 0 where it only gives labels."""
    level = Access.SCORES if soft else min(Access.SCORES, held.access)
    oracle, found = Oracle(held, len(x), level), []
    with oracle.session(seed), torch.no_grad():
        for part in torch.arange(len(x), device=x.device).split(oracle.chunk(x)):
            rows = Rows(part, part, x[part].detach(), torch.zeros_like(part))
            if level >= Access.SCORES:
                found.append(oracle.scores(rows.x, rows).double().softmax(1))
                continue
            label = oracle.labels(rows.x, rows)
            found.append(torch.nn.functional.one_hot(label, oracle.classes).double())
    return np.asarray(torch.cat(found).cpu().numpy())


def _sklearn() -> Any:
    """Return what is used of scikit-learn, by name."""
    try:
        from sklearn.base import clone, is_regressor  # type: ignore[import-untyped]
        from sklearn.ensemble import GradientBoostingRegressor  # type: ignore[import-untyped]
        from sklearn.linear_model import LinearRegression  # type: ignore[import-untyped]
        from sklearn.multioutput import MultiOutputRegressor  # type: ignore[import-untyped]
        from sklearn.tree import (  # type: ignore[import-untyped]
            DecisionTreeRegressor,
            export_text,
        )
    except ImportError as error:
        raise MissingExtra("students are scikit-learn's: pip install 'foible[sklearn]'") from error
    return SimpleNamespace(
        clone=clone, is_regressor=is_regressor, boosted=GradientBoostingRegressor,
        linear=LinearRegression, tree=DecisionTreeRegressor, each_output=MultiOutputRegressor,
        export_text=export_text,
    )  # fmt: skip


def _regressor(student: Any, seed: int) -> Any:
    learn = _sklearn()
    if student == "tree":
        return learn.tree(max_depth=5, min_samples_leaf=5, random_state=seed)
    if student == "linear":
        return learn.linear()
    if student == "boosted":
        return learn.boosted(random_state=seed)
    if isinstance(student, str):
        raise InputError(
            f"student={student!r}: choose {', '.join(map(repr, STUDENTS))}, or a regressor"
        )
    if not learn.is_regressor(student):
        raise KindError(
            f"{type(student).__name__} is no regressor, and a student learns probabilities: e.g. "
            "sklearn.tree.DecisionTreeRegressor(max_depth=3)"
        )
    return learn.clone(student)


def _fitted(fresh: Any, table: np.ndarray, goal: np.ndarray) -> Any:
    """Fit one regressor to all classes, or one a class where it takes one output only."""
    if goal.ndim == 1:
        return fresh.fit(table, goal)
    try:
        return fresh.fit(table, goal)
    except ValueError:
        return _sklearn().each_output(fresh).fit(table, goal)


def _area(proba: np.ndarray, true: np.ndarray) -> float:
    """Return the mean over the classes that are there, and not alone, of each against the rest."""
    areas = [auc(proba[:, k], true == k) for k in range(proba.shape[1])]
    return float(np.mean([a for a in areas if a is not None] or [np.nan]))
