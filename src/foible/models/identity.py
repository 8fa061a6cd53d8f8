"""What makes a model this one and no other: weights, structure, settings and code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash tensors in order, by name, shape, dtype and bytes."""
    found = hashlib.sha256()
    for name, value in named:
        data = value.detach().cpu().contiguous()
        found.update(f"{name}{tuple(data.shape)}{data.dtype}".encode())
        found.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return "sha256:" + found.hexdigest()


def weights_hash(net: nn.Module) -> str:
    """Hash every parameter and buffer of a net."""
    held = sorted(net.state_dict().items())
    return hash_tensors((name, value) for name, value in held if isinstance(value, Tensor))


def structure(thing: Any) -> list[str]:
    """Describe a net, or a callable around it, beyond its weights.

    A net's printed form misses plain attributes (a scale, a mode) and what a class's own
    `forward` does, so both count: attributes that are plain values, and byte code.
    """
    if isinstance(thing, nn.Module):
        lines = [repr(thing)]
        for name, module in thing.named_modules():
            plain = {
                key: value
                for key, value in sorted(vars(module).items())
                if key != "training" and isinstance(value, bool | int | float | str | tuple)
            }
            lines.append(f"{name}:{type(module).__qualname__}:{plain!r}")
            if not type(module).__module__.startswith("torch."):
                lines += structure(type(module).forward)
        return lines
    code = getattr(thing, "__code__", None)
    if isinstance(code, CodeType):
        held = [repr(cell.cell_contents) for cell in (thing.__closure__ or ())]
        return [*_code(code), *(text for text in held if " at 0x" not in text)]
    if thing is None or isinstance(thing, str):
        return [str(thing)]
    kind = type(thing)
    return [kind.__qualname__, *structure(getattr(kind.__call__, "__func__", kind.__call__))]


def _code(code: CodeType) -> list[str]:
    # The order of a set of strings changes from process to process.
    plain = [c for c in code.co_consts if not isinstance(c, CodeType)]
    constants = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in plain]
    inner = [line for c in code.co_consts if isinstance(c, CodeType) for line in _code(c)]
    return [code.co_code.hex(), repr(constants), repr(code.co_names), *inner]


def digest_of(lines: list[str]) -> str:
    """Hash such a description to 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
