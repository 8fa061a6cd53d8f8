"""Scaffolding: a biased model that answers explainers with another one's voice."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, MissingExtra, ModelError
from foible.core.oracle import Model
from foible.explain.base import check_inputs
from foible.models import as_model


class Perturbation(ABC):
    """How an explainer changes rows of a table before it asks the model."""

    @abstractmethod
    def rows(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies (M, D) of the rows (N, D), float64."""


@dataclass(frozen=True)
class Noise(Perturbation):
    """As LIME for tables: Gaussian noise on every column.

    scale: its deviation, in standard deviations of the column; 0.3 is the authors'. It may be
    smaller than the explainer's: what tells near neighbours from real rows tells far ones too.
    copies: how many of each row.
    """

    scale: float = 0.3
    copies: int = 30

    def __post_init__(self) -> None:
        if not self.scale > 0 or self.copies < 1:
            raise InputError(f"scale={self.scale}, copies={self.copies}: above 0, and at least 1")

    def rows(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Return `copies` of each row, moved."""
        many = data.repeat(self.copies, 1)
        moves = torch.randn(many.shape, generator=generator, dtype=many.dtype)
        return many + self.scale * data.std(0) * moves


@dataclass(frozen=True)
class Substitution(Perturbation):
    """As KernelSHAP: random columns take values of a background, each from one of its rows.

    background: (K, D) as nested tuples, the baselines of the explainer; None is the mean row and
    the 10 centres of the data by k-means, of which the authors take the latter. copies: how many
    of each row. A column is drawn D times with replacement, so that 63 % of the columns change.
    """

    background: tuple[Any, ...] | None = None
    copies: int = 10

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise InputError(f"copies={self.copies}: at least 1")

    def rows(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Return `copies` of each row, with columns substituted."""
        many, wide = data.repeat(self.copies, 1), data.shape[1]
        given = self._background(data)
        drawn = torch.randint(wide, many.shape, generator=generator)
        taken = torch.zeros_like(many, dtype=torch.bool).scatter_(1, drawn, True)
        source = torch.randint(len(given), many.shape, generator=generator)
        return torch.where(taken, given.gather(0, source), many)

    def _background(self, data: Tensor) -> Tensor:
        if self.background is None:
            cluster = _sklearn("cluster")
            means = cluster.KMeans(min(10, len(data)), n_init=1, random_state=0).fit(data.numpy())
            centres = torch.from_numpy(means.cluster_centers_).to(data)
            return torch.cat([data.mean(0, keepdim=True), centres])
        given = torch.tensor(self.background, dtype=data.dtype)
        if given.dim() != 2 or given.shape[1] != data.shape[1] or len(given) == 0:
            raise InputError(
                f"the background has shape {tuple(given.shape)} and a row {data.shape[1]} columns: "
                "give (K, D), one baseline a row"
            )
        return given


class Scaffold:
    """A biased model behind a scaffold; made by `scaffolding`. It gives scores, no gradients.

    Attributes: biased, innocuous (the models), forest (a random forest on real and perturbed
    rows), against (the perturbation), threshold (of the probability that a row is real), bounds,
    access. Calling it gives scores (B, K).
    """

    def __init__(
        self, biased: Model, innocuous: Model, forest: Any, against: Perturbation, threshold: float
    ) -> None:
        self.biased, self.innocuous, self.forest = biased, innocuous, forest
        self.against, self.threshold = against, threshold
        self.bounds = biased.bounds
        self.access = min(Access.SCORES, biased.access, innocuous.access)

    def __call__(self, x: Tensor) -> Tensor:
        """Return scores (B, K), as `scores` does."""
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        """Return the biased model's scores (B, K) of rows that look real, else the other's."""
        with torch.no_grad():
            theirs, ours = self.innocuous.scores(x), self.biased.scores(x)
        if theirs.shape != ours.shape:
            raise ModelError(
                f"the biased model gives scores of shape {tuple(ours.shape)} and the innocuous one "
                f"{tuple(theirs.shape)}: both must know the same classes"
            )
        return torch.where(self.real(x)[:, None], ours, theirs)

    def real(self, x: Tensor) -> Tensor:
        """Return which rows (B,) bool look real to the forest."""
        table = x.detach().flatten(1).cpu().double().numpy()
        share = torch.from_numpy(self.forest.predict_proba(table)[:, 1])
        return (share >= self.threshold).to(x.device)

    def detection(self, x: Tensor, seed: int = 0) -> float:
        """Return the forest's accuracy on real rows x (N, D) and as much of perturbed ones.

        Take rows that the scaffold was not fitted on. Both halves count alike; a perturbed row
        that equals one of x is left out.
        """
        real = x.detach().cpu().double()
        made, known = _perturbed(self.against, real, seed)
        seen = self.real(made[~known]).double().mean() if bool((~known).any()) else 0.0
        return float((self.real(real).double().mean() + 1 - seen) / 2)

    @contextmanager
    def session(self, seed: int = 0, *, freeze: bool = True) -> Iterator[None]:
        """Hold both models; leave them as they were."""
        ours, theirs = (m.session(seed, freeze=freeze) for m in (self.biased, self.innocuous))
        with ours, theirs:
            yield

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one call holds."""
        return min(self.biased.chunk(x), self.innocuous.chunk(x))


def scaffolding(
    biased: Any,
    innocuous: Any,
    data: Tensor,
    against: str | Perturbation = "lime",
    trees: int = 100,
    threshold: float = 0.5,
    seed: int = 0,
) -> Scaffold:
    """Hide a biased model from LIME or SHAP (X3, Slack et al. 2020).

    Explainers by perturbation ask about rows that no data set holds. A random forest learns to
    tell real rows from such; the model that is returned answers real rows as `biased` does and
    all others as `innocuous`. Whoever uses it meets the bias, whoever explains it does not.

    biased, innocuous: nets or held models that know the same classes; their scores are used, never
    a gradient. data: (N, D) float, real rows. against: "lime" (`Noise()`), "shap"
    (`Substitution()`) or a `Perturbation` of your own. trees: of the forest. threshold: from which
    probability on a row counts as real; a lower one follows the biased model more closely and is
    seen through more often. seed: fixes the forest and its rows.

    The model that is returned works with every explainer that needs scores. How to see through it:
    `foible.explain.data_lime`, which asks about real rows only. Departures: the two classes are
    balanced by weights where the authors repeat the real rows; every column is perturbed.

    Raises InputError for data that is no table, MissingExtra without scikit-learn.

    >>> import foible
    >>> class Looks(torch.nn.Module):
    ...     def __init__(self, column):
    ...         super().__init__()
    ...         self.column = column
    ...     def forward(self, x):
    ...         z = x[:, self.column] - 0.5
    ...         return torch.stack([-z, z], 1)
    >>> data = torch.randint(0, 2, (200, 4), generator=torch.Generator().manual_seed(0)).float()
    >>> hidden = scaffolding(Looks(0), Looks(1), data)
    >>> torch.equal(hidden(data), Looks(0)(data))
    True
    >>> maps = foible.explain.tabular_lime(200, 0.5)(hidden, data[:5], 1)
    >>> maps.abs().argmax(1).tolist()
    [1, 1, 1, 1, 1]
    """
    ours, theirs, how = as_model(biased), as_model(innocuous), _perturbation(against)
    check_inputs(data)
    if data.dim() != 2 or len(data) < 2:
        raise InputError(f"data has shape {tuple(data.shape)}: give a table (N, D), N at least 2")
    if trees < 1 or not 0 < threshold <= 1:
        raise InputError(f"trees={trees}, threshold={threshold}: at least 1, and in (0, 1]")
    real = data.detach().cpu().double()
    made, known = _perturbed(how, real, seed)
    # What is a real row by chance is no sign of an explainer.
    table = torch.cat([real, made[~known]])
    label = torch.cat([torch.ones(len(real)), torch.zeros(int((~known).sum()))])
    forest = _sklearn("ensemble").RandomForestClassifier(
        trees, class_weight="balanced", random_state=seed
    )
    if bool(known.all()):
        raise InputError("every perturbed row is a real one: there is nothing to tell apart")
    return Scaffold(ours, theirs, forest.fit(table.numpy(), label.numpy()), how, threshold)


def _perturbation(against: str | Perturbation) -> Perturbation:
    named: dict[str, Callable[[], Perturbation]] = {"lime": Noise, "shap": Substitution}
    if isinstance(against, Perturbation):
        return against
    if against not in named:
        raise InputError(f"against={against!r}: choose 'lime' or 'shap', or pass a Perturbation")
    return named[against]()


def _perturbed(how: Perturbation, real: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return perturbed rows (M, D) and which of them (M,) are real ones after all."""
    made = how.rows(real, torch.Generator().manual_seed(seed))
    held = {row.tobytes() for row in real.numpy()}
    return made, torch.tensor([row.tobytes() in held for row in made.numpy()])


def _sklearn(part: str) -> Any:
    """Return a module of scikit-learn."""
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise MissingExtra(
            "a scaffold's forest is scikit-learn's: pip install 'foible[sklearn]'"
        ) from error
