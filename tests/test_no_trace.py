"""A model comes back exactly as it was: after success, an exception, Ctrl-C."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Counter, predicted
from torch import Tensor, nn

from foible import attacks, explain
from foible.attacks import bim, curve, pgd
from foible.core.errors import ModelError
from foible.models import wrap
from foible.parts.threats import Linf

# --- no trace


def everything_about(net: nn.Module) -> dict[str, Any]:
    hooks = [name for name in vars(nn.Module()) if "hooks" in name]
    return {
        "training": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "state": [v.clone() for v in net.state_dict().values()],
        "hooks": [[len(getattr(m, h) or ()) for h in hooks] for m in net.modules()],
        "torch": torch.random.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def prepared(net: nn.Module) -> nn.Module:
    """Every state a careless user may leave: mixed modes, frozen parts, gradients, hooks."""
    net.train()
    net.norm.eval()
    net.again.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    net.conv.register_forward_hook(lambda module, args, out: None)
    return net


CALLS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "pgd": lambda m, x, y: pgd(Linf(0.1), 4)(m, x, y),
    "success": lambda m, x, y: pgd(Linf(0.1), 4, stop="success")(m, x, y),
    "curve": lambda m, x, y: curve(bim(Linf(0.1), 3), [0.01, 0.1])(m, x, y),
    "deletion": lambda m, x, y: attacks.ig_deletion(explain.saliency(), most=4)(m, x, y),
    "smoothgrad": lambda m, x, y: explain.smoothgrad(4)(m, x, y),
    "graph": lambda m, x, y: explain.integrated_gradients(4)(m, x, y, create_graph=True),
    "vargrad": lambda m, x, y: explain.vargrad(4)(m, x, y),
    "grad_cam": lambda m, x, y: explain.grad_cam("again#2")(m, x, y),
    "guided": lambda m, x, y: explain.guided_backprop()(m, x, y),
    "deep_lift": lambda m, x, y: explain.deep_lift()(m, x, y, create_graph=True),
    "lime": lambda m, x, y: explain.lime(10)(m, x, y),
    "bend": lambda m, x, y: attacks.bend(Linf(0.1), explain.saliency(), 3)(m, x, y, x),
    "fragile": lambda m, x, y: attacks.fragile(Linf(0.1), explain.saliency(), k=5, steps=3)(
        m, x, y
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_model_is_left_as_it_was(name: str, net: nn.Module, images: Tensor) -> None:
    prepared(net)
    y = predicted(net, images)
    before = everything_about(net)
    kept = images.clone()
    CALLS[name](net, images, y)
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == []
    assert torch.equal(images, kept)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ModelError])
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("bend", "fragile")])
def test_the_model_is_left_as_it_was_when_it_breaks(
    name: str, call: int, error: type[BaseException], net: nn.Module, images: Tensor
) -> None:
    prepared(net)
    y = predicted(net, images)
    before = everything_about(net)
    broken = Counter(wrap(net), at_most=3, broken_at=call, error=error)
    with pytest.raises(error, match="the model broke"):
        CALLS[name](broken, images, y)
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_the_model_is_left_as_it_was_when_its_own_layer_breaks(net, images: Tensor) -> None:
    """Also in the forward that measures the memory of one sample."""
    wrong = nn.Linear(3, 3)
    before = everything_about(net)
    head, net.head = net.head, wrong
    with pytest.raises(RuntimeError, match="shapes"):
        pgd(Linf(0.1))(net, images, torch.zeros(9).long())
    net.head = head
    assert [k for k, v in everything_about(net).items() if not same(before[k], v)] == []
