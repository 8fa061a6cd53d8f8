"""Threats: norm balls in a box, and the deletion of features."""

from foible.parts.threats.balls import L0, L1, L2, Ball, Linf
from foible.parts.threats.deletion import Deletion

__all__ = ["L0", "L1", "L2", "Ball", "Deletion", "Linf"]
