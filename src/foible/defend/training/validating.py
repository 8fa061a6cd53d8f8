"""Clean and robust accuracy on what was held out, between epochs."""

from __future__ import annotations

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.attacks.gradient import pgd
from foible.core.threat import Steepest
from foible.defend.losses.base import Loss
from foible.defend.training.devices import Devices
from foible.defend.training.settings import Settings
from foible.models.holding import TorchModel


class Validation:
    """The held-out samples and the attack that watches them; each process takes its share."""

    def __init__(self, valid: tuple[Tensor, Tensor], loss: Loss, settings: Settings) -> None:
        self.x, self.y = valid
        self.seed = settings.seed
        self.attack = settings.watch or _watch(loss)
        self.loss = None if settings.watch else loss

    def accuracy(self, model: TorchModel, devices: Devices) -> tuple[float, float | None]:
        """Return the clean and the robust accuracy, the latter None where nothing is attacked."""
        mine = torch.arange(len(self.y))[devices.rank :: devices.world]
        x, y, ids = devices.to(self.x[mine]), devices.to(self.y[mine]), devices.to(mine)
        certain = None if self.loss is None else self.loss.withstands(model, x, y)
        if self.attack is None or certain is not None:
            with model.session(), torch.no_grad():
                labels = torch.cat([model.scores(part).argmax(1) for part in x.split(256)])
            sure = 0.0 if certain is None else float(certain.sum())
            hits, sure, n = devices.summed(float((labels == y).sum()), sure, float(len(y)))
            return hits / n, None if certain is None else sure / n
        result = self.attack(model, x, y, seed=self.seed, ids=ids)
        right = result.clean_label.to(y.device) == y
        clean, robust, n = devices.summed(
            float(right.sum()), float((~result.success).sum()), float(len(y))
        )
        return clean / n, robust / n


def _watch(loss: Loss) -> Attack | None:
    """Ten steps of PGD in the threat that the loss trains against, ended by a success.

    What is made on another model, or in a threat without a gradient, is taken as it is.
    """
    attack = loss.against
    if attack is None or getattr(attack.threat, "eps", None) is None:
        return None
    made_elsewhere = getattr(attack, "source", None) is not None
    if made_elsewhere or not isinstance(attack.threat, Steepest):
        return attack
    return pgd(attack.threat, steps=10, stop="success")
