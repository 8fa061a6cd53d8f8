"""Smooth copies of ReLU nets, for searches that need second derivatives."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError, KindError
from foible.core.oracle import Model
from foible.models.holding import TorchModel, as_model


class SharpSoftplus(nn.Module):
    """log(1 + exp(beta x)) / beta, which tends to ReLU as beta grows.

    Written with logsigmoid: torch's Softplus is linear above a threshold, a kink that float64
    sees, and logaddexp has a NaN in its second derivative for large negative inputs.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Apply it elementwise."""
        return -F.logsigmoid(-self.beta * x) / self.beta


def softplus_twin(model: nn.Module | Model, beta: float = 10.0) -> TorchModel:
    """Copy a model with every ReLU module replaced by a softplus (Dombrowski et al. 2019).

    The copy is what an attack on explanations searches; verdicts stay with the true model.
    Raises InputError for a net without ReLU modules: a functional ReLU cannot be replaced.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> type(softplus_twin(net).net[1]).__name__
    'SharpSoftplus'
    """
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(model).__name__} holds no torch module whose ReLUs could be replaced: pass the "
            "nn.Module itself, or foible.wrap(net)"
        )
    net = copy.deepcopy(held.net)
    found = 0
    for module in list(net.modules()):
        # Not named_children(): it names a ReLU that is used in two places only once.
        for name, child in module._modules.items():
            if isinstance(child, nn.ReLU):
                module._modules[name] = SharpSoftplus(beta)
                found += 1
    if found == 0:
        raise InputError(
            "no nn.ReLU module was found to replace: write functional ReLUs as nn.ReLU modules, "
            "or attack the net itself"
        )
    return TorchModel(net, held.bounds, held.preprocess, held.outputs)
