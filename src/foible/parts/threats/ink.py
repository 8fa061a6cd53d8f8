"""Ink on a blank page: what may be added to an image, and which part of it may be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.parts.threats.balls import L1


@dataclass(frozen=True)
class Page(L1):
    """What the two share: L1 of the change, and the value of a blank pixel.

    blank: None is the low end of the box. Ink is |x - blank|.
    """

    blank: float | None = None

    def paper(self, like: Tensor) -> Tensor:
        """Return blank images of a batch's shape."""
        if self.blank is None and (self.box is None or self.box.low == float("-inf")):
            raise InputError(
                "the model's bounds have no low end, and so no blank: give it, e.g. blank=0.0"
            )
        value = self.box.low if self.blank is None and self.box is not None else self.blank
        assert value is not None
        if self.box is not None and not self.box.low <= value <= self.box.high:
            raise InputError(f"blank={value} lies outside of the box {self.box.low, self.box.high}")
        return torch.full_like(like, value)


@dataclass(frozen=True)
class Added(Page):
    """Every pixel may only move away from blank: ink is added, none is taken.

    A pixel that is blank may go either way, where the box lets it.
    """

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge budget and box, and that no pixel lost ink, bit for bit."""
        paper = self.paper(rows.x)
        lost = ((rows.x > paper) & (x_adv < rows.x)) | ((rows.x < paper) & (x_adv > rows.x))
        return super().contains(rows, x_adv) & ~lost.flatten(1).any(1)

    def _room(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the room of the box, on the far side of blank only."""
        low, high = super()._room(rows)
        paper = self.paper(rows.x)
        return low.masked_fill(rows.x > paper, 0.0), high.masked_fill(rows.x < paper, 0.0)


@dataclass(frozen=True)
class Kept(Page):
    """Every pixel lies between blank and its value in a whole image: a part of its ink is kept.

    rows.x is the blank page and `rows.extra["whole"]` (B, *shape) the image, so that the change
    and its norm are those of the part itself. A random start is the whole image.
    """

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Return all the ink, which the budget may cut."""
        whole = self._whole(rows) - rows.x
        return whole if rows.eps is None else self.project(rows, whole)

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return blank + z; never past the whole by a rounding."""
        x_adv = super().render(rows, z)
        whole = self._whole(rows)
        with torch.no_grad():
            x_adv.copy_(x_adv.maximum(whole.minimum(rows.x)).minimum(whole.maximum(rows.x)))
        return x_adv

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge budget and box, and that every pixel is between blank and whole, bit for bit."""
        whole = self._whole(rows)
        over = (x_adv > whole.maximum(rows.x)) | (x_adv < whole.minimum(rows.x))
        return super().contains(rows, x_adv) & ~over.flatten(1).any(1)

    def _room(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the way from blank to the whole."""
        ink = self._whole(rows) - rows.x
        return ink.clamp_max(0.0), ink.clamp_min(0.0)

    @staticmethod
    def _whole(rows: Rows) -> Tensor:
        if "whole" not in rows.extra:
            raise InputError(
                'the part of an image needs the image: put it in rows.extra["whole"], as '
                'attacks.contrastive("positive") does'
            )
        return rows.extra["whole"]
