"""Threats: norm balls in a box, tables, ink, the deletion of features, and moving an image."""

from foible.parts.threats.balls import L0, L1, L2, Ball, Linf
from foible.parts.threats.deletion import Deletion
from foible.parts.threats.features import Features
from foible.parts.threats.ink import Added, Kept
from foible.parts.threats.spatial import Spatial

__all__ = ["L0", "L1", "L2", "Added", "Ball", "Deletion", "Features", "Kept", "Linf", "Spatial"]
