"""Scores of maps: each with the definition that it measures, and with chance beside it.

Two measures with different definitions may disagree about which map is better, and both be right
(the survey's [101]): what a score says, it says under its definition. So every `Score` carries
its definition, and a `Comparison` orders methods under one measure and refuses to do so over
several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.problem import Objective
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.explain.base import check_inputs, each
from foible.parts.objectives import Logit, Probability
from foible.parts.statistics import mean_interval

OF: dict[str, type] = {"probability": Probability, "logit": Logit}


@dataclass(frozen=True)
class Score:
    """What one measure says of one method's maps, a number a sample.

    measure: its name; definition: what it measures, in a sentence; better: "lower" or "higher".
    values: (B,); control: (B,), the same measure of the map's own values, shuffled.
    shares: (P,) and curve, control_curve: (B, P), where the measure has a curve; else None.
    """

    measure: str
    definition: str
    better: str
    values: Tensor
    control: Tensor
    shares: tuple[float, ...] = ()
    curve: Tensor | None = None
    control_curve: Tensor | None = None

    @property
    def mean(self) -> list[float] | None:
        """[mean, low, high], a 95 % interval over samples."""
        return mean_interval(self.values)

    @property
    def chance(self) -> list[float] | None:
        """[mean, low, high] of the control."""
        return mean_interval(self.control)

    @property
    def gain(self) -> list[float] | None:
        """[mean, low, high] of how much better than chance, paired by sample; above 0 is better."""
        sign = 1.0 if self.better == "higher" else -1.0
        return mean_interval(sign * (self.values - self.control))


class Measure(ABC):
    """A way to score maps; call it with (model, x, maps, target).

    of: which number of the model it watches, a name of `OF`.
    """

    access: ClassVar[Access] = Access.SCORES
    of: str

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name."""

    @property
    @abstractmethod
    def definition(self) -> str:
        """What it measures, with its settings, in one sentence."""

    @property
    @abstractmethod
    def better(self) -> str:
        """Either "lower" or "higher"."""

    @property
    def shares(self) -> tuple[float, ...]:
        """At which shares the curve is measured; empty where there is none."""
        return ()

    @abstractmethod
    def measure(
        self, field: Field, rows: Rows, maps: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor | None]:
        """Return the values (B,), and the curve (B, P) or None."""

    def explained(self) -> Objective:
        """Return the number of the model that is watched."""
        chosen: Objective = OF[self.of]()
        return chosen

    def __call__(
        self, model: Any, x: Tensor, maps: Tensor, target: Tensor | int | None = None, *,
        seed: int = 0,
    ) -> Score:  # fmt: skip
        """Score maps (B, *shape) of x for `target`: (B,) classes, one int, or None (as predicted).

        Needs SCORES access. Half of the work is for the control. Raises InputError where the maps
        do not have x's shape or hold NaN.
        """
        check_inputs(x)
        if maps.shape != x.shape:
            raise InputError(f"maps have shape {tuple(maps.shape)} and x {tuple(x.shape)}")
        if not bool(torch.isfinite(maps).all()):
            raise InputError("maps hold NaN or infinity: they order no features")
        maps = maps.detach().to(x)

        def work(field: Field, rows: Rows, _: Draw) -> tuple[Tensor | None, ...]:
            some, draw = maps[rows.index], Rng(seed).split(13).at(rows.id)
            own = self.measure(field, rows, some, draw)
            return *own, *self.measure(field, rows, shuffled(some, draw.split(1)), draw)

        with torch.no_grad():
            parts = each(self, model, x, target, work, seed=seed)
        if not parts:
            raise InputError("x holds no sample: there is nothing to score")
        values, curve, chance, chance_curve = (_joined(column) for column in zip(*parts))  # noqa: B905
        assert values is not None and chance is not None
        return Score(
            self.name, self.definition, self.better, values.double(), chance.double(),
            self.shares, curve, chance_curve,
        )  # fmt: skip


def shuffled(maps: Tensor, draw: Draw) -> Tensor:
    """Return each map with its own values in random places: the control of a map."""
    flat = maps.flatten(1)
    order = draw.uniform((flat.shape[1],), torch.float64).argsort(1)
    return flat.gather(1, order.to(flat.device)).view_as(maps)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [p for p in parts if p is not None]
    return torch.cat(found) if found else None


@dataclass(frozen=True)
class Comparison:
    """Scores of several methods under several measures: scores[measure][method]."""

    scores: Mapping[str, Mapping[str, Score]]

    def ranking(self, measure: str | None = None) -> list[str]:
        """Return the methods from the best to the worst mean, under one measure.

        Without a measure it refuses, unless there is only one: no definition is *the* definition.
        """
        if measure is None and len(self.scores) > 1:
            defined = "; ".join(
                f"{name}: {next(iter(of.values())).definition}" for name, of in self.scores.items()
            )
            raise InputError(
                f"a ranking over {len(self.scores)} definitions would hide their disagreement "
                f"({defined}): name one, e.g. ranking({next(iter(self.scores))!r})"
            )
        name = next(iter(self.scores)) if measure is None else measure
        if name not in self.scores:
            raise InputError(f"{name!r} was not measured: choose {', '.join(self.scores)}")
        found = self.scores[name]

        def place(method: str) -> float:
            score = found[method]
            mean = float(score.values.mean())
            return mean if score.better == "lower" else -mean

        return sorted(found, key=place)

    def disagreements(self) -> list[tuple[str, str]]:
        """Return the pairs of measures that do not rank the methods alike."""
        names = list(self.scores)
        ranked = {name: self.ranking(name) for name in names}
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return [(a, b) for a, b in pairs if ranked[a] != ranked[b]]


def compare(
    measures: Sequence[Measure], model: Any, x: Tensor, maps: Mapping[str, Tensor],
    target: Tensor | int | None = None, *, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Score several methods' maps (by name, each (B, *shape)) under several measures.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net, e = foible.zoo.load("standard"), foible.explain
    >>> maps = {"saliency": e.saliency()(net, x[:8], y[:8]), "noise": e.random_map()(net, x[:8])}
    >>> found = e.compare([e.deletion(), e.insertion()], net, x[:8], maps, y[:8])
    >>> found.ranking("deletion")[-1]
    'noise'
    """
    if len({m.name for m in measures}) < len(measures):
        raise InputError("two measures share a name: give each definition once")
    return Comparison(
        {
            m.name: {n: m(model, x, of, target, seed=seed) for n, of in maps.items()}
            for m in measures
        }
    )
