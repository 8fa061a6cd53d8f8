"""Explanations of the predicted class, beside the input or alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.oracle import Oracle, Run
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State
from foible.explain.base import Explanation
from foible.explain.gradient import Saliency
from foible.explain.relevance import Lrp
from foible.explain.rules import Ruled
from foible.models.twins import Softening


@dataclass(frozen=True)
class Maps(Feature):
    """Maps of the predicted class's logit, each of the input's shape, side by side as channels.

    explainers: what makes them. image: whether the input itself comes first. beta: None, or the
    sharpness of softplus in place of every ReLU while the maps are made: a ReLU net's gradient
    does not move with its input but jumps, so that a search follows these (`soft`). Methods with
    rules of their own for ReLUs are not smoothed, and no gradient passes their rules.
    """

    explainers: tuple[Explanation, ...] = (Saliency(),)
    image: bool = True
    beta: float | None = None

    def __post_init__(self) -> None:
        if not self.explainers:
            raise InputError("no explainer: give one at least, e.g. foible.explain.saliency()")

    @property
    def access(self) -> Access:  # type: ignore[override]
        """As deep as the explainers look; smoothing looks at every ReLU."""
        asked = [explainer.access for explainer in self.explainers]
        return max(asked if self.beta is None else [*asked, Access.INTERNALS])

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether all maps are."""
        return all(explainer.differentiable for explainer in self.explainers)

    @property
    def looks(self) -> int:
        """Those of all explainers."""
        return sum(explainer.looks for explainer in self.explainers)

    @property
    def held(self) -> int:
        """One: explainers come one after another, and cut what they look at into blocks."""
        return 1

    def soft(self) -> Feature:
        """Return the maps of the softplus twin."""
        return replace(self, beta=10.0) if self.differentiable and self.beta is None else self

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, maps x C, *rest), with C more channels where the image is there."""
        found = [rows.x] if self.image else []
        for i, explainer in enumerate(self.explainers):
            field = Field(oracle, explainer.explained(), oracle.chunk(rows.x))
            with self._softened(oracle, explainer):
                found.append(
                    explainer.attribute(field, rows, draw.split(i), create_graph=create_graph)
                )
        return torch.cat(found, 1)

    def _softened(self, oracle: Oracle, explainer: Explanation) -> AbstractContextManager[None]:
        if self.beta is None or isinstance(explainer, Ruled | Lrp):
            return nullcontext()
        softening = Softening(self.beta)

        def look(run: Run, x: Tensor) -> Tensor:
            return run(x, softening)

        return oracle.through(look)
