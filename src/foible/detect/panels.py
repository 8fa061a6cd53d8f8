"""A panel of small networks, one for each explanation, and a forest over what they say."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.detect.base import Head, State, named, part_of
from foible.detect.heads import Forest
from foible.detect.nets import Network


@dataclass(frozen=True)
class Panel(Head):
    """One network for each group of channels; a random forest on their log-odds (B, members).

    members: how many groups the channels (B, C, H, W) fall into, evenly and in order. The networks
    learn from half of the inputs, and the forest from what they say of the other half, which they
    do not know by heart. No gradient passes the forest, which protects nothing: `soft` is a
    logistic regression on the same log-odds.
    """

    members: int = 3
    network: Network = dataclasses.field(default_factory=Network)
    forest: Forest = dataclasses.field(default_factory=Forest)
    differentiable = False

    def __post_init__(self) -> None:
        if self.members < 1:
            raise InputError(f"members={self.members}: one at least")

    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Train the networks on one half, the forest on the other; each half holds both kinds."""
        rng = torch.Generator().manual_seed(seed)
        first = torch.zeros_like(bad)
        for kind in (bad, ~bad):
            which = kind.nonzero().squeeze(1)
            order = torch.randperm(len(which), generator=rng).to(which.device)
            first[which[order[: (len(which) + 1) // 2]]] = True
        state: State = {}
        for i, part in enumerate(self._groups(features)):
            state |= named(self.network.learn(part[first], bad[first], seed + i), f"member{i}")
        told = self.odds(features[~first], state)
        return {**state, **named(self.forest.learn(told, bad[~first], seed), "forest")}

    def odds(self, features: Tensor, state: State) -> Tensor:
        """Return the log-odds (B, members) that the networks give."""
        groups = enumerate(self._groups(features))
        return torch.stack([self.network(p, part_of(state, f"member{i}")) for i, p in groups], 1)

    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return the forest's share (B,) of votes for adversarial."""
        return self.forest(self.odds(features, state), part_of(state, "forest"))

    def soft(self, features: Tensor, state: State) -> Tensor:
        """Return the log-odds (B,) of the logistic regression."""
        return self.forest.soft(self.odds(features, state), part_of(state, "forest"))

    def _groups(self, features: Tensor) -> tuple[Tensor, ...]:
        if features.dim() < 2 or features.shape[1] % self.members:
            raise InputError(
                f"features {tuple(features.shape[1:])} do not fall into {self.members} even groups"
            )
        return features.chunk(self.members, 1)
