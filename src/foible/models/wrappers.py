"""Models in another light: the same forward, another backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError, KindError, ModelError
from foible.models.holding import TorchModel, as_model
from foible.models.identity import digest_of, structure, weights_hash

At = str | nn.Module | type[nn.Module]
StandIn = Callable[[Tensor], Tensor]


class _Replaced(torch.autograd.Function):
    """Forward: what the defence gave. Backward: as if the stand-in had given it."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, out: Tensor) -> Tensor:
        ctx.dtype = stand_in.dtype
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


class _Hooks:
    """The pair of hooks on one module; a stack, because a module may be called within itself."""

    def __init__(self, name: str, stand_in: StandIn | None) -> None:
        self.name, self.stand_in = name, stand_in
        self.waiting: list[Tensor | None] = []

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            raise ModelError(
                f"bpda replaces the backward of {self.name!r} by its first argument, which is "
                f"{type(first).__name__} and not a tensor: name another module"
            )
        if not (torch.is_grad_enabled() and first.requires_grad):
            self.waiting.append(None)
            return None
        self.waiting.append(first if self.stand_in is None else self.stand_in(first))
        # Off the graph, so that a defence may leave torch, and a copy, so that it may work in
        # place.
        return (first.detach().clone(), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor | None:
        stand_in = self.waiting.pop()
        if stand_in is None:
            return None
        if not isinstance(out, Tensor) or out.shape != stand_in.shape:
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            what = "its input" if self.stand_in is None else "what backward= gives"
            raise ModelError(
                f"{self.name!r} gives {given} and {what} has shape {tuple(stand_in.shape)}: pass "
                "backward=, a differentiable function that gives what the module gives"
            )
        result: Tensor = _Replaced.apply(stand_in, out.detach())  # type: ignore[no-untyped-call]
        return result


class BPDA(TorchModel):
    """A model whose named modules have another backward inside a session; made by `bpda`."""

    def __init__(self, held: TorchModel, names: tuple[str, ...], stand_in: StandIn | None) -> None:
        super().__init__(held.net, held.bounds, held.preprocess, held.outputs)
        self.held, self.names, self.stand_in = held, names, stand_in
        self.looks = held.looks

    def copied(self) -> TorchModel:
        """Refuse: the stand-ins belong to the modules that are held."""
        raise KindError(
            "this method works on a copy of the net with a backward of its own, which would undo "
            "bpda: pass the model that bpda holds"
        )

    def scores(self, x: Tensor) -> Tensor:
        """Return logits (B, K), those of the model that is held."""
        return self.held.scores(x)

    @contextmanager
    def session(self, seed: int = 0, *, freeze: bool = True) -> Iterator[None]:
        """Hold the model as ever, with the hooks in place; they are gone after it."""
        modules = dict(self.net.named_modules(remove_duplicate=False))
        stand_in = self.stand_in
        extra = stand_in if isinstance(stand_in, nn.Module) else None
        handles = []
        with self.held.session(seed, freeze=freeze), _frozen(extra):
            try:
                for name in self.names:
                    hooks = _Hooks(name, stand_in)
                    handles.append(modules[name].register_forward_pre_hook(hooks.before))
                    handles.append(modules[name].register_forward_hook(hooks.after))
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def identity(self) -> dict[str, Any]:
        """Return the model's identity, with what is replaced and by what."""
        by = "identity"
        if self.stand_in is not None:
            lines = structure(self.stand_in)
            if isinstance(self.stand_in, nn.Module):
                lines.append(weights_hash(self.stand_in))
            by = digest_of(lines)
        inner = self.held.identity()
        return {**inner, "bpda": [*inner.get("bpda", []), [list(self.names), by]]}


@contextmanager
def _frozen(module: nn.Module | None) -> Iterator[None]:
    """Hold a stand-in that is a module of its own as the model is held."""
    if module is None:
        yield
        return
    with TorchModel(module, (0, 1), None, "logits").session():
        yield


def bpda(
    model: nn.Module | TorchModel, at: At | Sequence[At], backward: StandIn | None = None
) -> TorchModel:
    """Return the model with another backward where its own gives no gradient (BPDA).

    Backward pass differentiable approximation, Athalye et al. 2018 (A11). The forward stays what
    it is, bit for bit, so that every verdict is the true model's; only the gradient of the named
    modules is replaced.

    model: a module, or a wrapped one, whose bounds, preprocessing and outputs are kept. A defence
    in front of a net: `bpda(nn.Sequential(defence, net), at="0")`. at: names of submodules (as in
    `named_modules`), names of their classes, classes, or the modules themselves. backward: a
    differentiable function of a module's input in place of the module; None is the identity, which
    fits what merely cleans its input. It may be a module with weights.

    Attacks and explanations see the new gradient, in their sessions; outside of them the model has
    its own. Nothing is copied and no hook stays behind.

    Raises InputError for names that the model does not have, and ModelError in the run where a
    module's output has not the shape of its stand-in.

    >>> class Round(nn.Module):
    ...     def forward(self, x):
    ...         return torch.round(x)
    >>> model = bpda(nn.Sequential(Round(), nn.Linear(3, 2)), at="Round")
    >>> model.names
    ('0',)
    """
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(model).__name__} holds no torch module whose backward could be replaced: pass "
            "the nn.Module itself, or foible.wrap(net)"
        )
    wanted = [at] if isinstance(at, str | nn.Module | type) else list(at)
    names: list[str] = []
    for one in wanted:
        names += [name for name in _find(held.net, one) if name not in names]
    if not names:
        raise InputError("at names no module: say whose backward is replaced")
    return BPDA(held, tuple(names), backward)


def _find(net: nn.Module, one: At) -> list[str]:
    """Return the names of the submodules that `one` means; each module once."""
    modules = {name: module for name, module in net.named_modules() if name}
    if isinstance(one, nn.Module):
        found = [name for name, module in modules.items() if module is one]
    elif isinstance(one, type):
        found = [name for name, module in modules.items() if isinstance(module, one)]
    elif one in dict(net.named_modules(remove_duplicate=False)) and one:
        # A module that has two names is one module: its first name stands for both.
        module = net.get_submodule(one)
        found = [name for name, other in modules.items() if other is module]
    else:
        found = [name for name, module in modules.items() if type(module).__name__ == one]
    if not found:
        raise InputError(
            f"at={one!r} is no submodule of {type(net).__name__}: choose from "
            f"{', '.join(modules) or 'none, it has no submodules'}"
        )
    return found
