"""Two sets of batch norms in one net: what AdvProp trains through."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foible.core.errors import InputError
from foible.defend.nets.swapping import copied, swap


class TwinNorm(nn.Module):
    """A batch norm and its auxiliary twin; `main` is in use but within `through_auxiliary`."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.main, self.auxiliary = norm, copy.deepcopy(norm)
        self.aside = False

    def forward(self, x: Tensor) -> Tensor:
        """Return x, normed by the set that is in use."""
        out: Tensor = self.auxiliary(x) if self.aside else self.main(x)
        return out


def split_norms(net: nn.Module) -> nn.Module:
    """Return a copy in which every batch norm has an auxiliary twin, for `advprop`; equal at first.

    Training and evaluation use the main ones; `through_auxiliary` uses the others.

    Raises InputError for a net without batch norms.

    >>> import torch
    >>> net = split_norms(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    >>> with through_auxiliary(net):
    ...     _ = net(torch.rand(8, 2))
    >>> int(net[1].main.num_batches_tracked), int(net[1].auxiliary.num_batches_tracked)
    (0, 1)
    """
    net, found = swap(copied(net, "split_norms"), _split)
    if not found:
        raise InputError(
            f"split_norms: {type(net).__name__} has no batch norm, and AdvProp is two sets: train "
            "on `adversarial(attack, clean=0.5)`, which is the same loss on one net"
        )
    return net


def _split(module: nn.Module) -> nn.Module | None:
    return TwinNorm(module).train(module.training) if isinstance(module, _BatchNorm) else None


@contextmanager
def through_auxiliary(net: nn.Module) -> Iterator[None]:
    """Use the auxiliary batch norms within, in training and in evaluation mode."""
    norms = [m for m in net.modules() if isinstance(m, TwinNorm)]
    held = [norm.aside for norm in norms]
    try:
        for norm in norms:
            norm.aside = True
        yield
    finally:
        for norm, before in zip(norms, held, strict=True):
            norm.aside = before


def main_norms(net: nn.Module, auxiliary: bool = False) -> nn.Module:
    """Return a copy with one set of batch norms again: the class and the names of before.

    auxiliary: keep the auxiliary ones, the net that met adversarials.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    >>> list(main_norms(split_norms(net)).state_dict()) == list(net.state_dict())
    True
    """

    def one(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, TwinNorm):
            return None
        return module.auxiliary if auxiliary else module.main

    return swap(copied(net, "main_norms"), one)[0]
