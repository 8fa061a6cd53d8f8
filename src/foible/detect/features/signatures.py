"""What each unit before the logits adds to each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State, chunks


@dataclass(frozen=True)
class Signature(Feature):
    """Shapley values of the penultimate layer's units for all logits: (B, K, units).

    The last layer is linear, z = W h + b, so that they are w_cu (h_u - E h_u), exactly and without
    sampling (Lundberg and Lee 2017), with E over clean inputs; a class's values sum to z_c - E z_c.
    layer: that of h; None for the one before the last linear layer.
    """

    layer: str | None = None
    access = Access.INTERNALS

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Learn E h (units,), and keep W (K, units).

        Raises InputError where the logits are not a linear function of the layer.
        """
        last = _last(oracle.model, rows.x)
        weight = last.weight.detach()
        total = weight.new_zeros(weight.shape[1], dtype=torch.float64)
        for part in chunks(oracle, rows, 1):
            some = rows.take(part)
            with torch.no_grad():
                scores, units = self._units(oracle, some)
            wanted = nn.functional.linear(units, weight, last.bias)
            if wanted.shape != scores.shape or not torch.allclose(
                wanted, scores, rtol=1e-3, atol=1e-3 * float(scores.abs().max())
            ):
                raise InputError(
                    "the scores are no linear function of the layer before them, so its units have "
                    "no exact signature: give logits, not probabilities, or name layer="
                )
            total += units.double().sum(0)
        return {"mean": (total / len(rows)).to(weight), "weight": weight.clone()}

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, K, units); one forward."""
        with torch.set_grad_enabled(create_graph):
            units = self._units(oracle, rows)[1]
            return state["weight"] * (units - state["mean"])[:, None]

    def _units(self, oracle: Oracle, rows: Rows) -> tuple[Tensor, Tensor]:
        name = self.layer or _before(oracle.model, rows.x)
        scores, (units,) = oracle.taps(rows.x, rows, [name])
        return scores, units.flatten(1)


def _linear(model: Any, x: Tensor) -> list[str]:
    """Return the layers up to the last linear one, its own name last."""
    if not hasattr(model, "layers"):
        raise InputError(
            f"{type(model).__name__} has no layers to look into: pass the nn.Module itself, or "
            "foible.wrap(net)"
        )
    names = list(model.layers(x))
    modules = dict(model.net.named_modules())
    linear = [i for i, n in enumerate(names) if type(modules[n.partition("#")[0]]) is nn.Linear]
    if not linear:
        raise InputError("the net has no linear layer, and a signature is of what goes into it")
    return names[: linear[-1] + 1]


def _last(model: Any, x: Tensor) -> nn.Linear:
    found: nn.Linear = model.net.get_submodule(_linear(model, x)[-1].partition("#")[0])
    return found


def _before(model: Any, x: Tensor) -> str:
    """Return the layer that feeds the last linear one: the nearest before it of its width."""
    *names, last = _linear(model, x)
    width, shapes = _last(model, x).in_features, model.layers(x)
    fits = [name for name in names if math.prod(shapes[name]) == width]
    if not fits:
        raise InputError(f"no layer before {last!r} gives its {width} inputs: name layer=")
    return str(fits[-1])
