"""Scores by removal: what happens when the features that a map names go, or come, first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.removal import (
    Baseline,
    check_baseline,
    filling,
    plain,
    point_values,
    some_of,
)
from foible.explain.scoring import OF, Measure
from foible.parts.projections import places

FEW = (0.01, 0.05, 0.1, 0.2, 0.5)  # DeYoung et al. 2020
WHAT = ("deletion", "insertion", "comprehensiveness", "sufficiency")


@dataclass(frozen=True)
class Removal(Measure):
    """Remove features in the order of a map, or all others, and watch the model.

    what: "deletion", "insertion", "comprehensiveness" or "sufficiency". at: shares of the features
    between 0 and 1. baseline: what a removed feature shows. order: "signed", the largest value
    first, or "absolute". of: "probability" or "logit". All colours of a pixel go together, in the
    order of their sum; features that tie go in the order of their position.
    """

    what: str
    at: tuple[float, ...]
    baseline: Baseline = 0.0
    order: str = "signed"
    of: str = "probability"

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        if self.order not in ("signed", "absolute") or self.of not in OF or self.what not in WHAT:
            raise InputError(
                f"order={self.order!r}, of={self.of!r}, what={self.what!r}: order is signed or "
                f"absolute, of is {' or '.join(OF)}, what is one of {', '.join(WHAT)}"
            )
        if not self.at or min(self.at) < 0 or max(self.at) > 1 or list(self.at) != sorted(self.at):
            raise InputError(f"shares are {self.at}: give rising numbers between 0 and 1")

    @property
    def name(self) -> str:
        """The name of what is measured."""
        return self.what

    @property
    def better(self) -> str:
        """A good map deletes and inserts quickly, and what it leaves out does not matter."""
        return "lower" if self.what in ("deletion", "sufficiency") else "higher"

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of features removed (or, of insertion and sufficiency, shown)."""
        return self.at

    @property
    def definition(self) -> str:
        """One sentence."""
        fill = self.baseline
        shown = fill if isinstance(fill, str) else "given values"
        if isinstance(fill, float | int):
            shown = f"{fill:g}"
        filled = f"by {shown}, {self.order} order"
        few = ", ".join(f"{100 * share:g}" for share in self.at) if len(self.at) < 8 else ""
        return {
            "deletion": f"area under the target's {self.of} while the top features are replaced "
            f"{filled}",
            "insertion": f"area under the target's {self.of} while the top features return to an "
            f"input replaced {filled}",
            "comprehensiveness": f"fall of the target's {self.of} when the top {few} % of the "
            f"features are replaced {filled}, mean",
            "sufficiency": f"fall of the target's {self.of} when all but the top {few} % of the "
            f"features are replaced {filled}, mean",
        }[self.what]

    def measure(
        self, field: Field, rows: Rows, maps: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor | None]:
        """One forward a share; one more for the whole input where a fall is measured."""
        falls = self.what in ("comprehensiveness", "sufficiency")
        keeps = self.what in ("insertion", "sufficiency")
        worth = maps.abs() if self.order == "absolute" else maps
        if worth.dim() == 4:
            worth = worth.sum(1, keepdim=True)
        rank = places(worth.flatten(1)).view_as(worth)
        count = rank[0].numel()
        # The last place of a fall is the whole input.
        kept = [round(share * count) for share in self.at]
        cut = torch.tensor([*kept, count if keeps else 0] if falls else kept, device=maps.device)
        fill = filling(self.baseline, rows)

        def points(row: Tensor, which: Tensor) -> Tensor:
            top = rank[row] < cut[which].view(-1, *[1] * (rank.dim() - 1))
            own, other = rows.x[row], some_of(fill, row, rows.x)
            return torch.where(top, own, other) if keeps else torch.where(top, other, own)

        values = point_values(field, rows, len(cut), points).double()
        if falls:
            curve = values[:, -1:] - values[:, :-1]
            return curve.mean(1), curve
        at = torch.tensor(self.at, dtype=values.dtype, device=values.device)
        return torch.trapezoid(values, at, dim=1), values


def _even(steps: int) -> tuple[float, ...]:
    if steps < 1:
        raise InputError(f"steps={steps}: at least 1")
    return tuple(j / steps for j in range(steps + 1))


def deletion(steps: int = 28, baseline: Baseline = 0.0, order: str = "signed") -> Removal:
    """Return the deletion score (B33; Petsiuk et al. 2018): lower is better.

    The area under the target's probability while features are replaced by the baseline, those of
    the largest map first, in `steps` equal parts: steps + 1 forwards a sample, and as many for the
    control, a random order.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> maps = foible.explain.integrated_gradients()(net, x[:8], y[:8])
    >>> score = foible.explain.deletion()(net, x[:8], maps, y[:8])
    >>> score.mean[0] < score.chance[0], score.curve.shape
    (True, torch.Size([8, 29]))
    """
    return Removal("deletion", _even(steps), plain(baseline), order)


def insertion(steps: int = 28, baseline: Baseline = 0.0, order: str = "signed") -> Removal:
    """Return the insertion score (B33; Petsiuk et al. 2018): higher is better.

    The area under the target's probability while an input that shows the baseline everywhere gets
    its features back, those of the largest map first.
    """
    return Removal("insertion", _even(steps), plain(baseline), order)


def comprehensiveness(
    shares: tuple[float, ...] = FEW, baseline: Baseline = 0.0, order: str = "signed"
) -> Removal:
    """Return comprehensiveness (DeYoung et al. 2020): higher is better.

    How far the target's probability falls without the top share of features; mean over `shares`.
    """
    return Removal("comprehensiveness", tuple(shares), plain(baseline), order)


def sufficiency(
    shares: tuple[float, ...] = FEW, baseline: Baseline = 0.0, order: str = "signed"
) -> Removal:
    """Return sufficiency (DeYoung et al. 2020): lower is better.

    How far the target's probability falls where only the top share is left; mean over `shares`.
    """
    return Removal("sufficiency", tuple(shares), plain(baseline), order)


def of_logit(measure: Removal) -> Removal:
    """Return the same measure of the logit, in which a linear model's scores are exact sums."""
    return replace(measure, of="logit")
