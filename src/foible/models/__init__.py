"""Ways to hold a model."""

from foible.models.ensembles import Ensemble, ensemble
from foible.models.estimators import Estimator, estimator
from foible.models.holding import TorchModel, as_model, wrap
from foible.models.layers import layers_of
from foible.models.twins import softplus_twin
from foible.models.wrappers import bpda

__all__ = [
    "Ensemble",
    "Estimator",
    "TorchModel",
    "as_model",
    "bpda",
    "ensemble",
    "estimator",
    "layers_of",
    "softplus_twin",
    "wrap",
]
