"""Interval bound propagation: a box of inputs, carried through a net function by function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from foible.core.errors import InputError, KindError, ModelError
from foible.core.oracle import Model
from foible.core.rows import per_row
from foible.explain.base import check_bounds, check_inputs
from foible.models.functions import (
    ASKING,
    LINEAR,
    POOLS,
    PROPERTIES,
    Following,
    activation,
    name_of,
    names,
)
from foible.models.holding import TorchModel, as_model

WHO = "interval bounds"
# Activations that never fall. (GELU, SiLU and Mish do.)
RISING = names(
    "relu relu6 hardtanh leaky_relu elu selu celu clamp clip clamp_min clamp_max hardsigmoid "
    "hardshrink softshrink sigmoid tanh softplus sharp_softplus logsigmoid log_sigmoid softsign "
    "tanhshrink exp expm1 log log1p sqrt erf"
)
FALLING = names("sub isub rsub subtract neg negative")
# Sums, means, choices and moves of their arguments: no output falls where an input rises.
GATHERING = (LINEAR | POOLS) - FALLING - names("setitem copy interpolate upsample")
TURNED = names("T mT H")
# What asks one argument for its shape or dtype only.
LIKE = names("to type_as expand_as view_as reshape_as")
NEW = names("zeros_like ones_like full_like new_zeros new_ones new_full new_tensor")
# Elementwise, and linear in the argument that depends on the input: rising or falling.
SCALING = FALLING | names(
    "mul imul rmul multiply div idiv itruediv truediv true_divide divide batch_norm"
)
MAPS = names(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm"
)


@dataclass(frozen=True)
class Box:
    """Between which numbers a tensor lies. version: of the tensor, as it was then.

    before: where a linear layer gave it, the box it was made of and the layer's weight (K, D).
    """

    lower: Tensor
    upper: Tensor
    version: int = 0
    before: tuple[Box, Tensor] | None = None


class Intervals(Following):
    """Follows x through a forward, and keeps the box of whatever depends on it."""

    def __init__(self, x: Tensor, lower: Tensor, upper: Tensor) -> None:
        super().__init__(x, WHO, strict=True)
        self.boxes: Any = WeakTensorKeyDictionary()
        self.boxes[x] = Box(lower, upper, x._version)
        # What was made in the shape or dtype of a tensor that depends on x, and does not itself.
        self.still: Any = WeakTensorKeyDictionary()

    def depends(self, tensor: Tensor) -> bool:
        """Return whether a tensor depends on x; refuse one that came out of nowhere."""
        return super().depends(tensor) and tensor not in self.still

    def box(self, tensor: Tensor) -> Box:
        """Return the box of a tensor; refuse one that changed since, under another name."""
        held: Box | None = self.boxes.get(tensor)
        if held is None:
            raise ModelError(f"{WHO}: the scores do not depend on x in any way that was followed")
        if held.version != tensor._version:
            raise ModelError(
                f"{WHO}: a tensor was changed in place through a view or another name of it, so "
                "its bounds are lost: write that part of the net out of place"
            )
        return held

    def refuse(self, name: str) -> None:
        """Raise for a function that has no bounds here."""
        hint = "write that part with these, or bound another net"
        if name == "batch_norm":
            hint = "a batch norm is served in evaluation mode only, and not in training mode"
        raise ModelError(
            f"{WHO} have no rule for {name!r} of what depends on the input: served are linear "
            "layers and convolutions, activations that never fall, pooling, batch norm in "
            f"evaluation mode, sums and products with constants; {hint}"
        )

    def _serve(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moving: list[Tensor]
    ) -> Any:
        name = name_of(func)
        if name == "get":
            name = str(getattr(getattr(func, "__self__", None), "__name__", ""))
        if name in ASKING or name in PROPERTIES - TURNED:
            return func(*args, **kwargs)
        if name in NEW or (name in LIKE and not self.depends(args[0])):
            out = func(*args, **kwargs)
            self.still[out] = True
            return out
        found = self._bounds(name, func, args, kwargs, moving)
        before = None
        if name == "linear":
            before = (self.box(moving[0]), args[1] if len(args) > 1 else kwargs["weight"])
        out = func(*args, **kwargs)
        for tensor, lower, upper in zip(*map(_tensors, (out, *found)), strict=True):
            self.boxes[tensor] = Box(lower, upper, tensor._version, before)
            if tensor in self.still:  # something that depends on x was added to it in place
                del self.still[tensor]
        return out

    def _bounds(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
        moving: list[Tensor],
    ) -> tuple[Any, Any]:  # fmt: skip
        """Return the lower and the upper bound of what a function gives."""
        boxes = WeakTensorKeyDictionary()
        for tensor in moving:
            boxes[tensor] = self.box(tensor)
        one = boxes[moving[0]]

        def at(pick: Callable[[Box], Tensor]) -> Any:
            """The function with another number in place of each moving tensor."""

            def put(leaf: Any) -> Any:
                # Copies, of constants too: the function may work in place.
                if not isinstance(leaf, Tensor):
                    return leaf
                held = boxes.get(leaf)
                return (leaf if held is None else pick(held)).clone()

            given = tree_map(put, (args, kwargs))
            return func(*given[0], **given[1])

        on = kwargs.get("training") is True or any(arg is True for arg in args)
        if "out" in kwargs or (on and ("dropout" in name or name == "batch_norm")):
            self.refuse(name)
        call = activation(func, args, kwargs)
        if call is not None and len(moving) == 1 and self._rises(name, args, kwargs):
            return call.fn(one.lower), call.fn(one.upper)
        if name in FALLING and len(moving) == 2 and "alpha" not in kwargs:
            minuend, subtrahend = moving[::-1] if name == "rsub" else moving
            a, b = boxes[minuend], boxes[subtrahend]
            return a.lower - b.upper, a.upper - b.lower
        if (
            name in GATHERING | TURNED
            and not kwargs.get("return_indices")
            and "alpha" not in kwargs
        ):
            return at(_lower), at(_upper)
        if name in SCALING and len(moving) == 1 and self._first(name, args, kwargs, moving[0]):
            ends = at(_lower), at(_upper)
            return torch.minimum(*ends), torch.maximum(*ends)
        if name in MAPS and len(moving) == 1 and self._first(name, args, kwargs, moving[0]):
            return self._mapped(func, args, kwargs, one)
        self.refuse(name)
        raise AssertionError

    def _mapped(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], box: Box
    ) -> tuple[Tensor, Tensor]:
        """A linear map of the middle, and that of the radius with absolute weights."""
        named = dict(kwargs)
        rest = list(args[1:])
        named.pop("input", None)
        middle = func((box.lower + box.upper) / 2, *rest, **named)
        for key in ("weight", "mat2", "other"):
            if key in named:
                named[key] = named[key].abs()
        if rest:
            rest[0] = rest[0].abs()
        if len(rest) > 1:
            rest[1] = None
        if "bias" in named:
            named["bias"] = None
        radius = func((box.upper - box.lower) / 2, *rest, **named)
        return middle - radius, middle + radius

    def _rises(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether an activation never falls, with the numbers it is given."""
        if name == "leaky_relu":
            return float(kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)) >= 0
        return name in RISING

    def _first(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> bool:
        """Whether x is what a function is applied to, and not its weight or its divisor."""
        commutes = name in FALLING or ("mul" in name and name != "matmul")
        return commutes or (args[0] if args else kwargs.get("input")) is x


def _lower(box: Box) -> Tensor:
    return box.lower


def _upper(box: Box) -> Tensor:
    return box.upper


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def propagated(model: TorchModel, x: Tensor, eps: float | Tensor) -> tuple[Tensor, Box]:
    """Return logits (B, K) and their box, on the graph of the parameters, in the net's own mode.

    One forward of x, and about two more for its box; for losses. `bounds` and `certified` are for
    users.
    """
    low, high = model.bounds
    reach = per_row(eps.to(x), x) if isinstance(eps, Tensor) else eps
    lower, upper = (x - reach).clamp(low, high), (x + reach).clamp(low, high)
    with torch.enable_grad():
        # With a gradient wanted, a result that hides its way from x is noticed.
        leaf = x.detach().clone().requires_grad_()
        with Intervals(leaf, lower, upper) as intervals:
            scores = intervals.finish(model.scores(leaf))
    return scores, intervals.box(scores)


def worst_gaps(box: Box, y: Tensor) -> Tensor:
    """Return the most that each logit can exceed that of y, (B, K); 0 at y itself.

    Where the logits come straight out of a linear layer, the difference of two of its rows is
    bounded, which is tighter than the difference of two bounds (Gowal et al. 2018).
    """
    own = torch.arange(box.lower.shape[1], device=y.device) == y[:, None]
    if box.before is None or box.before[0].lower.dim() != 2:
        gaps = box.upper - box.lower.gather(1, y[:, None])
    else:
        inner, weight = box.before
        across = weight[None] - weight[y][:, None]  # (B, K, D)
        middle = (box.lower + box.upper) / 2
        radius = (inner.upper - inner.lower) / 2
        gaps = middle - middle.gather(1, y[:, None])
        gaps = gaps + torch.einsum("bkd,bd->bk", across.abs(), radius)
    return gaps.masked_fill(own, 0.0)


def bounds(model: nn.Module | Model, x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return between which logits a model stays within eps of x: lower, upper, both (B, K).

    Interval bound propagation (Gowal et al. 2018; Mirman et al. 2018). Certain, and mostly far
    from tight on a net that was not trained for it. The ball is Linf, in the units of x, cut to
    the model's box; a preprocessing is part of the model. Evaluation mode.

    model: linear layers, convolutions, ReLU and other activations that never fall, pooling, batch
    norm, sums, products with constants, in modules or functions of any class; what else it does is
    refused by name. x: (B, *shape) float. eps: a number or (B,), 0 or more.

    The bounds are computed in x's dtype and not rounded outwards: they may be off by what one
    forward in that dtype is off.

    Raises KindError for a model that holds no torch module, InputError for a bad eps, ModelError
    for a function without a rule.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
    >>> [b.tolist() for b in bounds(net, torch.tensor([[0.5, 0.25]]), 0.25)]
    [[[0.0, 0.5]], [[0.75, 1.5]]]
    """
    boxes = _boxes(model, x, eps)
    return torch.cat([box.lower for box in boxes]), torch.cat([box.upper for box in boxes])


def certified(model: nn.Module | Model, x: Tensor, y: Tensor, eps: float | Tensor) -> Tensor:
    """Return whether every input within eps of x is certainly classified as y: (B,) bool.

    By interval bounds, with the last linear layer taken together with the difference of logits.
    False says that these bounds prove nothing, not that an adversarial exists. Arguments and errors
    as in `bounds`; y: (B,) int64.

    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x, y = torch.tensor([[0.75, 0.25]]), torch.tensor([0])
    >>> certified(net, x, y, 0.2).item(), certified(net, x, y, 0.3).item()
    (True, False)
    """
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"y is {tuple(y.shape)} {y.dtype}: one int64 label for each of {len(x)}")
    safe, begun = [], 0
    for box in _boxes(model, x, eps):
        labels = y[begun : begun + len(box.lower)]
        begun += len(labels)
        gaps = worst_gaps(box, labels)
        others = gaps.scatter(1, labels[:, None], float("-inf"))
        safe.append(others.max(1).values < 0)
    return torch.cat(safe)


def _boxes(model: Any, x: Tensor, eps: float | Tensor) -> list[Box]:
    """Return the box of the logits of each part of a batch, off the graph."""
    held = as_model(model)
    check_inputs(x)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(model).__name__} holds no torch module that could be followed: pass the "
            "nn.Module itself, or foible.wrap(net)"
        )
    reach = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
    if reach.shape not in ((), x.shape[:1]) or not bool((reach >= 0).all()):
        raise InputError(f"eps={eps}: a number or one a sample ({len(x)}), 0 or more")
    if len(x):
        check_bounds(x, held.bounds)
    size = max(1, held.chunk(x) // 4) if len(x) else 1
    boxes = []
    with held.session(), torch.no_grad():
        for begun in range(0, max(1, len(x)), size):
            part = reach[begun : begun + size] if reach.dim() else reach.expand(len(x[:size]))
            rows = x[begun : begun + size]
            box = propagated(held, rows, part[: len(rows)])[1]
            boxes.append(replace(box, lower=box.lower.detach(), upper=box.upper.detach()))
    return boxes
