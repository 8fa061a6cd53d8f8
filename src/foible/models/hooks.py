"""Hooks that look into a net for one forward, and are gone after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError, ModelError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """One run of one module in a forward of one sample.

    name: as in `named_modules`; turn: which run of this module it is, from 1; shape: of the
    output for one sample, None where that is no tensor with the batch first.
    """

    name: str
    turn: int
    shape: tuple[int, ...] | None


@contextmanager
def recorded(net: nn.Module) -> Iterator[list[Run]]:
    """List every run of every submodule within, in the order in which they end."""
    runs: list[Run] = []
    turns: dict[str, int] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, args: Any, out: Any) -> None:
            turns[name] = turns.get(name, 0) + 1
            first = isinstance(out, Tensor) and out.dim() > 1 and len(out) == 1
            runs.append(Run(name, turns[name], tuple(out.shape[1:]) if first else None))

        return after

    handles = []
    try:
        for name, module in net.named_modules():
            if name:
                handles.append(module.register_forward_hook(listen(name)))
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def named(runs: list[Run]) -> dict[str, tuple[int, ...]]:
    """Return the output shapes of layers, in the order in which they end.

    A module that runs several times is listed as `name#1`, `name#2` and so on.
    """
    often = {run.name for run in runs if run.turn > 1}
    called = {run: f"{run.name}#{run.turn}" if run.name in often else run.name for run in runs}
    return {called[run]: run.shape for run in runs if run.shape is not None}


def find(net: nn.Module, runs: list[Run], layer: str | None) -> Run:
    """Return the run that a layer's name means; None is the last that gives maps (C, H, W)."""
    there = named(runs)
    if layer is None:
        maps = [k for k, s in there.items() if len(s) == 3 and math.prod(s[1:]) > 1]
        if not maps:
            raise InputError(
                "no module of the net gives maps (B, C, H, W) of more than one position: name the "
                f"layer that is meant; {_choice(there)}"
            )
        layer = maps[-1]
    name, _, turn = layer.partition("#")
    modules = dict(net.named_modules(remove_duplicate=False))
    if not name or name not in modules or (turn and not turn.isdigit()):
        raise InputError(f"layer {layer!r} is no module of {type(net).__name__}: {_choice(there)}")
    # A module that has two names is one module, which is listed under its first.
    name = next(first for first, module in net.named_modules() if module is modules[name])
    found = [run for run in runs if run.name == name]
    if not found:
        raise InputError(
            f"layer {layer!r} does not run in the forward, or is called by its `forward`, which no "
            f"hook sees: {_choice(there)}"
        )
    if not turn and len(found) > 1:
        options = ", ".join(repr(f"{name}#{run.turn}") for run in found)
        raise InputError(f"layer {layer!r} runs {len(found)} times in one forward: say {options}")
    if turn and not 1 <= int(turn) <= len(found):
        raise InputError(f"layer {layer!r}: {name!r} runs {len(found)} times in one forward")
    run = found[int(turn) - 1] if turn else found[0]
    if run.shape is None:
        raise InputError(
            f"layer {layer!r} does not give one tensor with the batch first: {_choice(there)}"
        )
    return run


def _choice(there: dict[str, tuple[int, ...]]) -> str:
    if not there:
        return "none of its modules can be looked into"
    return "choose from " + ", ".join(f"{name} {shape}" for name, shape in there.items())


class Glimpse:
    """What one layer gave in one forward; `edit` replaces it, `read` makes what is kept of it."""

    def __init__(
        self, run: Run, rows: int, edit: Edit | None = None, read: Edit | None = None
    ) -> None:
        self.run, self.rows, self.edit, self.read = run, rows, edit, read
        self.turn = 0
        self._activation: Tensor | None = None

    @property
    def activation(self) -> Tensor:
        """The layer's output (B, *shape); in grad mode the scores can be differentiated by it."""
        if self._activation is None:
            raise ModelError(
                f"layer {self.run.name!r} ran in a first forward and not in this one: a net whose "
                "course depends on its input cannot be looked into"
            )
        return self._activation

    def look(self, module: nn.Module, args: Any, out: Any) -> Tensor | None:
        """Keep, or replace, what the module gives; a forward hook."""
        self.turn += 1
        if self.turn != self.run.turn:
            return None
        if not isinstance(out, Tensor) or len(out) != self.rows:
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ModelError(f"layer {self.run.name!r} gives {given} for {self.rows} samples")
        if self.read is not None:
            self._activation = self.read(out)
            return None
        if self.edit is not None:
            # A copy, so that the edit may work in place.
            self._activation = self.edit(out.clone())
            if self._activation.shape != out.shape:
                raise InputError(
                    f"the edit of layer {self.run.name!r} gives {tuple(self._activation.shape)} "
                    f"and the layer {tuple(out.shape)}: keep the shape"
                )
            return self._activation
        # Kept is a copy, and the net goes on with another: what follows may work in place, on the
        # output or on what it is a view of.
        kept = out.clone()
        if torch.is_grad_enabled() and not kept.requires_grad:
            kept = kept.detach().requires_grad_()
        self._activation = kept
        return kept.clone()


@contextmanager
def watched(net: nn.Module, glimpse: Glimpse) -> Iterator[Glimpse]:
    """Keep or edit a layer's output in the forward within."""
    handle = net.get_submodule(glimpse.run.name).register_forward_hook(glimpse.look)
    try:
        yield glimpse
    finally:
        handle.remove()
