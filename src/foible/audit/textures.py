"""The cell of texture and shape: what is left of a model without the one or the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foible import explain
from foible.audit.cells import Context, Measured, correct
from foible.audit.explaining import counting, measured
from foible.core.randomness import Rng
from foible.parts.statistics import mean_interval, wilson

VERSIONS = ("as they are", "without texture", "without shape")


@dataclass(frozen=True)
class TextureWork:
    """Accuracy on images that are saturated or cut and shuffled, and where SmoothGrad looks.

    samples: images for the accuracies; maps: for SmoothGrad. p: of the saturation. k: the most
    patches a side; the largest number up to it that divides the image is taken.
    """

    samples: int = 500
    maps: int = 50
    p: float = 1024.0
    k: int = 4

    def __call__(self, context: Context) -> Measured:
        """Measure images (C, H, W); other inputs have neither texture nor shape."""
        x, y = context.x[: self.samples], context.y[: self.samples]
        k = 0
        if x.dim() == 4:
            k = next((n for n in range(self.k, 1, -1) if not any(s % n for s in x.shape[2:])), 0)
        if k == 0 or min(x.shape[2:]) < 2 * k:
            return Measured(None, 0, status="not measured")
        with counting(context) as model:
            found = explain.texture_or_shape(model, x, y, self.p, k, context.seed)
            rates = (found.clean, found.saturated, found.shuffled)
            chosen = correct(context, self.maps)
            maps = explain.smoothgrad()(
                model, context.x[chosen], context.y[chosen], seed=context.seed
            )
        one = chosen[:1]
        shown = torch.cat([
            context.x[one], explain.saturated(context.x[one], self.p, context.model.bounds),
            explain.patch_shuffled(context.x[one], k, Rng(context.seed).at(one)),
        ])  # fmt: skip
        with context.model.session(context.seed), torch.no_grad():
            seen = context.model.scores(shown).argmax(1).tolist() if len(one) else []
        context.spend(len(seen))
        detail = {
            "rates": [[r, *(wilson(round(r * len(x)), len(x)) or (None, None))] for r in rates],
            "lost": [found.texture_lost, found.shape_lost], "p": self.p, "k": k, "n": len(x),
            "edges": mean_interval(explain.edge_alignment(maps, context.x[chosen])),
            "gini": mean_interval(explain.gini(maps)), "maps": len(chosen), "seen": seen,
            "true": context.y[one].tolist(),
        }  # fmt: skip
        first: list[float | None] = [
            found.saturated,
            *(wilson(round(found.saturated * len(x)), len(x)) or (0.0, 1.0)),
        ]
        return measured(context, first, len(x), detail, {"shown": shown})
