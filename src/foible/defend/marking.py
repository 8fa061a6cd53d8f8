"""The name of a defence, noted on the net that has it."""

from __future__ import annotations

from torch import nn


def marked(net: nn.Module, defence: str) -> nn.Module:
    """Note on a net which defence it was trained by, so that an audit runs what breaks it.

    A net that has an attribute of that name keeps its own.
    """
    if not hasattr(net, "defence"):
        net.defence = defence  # type: ignore[assignment]
    return net
