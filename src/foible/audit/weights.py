"""Weights of a user: read without running code, put into a network, differences shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError, MissingExtra

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before each name
_INSIDE = ("state_dict", "model_state_dict", "model")  # where checkpoints keep the weights
_CURE = (
    "save the weights alone, where they were made: "
    "safetensors.torch.save_file(net.state_dict(), 'weights.safetensors')"
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from .pt or .pth without running any code in it.

    A checkpoint that holds a state dict under "state_dict", "model_state_dict" or "model" is
    opened; a "module." before every name (DataParallel) is taken off.

    Raises InputError for a missing or damaged file, pickled code, or weights that hold NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path of the weights")
    if path.suffix == ".safetensors":
        found: Any = _safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        found = _torch_file(path)
    else:
        raise InputError(
            f"{path} ends in {path.suffix or 'nothing'!r}: weights are read from .safetensors, or "
            f"from .pt and .pth that hold tensors only; {_CURE}"
        )
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path} holds {_kind(found)} and not a state dict: {_CURE}")
    if strange := [str(k) for k, v in found.items() if not isinstance(v, Tensor)]:
        raise InputError(f"{path} holds entries that are no tensors ({_few(strange)}): {_CURE}")
    weights = {str(k): v for k, v in found.items()}
    for prefix in _WRAPPERS:
        if all(k.startswith(prefix) for k in weights):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    broken = [k for k, v in weights.items() if v.is_floating_point() and bool(v.isnan().any())]
    if broken:
        raise InputError(
            f"{path} holds NaN in {len(broken)} of {len(weights)} tensors ({_few(broken)}): the "
            "training diverged or the file is damaged; use an earlier checkpoint"
        )
    return weights


def put_weights(net: nn.Module, path: str | Path) -> None:
    """Load the weights of a file into `net`; every name and shape must fit.

    Raises InputError that lists missing and unexpected names, or shapes that differ.
    """
    weights, own = read_weights(path), net.state_dict()
    # A file need not repeat tied weights: what shares memory with a given tensor is given.
    given = {own[k].data_ptr() for k in weights if k in own}
    missing = [k for k in own if k not in weights and own[k].data_ptr() not in given]
    unexpected = [k for k in weights if k not in own]
    if missing or unexpected:
        said = [f"missing {_few(missing)}"] if missing else []
        said += [f"unexpected {_few(unexpected)}"] if unexpected else []
        raise InputError(
            f"the weights in {path} are not those of this {type(net).__name__}: "
            f"{'; '.join(said)}. {_advice(own, weights)}"
        )
    odd = [k for k in weights if weights[k].shape != own[k].shape]
    if odd:
        shapes = [f"{k} {tuple(weights[k].shape)} for {tuple(own[k].shape)}" for k in odd]
        raise InputError(
            f"the weights in {path} have other shapes than this {type(net).__name__}: "
            f"{_few(shapes)}. Build the model with the sizes that it was trained with"
        )
    net.load_state_dict(weights, strict=False)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra("weights need safetensors: run `pip install safetensors`") from error
    try:
        return load_file(path)
    except Exception as error:  # its own error kinds, and the disk's
        raise InputError(
            f"{path} is not a safetensors file, or it is cut short ({error}): {_CURE}"
        ) from error


def _torch_file(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        if "weights" in str(error).lower() and "only" in str(error).lower():
            raise InputError(
                f"{path} is a pickle that holds more than tensors, and opening it could run any "
                f"code: foible does not. Make it a safetensors file: {_CURE}"
            ) from error
        first = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {first}): copy it again, or {_CURE}"
        ) from error


def _advice(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Name the common cause: one prefix more or less on every name."""
    for name in weights:
        for wanted in own:
            if name.endswith(f".{wanted}"):
                return f"Names in the file begin with {name.removesuffix(wanted)!r}: take it off"
            if wanted.endswith(f".{name}"):
                return f"The file lacks {wanted.removesuffix(name)!r} before its names: add it"
    return "Give the weights of this architecture, or the factory of those weights"


def _kind(thing: Any) -> str:
    return "nothing" if isinstance(thing, Mapping) else type(thing).__name__


def _few(names: list[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
