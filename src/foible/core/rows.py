"""Rows: every per-sample value of a run, sliced together."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError


@dataclass(frozen=True)
class Rows:
    """Per-sample values with one leading dimension B.

    index: (B,) int64, the position in the call, under which the meter and the best are kept.
    id: (B,) int64, the identity that seeds a row's randomness.
    x: (B, *shape) float; y: (B,) int64; target: (B,) int64 or None; eps: (B,) float or None.
    scores: (B, K) clean scores or None; extra: further (B, ...) tensors by name.
    """

    index: Tensor
    id: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None = None
    eps: Tensor | None = None
    scores: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, which: Tensor) -> Rows:
        """Select rows by a (B,) bool mask or by int64 positions; repeats are allowed."""
        return Rows(**{f.name: take(getattr(self, f.name), which) for f in fields(self)})

    def repeat(self, times: int) -> Rows:
        """Repeat the whole block: rows 0..B-1, then again, `times` times."""
        return self if times == 1 else self.take(torch.arange(len(self)).repeat(times))

    def at(self, x: Tensor) -> Rows:
        """Return the same rows at another input."""
        return replace(self, x=x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    def radius(self) -> Tensor:
        """Return eps shaped (B, 1, ..., 1), to broadcast over x."""
        if self.eps is None:
            raise InputError("the threat has no eps, and this method needs one: e.g. Linf(0.1)")
        return per_row(self.eps, self.x)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape (B,) values to broadcast over (B, *shape)."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def take(tree: Any, which: Tensor) -> Any:
    """Select rows in every tensor of a tree of dataclasses, dicts and tuples.

    Anything that is not a tensor is shared by all rows and passes through.
    """
    if isinstance(tree, Tensor):
        return tree[which.to(tree.device)]
    return _map(tree, lambda leaf: take(leaf, which))


def join(first: Any, second: Any) -> Any:
    """Append the rows of `second` to those of `first`; both trees have one shape."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, dict):
        return {key: join(value, second[key]) for key, value in first.items()}
    if isinstance(first, tuple):
        joined = [join(a, b) for a, b in zip(first, second, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    if hasattr(first, "__dataclass_fields__"):
        names = [f.name for f in fields(first)]
        return replace(first, **{n: join(getattr(first, n), getattr(second, n)) for n in names})
    return first


def _map(tree: Any, fn: Any) -> Any:
    if isinstance(tree, dict):
        return {key: fn(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        mapped = [fn(value) for value in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    if hasattr(tree, "__dataclass_fields__"):
        return replace(tree, **{f.name: fn(getattr(tree, f.name)) for f in fields(tree)})
    return tree
