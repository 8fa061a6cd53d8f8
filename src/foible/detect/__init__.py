"""Detectors: watch a model, and know what the watch is worth."""

from foible.detect.base import Feature, Head
from foible.detect.drifting import Drift, drift, mmd_test
from foible.detect.dynamics import dynamic_adversary
from foible.detect.evading import Adaptive, adaptive
from foible.detect.evaluating import Crafted, Way, Worth, crafted, evaluate
from foible.detect.guarding import Answer, Guard, guard
from foible.detect.heads import Forest, Largest, Logistic, Svm
from foible.detect.layer_recipes import (
    kde_uncertainty,
    local_dimension,
    magnet,
    mahalanobis,
    reformed,
    safetynet,
    subnetwork,
)
from foible.detect.map_recipes import (
    class_template,
    mask_detector,
    ml_loo,
    saliency_detector,
    shap_signatures,
    x_ensemble,
)
from foible.detect.nets import Network
from foible.detect.outlying import LastClass, outlier_class
from foible.detect.panels import Panel
from foible.detect.recipes import pixels, squeezed
from foible.detect.rectifying import Rectified, rectify
from foible.detect.tables import Moves, Retrained, SurrogateDetector, surrogate_detector
from foible.detect.watching import Detector, Level, Watch, load

__all__ = [
    "Adaptive",
    "Answer",
    "Crafted",
    "Detector",
    "Drift",
    "Feature",
    "Forest",
    "Guard",
    "Head",
    "Largest",
    "LastClass",
    "Level",
    "Logistic",
    "Moves",
    "Network",
    "Panel",
    "Rectified",
    "Retrained",
    "SurrogateDetector",
    "Svm",
    "Watch",
    "Way",
    "Worth",
    "adaptive",
    "class_template",
    "crafted",
    "drift",
    "dynamic_adversary",
    "evaluate",
    "guard",
    "kde_uncertainty",
    "load",
    "local_dimension",
    "magnet",
    "mahalanobis",
    "mask_detector",
    "ml_loo",
    "mmd_test",
    "outlier_class",
    "pixels",
    "rectify",
    "reformed",
    "safetynet",
    "saliency_detector",
    "shap_signatures",
    "squeezed",
    "subnetwork",
    "surrogate_detector",
    "x_ensemble",
]
