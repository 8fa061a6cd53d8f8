"""Threats: norm balls in a box, the deletion of features, and moving an image."""

from foible.parts.threats.balls import L0, L1, L2, Ball, Linf
from foible.parts.threats.deletion import Deletion
from foible.parts.threats.spatial import Spatial

__all__ = ["L0", "L1", "L2", "Ball", "Deletion", "Linf", "Spatial"]
