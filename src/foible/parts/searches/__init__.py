"""Searches: how the variable moves."""

from foible.parts.searches.adam import Adam
from foible.parts.searches.apgd import APGD
from foible.parts.searches.ascent import Ascent
from foible.parts.searches.carlini import CarliniL0, CarliniL2, CarliniLinf
from foible.parts.searches.deepfool import DeepFool
from foible.parts.searches.deleting import DeleteInOrder
from foible.parts.searches.ead import ElasticDescent
from foible.parts.searches.erasing import EraseGreedily
from foible.parts.searches.estimates import EstimatedAscent
from foible.parts.searches.fab import FastBoundary
from foible.parts.searches.funnel import Funnel
from foible.parts.searches.gridding import GridPoints
from foible.parts.searches.holding import HeldAscent
from foible.parts.searches.lbfgs import BoxLBFGS
from foible.parts.searches.proposing import Proposed
from foible.parts.searches.sampling import RandomPoints
from foible.parts.searches.simba import Simba
from foible.parts.searches.square import SquareSearch

__all__ = [
    "APGD",
    "Adam",
    "Ascent",
    "BoxLBFGS",
    "CarliniL0",
    "CarliniL2",
    "CarliniLinf",
    "DeepFool",
    "DeleteInOrder",
    "ElasticDescent",
    "EraseGreedily",
    "EstimatedAscent",
    "FastBoundary",
    "Funnel",
    "GridPoints",
    "HeldAscent",
    "Proposed",
    "RandomPoints",
    "Simba",
    "SquareSearch",
]
