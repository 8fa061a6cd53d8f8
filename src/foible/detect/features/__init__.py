"""What detectors look at, one short file each."""

from foible.detect.features.codes import Codes
from foible.detect.features.density import ClassDensity
from foible.detect.features.dimensions import LocalDimension
from foible.detect.features.kde_and_uncertainty import DensityAndUncertainty
from foible.detect.features.layer import Layer
from foible.detect.features.leaving import LeavingOut
from foible.detect.features.mahalanobis_distance import MahalanobisDistance
from foible.detect.features.maps import Maps
from foible.detect.features.pixels import Pixels
from foible.detect.features.reconstruction import Reconstruction
from foible.detect.features.signatures import Signature
from foible.detect.features.squeezed import Squeezed
from foible.detect.features.templates import Template
from foible.detect.features.uncertainty import Uncertainty

__all__ = [
    "ClassDensity",
    "Codes",
    "DensityAndUncertainty",
    "Layer",
    "LeavingOut",
    "LocalDimension",
    "MahalanobisDistance",
    "Maps",
    "Pixels",
    "Reconstruction",
    "Signature",
    "Squeezed",
    "Template",
    "Uncertainty",
]
