"""Threats: norm balls in a box, tables, ink, deleted features, swapped cells, moved images."""

from foible.parts.threats.balls import L0, L1, L2, Ball, Linf
from foible.parts.threats.deletion import Deletion
from foible.parts.threats.features import Features
from foible.parts.threats.ink import Added, Kept
from foible.parts.threats.masking import Masking
from foible.parts.threats.patch import Patch
from foible.parts.threats.spatial import Spatial
from foible.parts.threats.swaps import Swaps

__all__ = [
    "L0",
    "L1",
    "L2",
    "Added",
    "Ball",
    "Deletion",
    "Features",
    "Kept",
    "Linf",
    "Masking",
    "Patch",
    "Spatial",
    "Swaps",
]
