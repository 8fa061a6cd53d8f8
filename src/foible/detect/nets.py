"""Heads that are small networks, trained on features of any shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foible.core.errors import InputError
from foible.defend.losses import plain
from foible.defend.training import Settings, train
from foible.detect.base import Head, State
from foible.models.holding import wrap


def dense(size: int, width: int) -> nn.Sequential:
    """Build two hidden layers for features (B, size)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 2),
    )  # fmt: skip


def convolutional(channels: int, width: int) -> nn.Sequential:
    """Build three convolutions, two of them strided, and a mean over places, for (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 2),
    )  # fmt: skip


@dataclass(frozen=True)
class Network(Head):
    """A small network: convolutions for features (C, H, W), two hidden layers for others.

    width: of its first layer. epochs: passes over the features, of Adam at 3e-3 with batches of 64.
    """

    width: int = 16
    epochs: int = 30
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.width < 1 or self.epochs < 1:
            raise InputError(f"width={self.width}, epochs={self.epochs}: both at least 1")

    def build(self, shape: tuple[int, ...]) -> nn.Sequential:
        """Return the untrained network for features of a shape."""
        if len(shape) == 3:
            return convolutional(shape[0], self.width)
        size = 1
        for part in shape:
            size *= part
        return dense(size, 4 * self.width)

    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Train on scaled features, the rarer kind repeated until both are as many."""
        data = features.float()
        # A channel, or a number, has a unit of its own: an image beside its map.
        over = [d for d in range(data.dim()) if d != 1]
        mean, spread = data.mean(over, keepdim=True)[0], data.std(over, keepdim=True)[0]
        spread = torch.where(spread > 1e-6 * data.abs().max(), spread, 1.0)
        good, worse = (~bad).nonzero().squeeze(1), bad.nonzero().squeeze(1)
        most = max(len(good), len(worse))
        both = [part.repeat(-(-most // len(part)))[:most] for part in (good, worse)]
        which = torch.cat(both)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net = self.build(tuple(data.shape[1:]))
        settings = Settings(batch=64, lr=self.lr, hold_out=0, seed=seed)
        made = train(
            wrap(net, (float("-inf"), float("inf"))),
            (((data - mean) / spread)[which].cpu(), bad.long()[which].cpu()), plain(), self.epochs,
            settings=settings,
        )  # fmt: skip
        held = {f"net.{k}": v.to(features.device) for k, v in made.state_dict().items()}
        return {**held, "mean": mean, "spread": spread}

    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return the log-odds (B,) of being adversarial."""
        with torch.device("meta"):  # no weights are drawn: the user's random state stays
            net = self.build(tuple(features.shape[1:]))
        # The tensors take the place of the parameters: nothing is copied, and any dtype is kept.
        net.load_state_dict(
            {k[4:]: v for k, v in state.items() if k.startswith("net.")}, assign=True
        )
        net.requires_grad_(False)
        scores: Tensor = net((features.to(state["mean"].dtype) - state["mean"]) / state["spread"])
        odds: Tensor = scores[:, 1] - scores[:, 0]
        return odds
