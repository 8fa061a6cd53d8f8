"""Defensive distillation as a whole: the teacher, then the student."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foible.defend.losses.teaching import Tempered, distilled
from foible.defend.training import Settings, train
from foible.models.holding import TorchModel, as_module


def distillation(
    net: nn.Module | TorchModel,
    data: Any,
    temperature: float = 100.0,
    epochs: int = 10,
    *,
    valid: tuple[Tensor, Tensor] | None = None,
    settings: Settings | None = None,
) -> nn.Module:
    """Train a teacher, then a student of it, both at a temperature; return the student (R7).

    Defensive distillation, Papernot et al. 2016. Teacher and student are copies of `net`, as in the
    paper, and begin with its weights. The student is to be used as it is, at temperature 1. data,
    epochs (of each of the two), valid, settings: as of `foible.defend.train`.

    Broken, and worse than nothing: see `foible.defend.distilled`. FGSM and PGD on the
    cross-entropy report a robust net, because its gradient is 0 in float32; C&W, and PGD on the
    margin, find every sample's adversarial. `breaker("distillation")` shows both figures.

    >>> import foible, torch
    >>> x, y = torch.rand(64, 3), torch.arange(64) % 2
    >>> student = distillation(torch.nn.Linear(3, 2), (x, y), temperature=20, epochs=1)
    >>> student.training
    False
    """
    held = as_module(net)
    teacher = held.copied()
    how: dict[str, Any] = {"epochs": epochs, "valid": valid, "settings": settings}
    teacher.net = train(held, data, Tempered(temperature), **how)
    return train(held, data, distilled(teacher, temperature), **how)
