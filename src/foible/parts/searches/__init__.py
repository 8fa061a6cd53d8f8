"""Searches: how the variable moves."""

from foible.parts.searches.ascent import Ascent
from foible.parts.searches.deleting import DeleteInOrder
from foible.parts.searches.sampling import RandomPoints

__all__ = ["Ascent", "DeleteInOrder", "RandomPoints"]
