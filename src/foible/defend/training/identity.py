"""What makes a training this one: the net, the data, the loss, the settings."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from torch import Tensor, nn

from foible.defend.losses.base import Loss
from foible.defend.training.settings import Settings
from foible.models.holding import TorchModel
from foible.models.identity import hash_tensors, weights_hash

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_FREE = ("save_seconds",)  # settings that change no number


def run_identity(model: TorchModel, data: Any, loss: Loss, epochs: int, settings: Settings) -> str:
    """Return the hash of a training; of a loader only what it is and how long."""
    held = {k: v for k, v in vars(settings).items() if k not in _FREE}
    lines = [repr(sorted(model.identity().items())), *_told(loss), str(epochs), *_told(held)]
    if isinstance(data, tuple | list) and all(isinstance(part, Tensor) for part in data):
        lines.append(hash_tensors((str(i), part) for i, part in enumerate(data)))
    else:
        lines.append(f"{type(data).__qualname__} of {len(data) if hasattr(data, '__len__') else 0}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _told(thing: Any) -> list[str]:
    """Describe a loss or settings: their printed form without addresses, and weights inside."""
    lines = [_ADDRESS.sub("", repr(thing))]
    seen = [thing]
    while seen:
        one = seen.pop()
        if isinstance(one, nn.Module):
            lines.append(weights_hash(one))
        elif isinstance(one, TorchModel):
            lines.append(weights_hash(one.net))
        elif isinstance(one, tuple | list):
            seen += list(one)
        elif hasattr(one, "__dataclass_fields__"):
            seen += list(vars(one).values())
    return lines
