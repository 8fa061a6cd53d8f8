"""Following a net function by function: every activation, whichever way it is written.

A module's ReLU, `F.relu`, `torch.relu`, `Tensor.relu_` and `clamp(min=0)` all pass through
PyTorch's function overrides, so a rule that is held there misses none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from foible.core.errors import ModelError


def names(words: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(words.split())


SMOOTH = names(
    "sigmoid tanh softplus sharp_softplus gelu silu mish logsigmoid log_sigmoid softsign "
    "tanhshrink exp expm1 log log1p sqrt rsqrt square pow rpow reciprocal "
    "rtruediv rdiv sin cos erf erfc"
)
KINKED = names(
    "relu relu6 hardtanh leaky_relu rrelu prelu elu selu celu threshold clamp clip clamp_min "
    "clamp_max hardswish hardsigmoid hardshrink softshrink abs"
)
POOLS = frozenset(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3))
# Linear in all arguments that depend on the input.
LINEAR = names(
    "add iadd radd sub isub rsub subtract neg positive cat concat concatenate stack hstack vstack "
    "sum mean flatten unflatten reshape reshape_as view view_as permute transpose t swapaxes "
    "swapdims movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to repeat "
    "repeat_interleave tile chunk split tensor_split unbind getitem setitem select narrow "
    "index_select gather contiguous clone to type type_as float double half bfloat16 cpu cuda "
    "roll flip pixel_shuffle pixel_unshuffle channel_shuffle unfold fold avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample "
    "pad diagonal cumsum copy dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout"
)
# Linear where one argument depends on the input, and no more.
PRODUCTS = names(
    "mul imul rmul multiply matmul rmatmul mm bmm mv dot einsum tensordot linear bilinear conv1d "
    "conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm addmv baddbmm "
    "batch_norm div idiv itruediv truediv true_divide divide"
)
ASKING = names(
    "size dim numel len ndimension stride is_floating_point is_complex is_contiguous element_size "
    "get_device nelement register_hook retain_grad"
)
PROPERTIES = names("T mT H shape dtype device ndim requires_grad is_cuda layout")
# What a ReLU might be hidden in, where nobody would look for it.
HIDING = names("maximum minimum fmax fmin where heaviside rnn_relu rnn_relu_cell")


def sharp_softplus(x: Tensor, beta: float) -> Tensor:
    """Return log(1 + exp(beta x)) / beta, which tends to ReLU as beta grows.

    Written with logsigmoid: torch's softplus is linear above a threshold, a kink that float64
    sees, and logaddexp has a NaN in its second derivative for large negative inputs.
    """
    if has_torch_function_unary(x):
        result: Tensor = handle_torch_function(sharp_softplus, (x,), x, beta)
        return result
    return -F.logsigmoid(-beta * x) / beta


@dataclass(frozen=True)
class Call:
    """One activation function, elementwise, as the net calls it.

    kind: "relu", "clipped" (ReLU with a ceiling), "soft" (a smooth ReLU), "kinked" or "smooth".
    fn: the function of the argument alone, out of place; inplace: whether the argument is
    overwritten.
    """

    name: str
    kind: str
    argument: Tensor
    fn: Callable[[Tensor], Tensor]
    inplace: bool

    def taken(self) -> Tensor:
        """Return the argument; a copy of it where it will be overwritten."""
        return self.argument.clone() if self.inplace else self.argument

    def give(self, out: Tensor) -> Tensor:
        """Return `out` the way the net expects it: in the argument's place, where it is so."""
        return self.argument.copy_(out) if self.inplace else out


def name_of(func: Any) -> str:
    """Return a function's name without underscores: `__radd__` is radd, `relu_` is relu."""
    return str(getattr(func, "__name__", func)).strip("_")


def activation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Return the call if it is an activation function, else None."""
    name = name_of(func)
    if name not in SMOOTH and name not in KINKED:
        return None
    rest, named = args, dict(kwargs)
    x = rest[0] if rest else named.pop("input", None)
    rest = rest[1:]
    inplace = bool(named.pop("inplace", False))
    given = str(func.__name__)
    if given.endswith("_") and not given.startswith("_"):
        inplace = True
        func = getattr(Tensor, name, None) or getattr(F, name)
    if not isinstance(x, Tensor) or "out" in named:
        return None
    fn = partial(_applied, func, rest, named)
    return Call(name, _kind(name, rest, named), x, fn, inplace)


def _applied(func: Any, rest: tuple[Any, ...], named: dict[str, Any], at: Tensor) -> Tensor:
    result: Tensor = func(at, *rest, **named)
    return result


def _kind(name: str, rest: tuple[Any, ...], named: dict[str, Any]) -> str:
    if name in ("softplus", "sharp_softplus"):
        return "soft"
    if name in SMOOTH:
        return "smooth"
    if name == "relu":
        return "relu"
    keys = {"clamp": ("min", "max"), "clip": ("min", "max"), "clamp_min": ("min",),
            "hardtanh": ("min_val", "max_val"), "threshold": ("threshold", "value")}  # fmt: skip
    given = {**dict(zip(keys.get(name, ()), rest, strict=False)), **named}
    low = given.get("min", given.get("min_val", given.get("threshold")))
    high = given.get("max", given.get("max_val"))
    if name == "relu6":
        return "clipped"
    if name not in keys or low is None or not _zero(low):
        return "kinked"
    if name == "threshold":
        return "relu" if _zero(given["value"]) else "kinked"
    return "relu" if high is None else "clipped"


def _zero(value: Any) -> bool:
    return not bool(value.any()) if isinstance(value, Tensor) else float(value) == 0


class Following(TorchFunctionMode):
    """Follows what depends on x through the net's forward, function by function.

    who: what refuses, for the errors. strict: refuse whatever is not known to be linear, an
    activation or a maximum over windows; else refuse only what may hide a ReLU. Subclasses say
    what becomes of an activation and of a maximum.
    """

    def __init__(self, x: Tensor, who: str, *, strict: bool) -> None:
        super().__init__()
        self.who, self.strict = who, strict
        # Of each tensor that was seen: whether it depends on x, and whether it required grad.
        self.seen: Any = WeakTensorKeyDictionary()
        self.seen[x] = (True, x.requires_grad)

    def activation(self, call: Call) -> Tensor:
        """Return what the net gets for an activation function."""
        return call.give(call.fn(call.taken()))

    def maximum(self, func: Any, x: Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """Return what the net gets for a maximum over windows."""
        result: Tensor = func(x, *rest, **named)
        return result

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        moving = [t for t in _tensors((args, kwargs)) if self.depends(t)]
        out = self._serve(func, args, kwargs, moving) if moving else func(*args, **kwargs)
        for tensor in _tensors(out):
            self.seen[tensor] = (bool(moving), tensor.requires_grad)
        if moving and name_of(func) == "setitem":
            self.seen[args[0]] = (True, args[0].requires_grad)
        return out

    def depends(self, tensor: Tensor) -> bool:
        """Return whether a tensor depends on x; refuse one that came out of nowhere."""
        known = self.seen.get(tensor)
        if known is not None and known[1] == tensor.requires_grad:
            return bool(known[0])
        if not tensor.requires_grad or tensor.is_leaf:
            return False
        raise ModelError(
            f"{self.who} follows a net function by function, and a result came out of something "
            "that it cannot see into (an autograd.Function of your own, a scripted or compiled "
            "module, a write through a view): write that part with PyTorch's functions, or use a "
            "method that needs gradients only"
        )

    def finish(self, scores: Tensor) -> Tensor:
        """Return the scores; refuse them if the way from x to them was lost."""
        if scores.requires_grad:
            self.depends(scores)
        return scores

    def _serve(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moving: list[Tensor]
    ) -> Any:
        name = name_of(func)
        random = kwargs.get("training") is True or (
            "dropout" in name and any(one is True for one in args)
        )
        call = None if random else activation(func, args, kwargs)
        if call is not None and len(moving) == 1:
            return self.activation(call)
        if name in POOLS and not kwargs.get("return_indices"):
            named = dict(kwargs)
            x = args[0] if args else named.pop("input")
            return self.maximum(func, x, args[1:], named)
        if self.strict:
            if random or not self._linear(name, func, args, kwargs, len(moving)):
                self.refuse(name)
        elif name in HIDING or (name in ("max", "min") and len(_tensors((args, kwargs))) == 2):
            self.refuse(name)
        return func(*args, **kwargs)

    def _linear(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moving: int
    ) -> bool:
        if name == "get":
            return getattr(getattr(func, "__self__", None), "__name__", "") in PROPERTIES
        if name in ("where", "masked_fill"):
            place, key = (0, "condition") if name == "where" else (1, "mask")
            return not self._at(args, kwargs, place, key)
        if name in PRODUCTS:
            return moving == 1 and ("div" not in name or self._at(args, kwargs, 0, "input"))
        return name in LINEAR or name in ASKING

    def _at(self, args: tuple[Any, ...], kwargs: dict[str, Any], place: int, key: str) -> bool:
        """Return whether one argument depends on x."""
        one = args[place] if len(args) > place else kwargs.get(key)
        return isinstance(one, Tensor) and self.depends(one)

    def refuse(self, name: str) -> None:
        """Raise for a function that the rule does not serve."""
        raise ModelError(
            f"{self.who} has no rule for {name!r} of what depends on the input: it serves nets of "
            "linear layers, elementwise activations and max-pooling, no products of two "
            "activations, no softmax and no attention. Write a hidden ReLU as relu, explain "
            "logits and not probabilities, or choose another method"
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
