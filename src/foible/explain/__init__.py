"""Explanations: signed maps of the input's shape, each also a direction for an attack."""

from foible.explain.base import Explanation
from foible.explain.evaluate import (
    completeness,
    rank_correlation,
    stability,
    topk_intersection,
)
from foible.explain.gradient import (
    GradientTimesInput,
    Saliency,
    SmoothGrad,
    gradient_x_input,
    saliency,
    smoothgrad,
)
from foible.explain.noise import RandomMap, random_map
from foible.explain.path import IntegratedGradients, integrated_gradients
from foible.explain.surrogate import Lime, lime

__all__ = [
    "Explanation",
    "GradientTimesInput",
    "IntegratedGradients",
    "Lime",
    "RandomMap",
    "Saliency",
    "SmoothGrad",
    "completeness",
    "gradient_x_input",
    "integrated_gradients",
    "lime",
    "random_map",
    "rank_correlation",
    "saliency",
    "smoothgrad",
    "stability",
    "topk_intersection",
]
