"""A model behind a change of its input: what every attack and explainer must know of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.models import TorchModel, as_model
from foible.models.identity import digest_of, structure, weights_hash


class Change(nn.Module):
    """A change of inputs (B, *shape), in the units of the model's bounds.

    passes: whether a gradient comes back through it that is worth following; where it is False,
    `zero` says whether PyTorch gives zeros (rounding), and else the change leaves PyTorch and no
    gradient comes back at all. random: whether two forwards differ.
    """

    passes: bool = True
    zero: bool = False
    random: bool = False


class Front(nn.Module):
    """A net behind a change of its input: `defence` and `net` are its submodules.

    held: the model whose bounds, preprocessing and outputs count.
    """

    def __init__(self, defence: Change, held: TorchModel) -> None:
        super().__init__()
        self.defence, self.net, self.held = defence, held.net, held

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.held.scores(self.defence(x))


class Defended(TorchModel):
    """A model with a defence around it, which every attack and explainer takes as a model.

    net: a module that maps inputs, as the model takes them, to logits, and has the model as
    `held`. defence: the name of what breaks it, for `foible.defend.breaker`, "" where nothing is
    known to. access: what the whole gives. looks: forwards of the model that one answer costs.

    Seeds: random defences draw from the random state that a session forks, as dropout does.
    Outside of a session, where you call the model yourself, they draw from the global one.
    """

    def __init__(
        self,
        net: nn.Module,
        defence: str,
        access: Access = Access.INTERNALS,
        looks: int = 1,
    ) -> None:
        held: TorchModel = net.held  # type: ignore[assignment]
        super().__init__(net, held.bounds, None, "logits")
        self.defence, self.looks = defence, looks * held.looks
        self.access = min(access, held.access)
        self.cure = getattr(held, "cure", "")
        if access < Access.GRADIENTS:
            self.cure = (
                f"see through the defence with foible.defend.breaker({defence!r}), which knows "
                "what to put in place of its gradient; `.model(model)` is the model to attack"
            )

    @property
    def held(self) -> TorchModel:
        """The model that is defended."""
        held: TorchModel = self.net.held  # type: ignore[assignment]
        return held

    @contextmanager
    def session(self, seed: int = 0, *, freeze: bool = True) -> Iterator[None]:
        """Hold the defence and, in its own way, the model behind it."""
        with super().session(seed, freeze=freeze), self.held.session(seed, freeze=freeze):
            yield

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one forward holds, each of which is `looks` of the net's."""
        with self.session(), torch.no_grad():
            seen = self._seen(x[:1].detach().clone())
        return max(1, self.held.chunk(seen) * self.held.looks // self.looks)

    def copied(self) -> TorchModel:
        """Return the model around a copy of its net; refused where what it holds refuses."""
        self.held.copied()
        return super().copied()

    def identity(self) -> dict[str, Any]:
        """Return the model's identity with the defence's name, settings, code and weights."""
        inner, own = self.held.identity(), self._own()
        how = f"{own!r} {self.net.extra_repr()}".strip()
        lines = [inner["architecture"], *structure(own), weights_hash(own), how]
        return {
            **inner,
            "architecture": digest_of(lines),
            "defence": [*inner.get("defence", []), [self.defence, how]],
        }

    def _seen(self, x: Tensor) -> Tensor:
        """Return the input that the model behind the defence would meet."""
        changed: Tensor = self._own()(x)
        return changed

    def _own(self) -> nn.Module:
        own: nn.Module = self.net.defence  # type: ignore[assignment]
        return own


def behind(defence: Change, model: Any, name: str) -> Defended:
    """Return the model behind a change of its input; name: of what breaks it."""
    blind = not defence.passes and not defence.zero
    access = Access.SCORES if blind else Access.INTERNALS
    return Defended(Front(defence, torch_model(model, name)), name, access)


def torch_model(model: Any, who: str) -> TorchModel:
    """Return the model wrapped; refuse what holds no torch module."""
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{who} stands in front of a torch module, and {type(model).__name__} holds none: pass "
            "the nn.Module itself, or foible.wrap(net)"
        )
    return held


def spanned(bounds: tuple[float, float], who: str) -> tuple[float, float]:
    """Return the bounds; refuse those without an end, which have no scale to work on."""
    if bounds[1] - bounds[0] > 1e30:
        raise InputError(
            f"{who} works on the scale of the input, and the model's bounds are {bounds}: wrap it "
            "with the bounds of your data, e.g. foible.wrap(net, bounds=(0, 1))"
        )
    return bounds
