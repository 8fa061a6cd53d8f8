"""How far a prediction scatters when units are dropped at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State
from foible.detect.features.activations import held_by, last_hidden

WHOLE_MAPS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Uncertainty(Feature):
    """The mean over classes of the variance of their probabilities over passes: (B, 1).

    A net with dropout is asked with its dropout on, which is Bayesian uncertainty (Gal and
    Ghahramani 2016). A net without any has the units of its last hidden layer dropped with
    probability `rate`: it was not trained for that, so what is measured is how much the prediction
    hangs on single units, and no posterior.
    """

    passes: int = 50
    rate: float = 0.5
    access = Access.INTERNALS

    def __post_init__(self) -> None:
        if self.passes < 2 or not 0 < self.rate < 1:
            raise InputError(f"passes={self.passes}, rate={self.rate}: at least 2, and in (0, 1)")

    @property
    def looks(self) -> int:
        """One a pass."""
        return self.passes

    def places(self, oracle: Oracle, x: Tensor) -> dict[str, tuple[float, bool]]:
        """Return where units are dropped: by layer how often, and whether whole maps are."""
        model = held_by(oracle)
        modules = dict(model.net.named_modules())
        found = {}
        for name in model.layers(x):
            module = modules[name.partition("#")[0]]
            if isinstance(module, (nn.Dropout, *WHOLE_MAPS)) and module.p > 0:
                found[name] = (float(module.p), isinstance(module, WHOLE_MAPS))
        return found or {last_hidden(oracle, x): (self.rate, False)}

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, 1), at least 0."""
        many = rows.repeat(self.passes)
        step = torch.arange(self.passes).repeat_interleave(len(rows))
        masks = Draw(draw.rng, draw.ids.repeat(self.passes), step.to(draw.ids.device))
        edits = {
            name: Dropped(masks.split(31 + i), rate, whole)
            for i, (name, (rate, whole)) in enumerate(self.places(oracle, rows.x).items())
        }
        with torch.set_grad_enabled(create_graph):
            scores, _ = oracle.taps(many.x, many, (), edits)
            p = scores.softmax(1).view(self.passes, len(rows), -1)
            return p.var(0, unbiased=False).mean(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Dropped:
    """A layer's output without some of its units, the others grown to make up for them."""

    draw: Draw
    rate: float
    whole: bool

    def __call__(self, out: Tensor) -> Tensor:
        """Return (B, *shape)."""
        shape = out.shape[1:2] + (1,) * (out.dim() - 2) if self.whole else out.shape[1:]
        kept = self.draw.bernoulli(tuple(shape), 1 - self.rate)
        return out * kept.to(out) / (1 - self.rate)
