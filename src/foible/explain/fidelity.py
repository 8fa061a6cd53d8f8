"""Infidelity: does the map predict what a perturbation does?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.removal import point_values
from foible.explain.scoring import OF, Measure


@dataclass(frozen=True)
class Infidelity(Measure):
    """E[(I . map - (F(x) - F(x - I)))^2] over perturbations I (Yeh et al. 2019).

    samples: how many. kind: "noise", Gaussian of deviation `size`; or "square", a square patch of
    up to size x the side (a share of features of a table) that shows 0. scaled: the map is first
    multiplied by the number that fits best (as the authors do), and the value divided by E[(F(x) -
    F(x - I))^2]: the share, 0 to 1, of what perturbations do that the map does not tell.
    """

    samples: int = 100
    kind: str = "noise"
    size: float = 0.2
    scaled: bool = True
    of: str = "logit"

    def __post_init__(self) -> None:
        if self.samples < 2 or self.size <= 0 or self.kind not in ("noise", "square"):
            raise InputError(
                f"samples={self.samples}, size={self.size}, kind={self.kind!r}: at least 2, "
                "a positive size, and noise or square"
            )
        if self.of not in OF:
            raise InputError(f"of={self.of!r}: choose {' or '.join(OF)}")

    name = "infidelity"
    better = "lower"

    @property
    def definition(self) -> str:
        """One sentence."""
        moved = {
            "noise": f"Gaussian noise of deviation {self.size:g}",
            "square": f"removed squares of up to {self.size:g} of the side",
        }[self.kind]
        share = "share of" if self.scaled else "mean squared error on"
        return f"{share} the change of the target's {self.of} under {moved} that the map misses"

    def measure(
        self, field: Field, rows: Rows, maps: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor | None]:
        """`samples` forwards a row, and one for the input itself."""
        found = []
        for group in field.groups(rows, self.samples):
            some = rows.take(group)
            moved = self.perturbations(some, draw.take(group))

            def points(
                row: Tensor, which: Tensor, some: Rows = some, moved: Tensor = moved
            ) -> Tensor:
                return some.x[row] - moved[row, which]

            after = point_values(field, some, self.samples, points)
            change = field.values(some.x, some)[:, None] - after
            told = (moved * maps[group][:, None]).flatten(2).sum(2)
            found.append(self._error(told.double(), change.double()))
        return torch.cat(found), None

    def perturbations(self, rows: Rows, draw: Draw) -> Tensor:
        """Return I, (B, samples, *shape)."""
        shape = (self.samples, *rows.shape)
        if self.kind == "noise":
            return draw.normal(shape, rows.x.dtype) * self.size
        return torch.where(self._squares(rows, draw), rows.x[:, None], 0.0)

    def _squares(self, rows: Rows, draw: Draw) -> Tensor:
        u = draw.uniform((self.samples, 3), torch.float64)
        if len(rows.shape) < 2:
            count = rows.x[0].numel()
            chosen = draw.split(1).uniform((self.samples, count)) < self.size
            return chosen.view(len(rows), self.samples, *rows.shape)
        high, wide = rows.shape[-2:]
        side = (u[..., 0] * self.size * min(high, wide)).floor() + 1
        spans = []
        for place, length in ((1, high), (2, wide)):
            start = (u[..., place] * (length - side + 1)).floor()[..., None]
            at = torch.arange(length, device=u.device)
            spans.append((at >= start) & (at < start + side[..., None]))
        square = spans[0][..., :, None] & spans[1][..., None, :]
        lead = [1] * (len(rows.shape) - 2)
        return square.view(len(rows), self.samples, *lead, high, wide)

    def _error(self, told: Tensor, change: Tensor) -> Tensor:
        if not self.scaled:
            return ((told - change) ** 2).mean(1)
        power = (told**2).sum(1)
        best = torch.where(power > 0, (told * change).sum(1) / power.clamp_min(1e-300), 0.0)
        total = (change**2).mean(1)
        error = ((best[:, None] * told - change) ** 2).mean(1)
        # A model that nothing moves leaves nothing untold.
        return torch.where(total > 0, error / total.clamp_min(1e-300), 0.0)


def infidelity(
    samples: int = 100, kind: str = "noise", size: float = 0.2, scaled: bool = True
) -> Infidelity:
    """Return infidelity (B33; Yeh et al. 2019): lower is better, 0 tells every change.

    >>> import foible, torch
    >>> net, x = torch.nn.Linear(6, 3).double(), torch.rand(4, 6).double()
    >>> maps = foible.explain.saliency()(net, x, 1)
    >>> bool((foible.explain.infidelity()(net, x, maps, 1).values < 1e-12).all())
    True
    """
    return Infidelity(samples, kind, size, scaled)
