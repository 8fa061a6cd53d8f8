"""What lies inside a model, by name."""

from __future__ import annotations

from torch import Tensor, nn

from foible.core.errors import KindError
from foible.core.oracle import Model
from foible.models.holding import TorchModel, as_model


def layers_of(model: nn.Module | Model, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the layers that can be looked into, and the shape that each gives for one sample.

    x: (B, *shape), of which one sample is run. Names are those of `named_modules`, in the order
    in which the layers end; a module that runs several times is listed as `name#1`, `name#2`.
    Modules that do not give one tensor with the batch first are left out.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> layers_of(net, torch.zeros(1, 1, 8, 8))
    {'0': (4, 6, 6), '1': (4, 6, 6), '2': (144,), '3': (2,)}
    """
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(model).__name__} has no layers to look into: pass the nn.Module itself, or "
            "foible.wrap(net)"
        )
    return held.layers(x)
