"""Defences in front of a model: what each changes of its input, and what a gradient sees of it."""

from foible.defend.inputs.base import Change, Defended, Front, behind
from foible.defend.inputs.compression import jpeg
from foible.defend.inputs.resizing import randomize
from foible.defend.inputs.squeezing import squeeze
from foible.defend.inputs.variation import total_variation
from foible.defend.inputs.voting import fit_radius, region_vote

__all__ = [
    "Change",
    "Defended",
    "Front",
    "behind",
    "fit_radius",
    "jpeg",
    "randomize",
    "region_vote",
    "squeeze",
    "total_variation",
]
