"""Smooth copies of ReLU nets, for searches that need second derivatives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foible.core.errors import InputError, KindError
from foible.core.oracle import Model
from foible.models.functions import activation, sharp_softplus
from foible.models.holding import TorchModel, as_model


class SharpSoftplus(nn.Module):
    """log(1 + exp(beta x)) / beta, which tends to ReLU as beta grows."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Apply it elementwise."""
        return sharp_softplus(x, self.beta)


class Softening(TorchFunctionMode):
    """Every ReLU within, a module's or a function, is a softplus; in place where the ReLU is.

    Attributes: beta, found (how many there were).
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta, self.found = beta, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call = activation(func, args, kwargs or {})
        if call is None or call.kind != "relu":
            return func(*args, **(kwargs or {}))
        self.found += 1
        return call.give(sharp_softplus(call.argument, self.beta))


class SoftplusTwin(TorchModel):
    """A copy of a model whose ReLUs are softplus, modules and functions; made by `softplus_twin`.

    Attributes beside those of TorchModel: beta, modules (how many ReLU modules were replaced).
    """

    def __init__(self, net: nn.Module, held: TorchModel, beta: float, modules: int) -> None:
        super().__init__(net, held.bounds, held.preprocess, held.outputs)
        self.beta, self.modules = beta, modules

    @contextmanager
    def at(self, beta: float) -> Iterator[None]:
        """Give the twin another sharpness within."""
        own, soft = self.beta, [m for m in self.net.modules() if isinstance(m, SharpSoftplus)]
        try:
            self.beta = beta
            for module in soft:
                module.beta = beta
            yield
        finally:
            self.beta = own
            for module in soft:
                module.beta = own

    def scores(self, x: Tensor) -> Tensor:
        """Return logits (B, K); raises InputError where there is no ReLU at all."""
        with Softening(self.beta) as softening:
            scores = super().scores(x)
        if self.modules + softening.found == 0:
            raise InputError(
                "no ReLU was found to replace, neither a module nor a function: the net has no "
                "kinks of that kind, so attack the net itself"
            )
        return scores


def softplus_twin(model: nn.Module | Model, beta: float = 10.0) -> SoftplusTwin:
    """Copy a model with every ReLU replaced by a softplus (Dombrowski et al. 2019).

    Modules are replaced in the copy; functional ReLUs (`F.relu`, `torch.relu`, `relu_`,
    `clamp(min=0)`) in its forward. The copy is what an attack on explanations searches; verdicts
    stay with the true model. A net without any ReLU raises InputError in its first forward.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> type(softplus_twin(net).net[1]).__name__
    'SharpSoftplus'
    """
    if not beta > 0:
        raise InputError(f"beta={beta}: the sharpness of a softplus is above 0")
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(model).__name__} holds no torch module whose ReLUs could be replaced: pass the "
            "nn.Module itself, or foible.wrap(net)"
        )
    net = copy.deepcopy(held.net)
    return SoftplusTwin(net, held, beta, soften(net, beta))


def soften(net: nn.Module, beta: float) -> int:
    """Make every ReLU module within a net a softplus, in place; return how many there were."""
    found = 0
    for module in list(net.modules()):
        # Not named_children(): it names a ReLU that is used in two places only once.
        for name, child in module._modules.items():
            if isinstance(child, nn.ReLU):
                module._modules[name] = SharpSoftplus(beta)
                found += 1
    return found
