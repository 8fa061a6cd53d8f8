"""Ways to hold a model."""

from foible.models.holding import TorchModel, as_model, wrap
from foible.models.twins import softplus_twin

__all__ = ["TorchModel", "as_model", "softplus_twin", "wrap"]
