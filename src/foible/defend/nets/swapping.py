"""Modules of a copy exchanged for others, whichever class the user's net has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from foible.core.errors import InputError, KindError

M = TypeVar("M", bound=nn.Module)


def copied(net: nn.Module, who: str) -> nn.Module:
    """Return a deep copy of a torch module; KindError for anything else."""
    if not isinstance(net, nn.Module):
        raise KindError(
            f"{who} changes a torch.nn.Module and got {type(net).__name__}: pass the network "
            "itself (of a wrapped model: model.net), and wrap what comes back"
        )
    return copy.deepcopy(net)


def swap(net: nn.Module, new: Callable[[nn.Module], nn.Module | None]) -> tuple[nn.Module, int]:
    """Exchange, in place, each module for which `new` gives another; return the net, and how many.

    A module that is used in two places is exchanged for one module in both.
    """
    made: dict[int, nn.Module | None] = {}

    def of(module: nn.Module) -> nn.Module | None:
        if id(module) not in made:
            made[id(module)] = new(module)
        return made[id(module)]

    before = list(net.modules())  # all stay alive, so that no id comes twice
    for parent in before:
        # Not named_children(): it names a module that is used in two places only once.
        for name, child in parent._modules.items():
            other = None if child is None else of(child)
            if other is not None:
                parent._modules[name] = other
    root = of(net)
    return (net if root is None else root), sum(other is not None for other in made.values())


def pick(net: nn.Module, names: Sequence[str], kind: type[M], who: str) -> list[M]:
    """Return the submodules of these names; InputError for one that is not there or not `kind`."""
    there = dict(net.named_modules(remove_duplicate=False))
    options = [name for name, module in there.items() if name and isinstance(module, kind)]
    picked: list[M] = []
    for name in [names] if isinstance(names, str) else names:
        module = there.get(name)
        if not name or not isinstance(module, kind):
            what = "no submodule" if module is None else f"a {type(module).__name__}"
            raise InputError(
                f"{who}: {name!r} is {what} of {type(net).__name__}; choose {kind.__name__}s from "
                f"{', '.join(options) or 'none, it has none'}"
            )
        if all(module is not other for other in picked):
            picked.append(module)
    if not picked:
        raise InputError(f"{who}: no layer is named, so nothing would change")
    return picked
