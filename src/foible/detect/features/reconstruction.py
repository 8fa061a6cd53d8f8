"""How badly an input is given back by autoencoders of clean ones, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.autoencoders import Autoencoder, trained
from foible.detect.base import Feature, State, named, part_of


@dataclass(frozen=True)
class Reconstruction(Feature):
    """Errors of two autoencoders and divergences of predictions: (B, 2 + temperatures).

    mean |x - a(x)|^2 of the deep autoencoder a, mean |x - b(x)| of the shallow one b, and for each
    temperature T the Jensen-Shannon divergence between softmax(f(x) / T) and softmax(f(a(x)) / T),
    in nats. Both are trained on the clean inputs: width, epochs, noise (in shares of the box).
    """

    temperatures: tuple[float, ...] = (1.0, 10.0, 40.0)
    epochs: int = 100
    width: int = 8
    noise: float = 0.1

    def __post_init__(self) -> None:
        if any(not t > 0 for t in self.temperatures):
            raise InputError(f"temperatures={self.temperatures}: above 0")
        if self.epochs < 1 or self.width < 1 or not self.noise >= 0:
            raise InputError(
                f"epochs={self.epochs}, width={self.width}, noise={self.noise}: at least one epoch "
                "and one channel, and no negative noise"
            )

    @property
    def looks(self) -> int:
        """At the input, and at what is given back."""
        return 2

    def build(self, shape: tuple[int, ...], bounds: tuple[float, float], deep: bool) -> Autoencoder:
        """Return an untrained autoencoder."""
        return Autoencoder(shape, bounds, deep, self.width)

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Train both on rows.x."""
        state: State = {"shape": torch.tensor(rows.shape)}
        for name, deep in (("deep", True), ("shallow", False)):
            made = self.build(rows.shape, oracle.bounds, deep)
            net = trained(made, rows.x, self.epochs, self.noise, draw.rng.seed)
            state |= named({k: v.to(rows.x.device) for k, v in net.state_dict().items()}, name)
        return state

    def autoencoder(
        self, shape: tuple[int, ...], state: State, bounds: tuple[float, float], name: str
    ) -> Autoencoder:
        """Return one of the trained autoencoders, "deep" or "shallow"."""
        net = self.build(shape, bounds, name == "deep")
        net.load_state_dict(part_of(state, name), assign=True)
        net.requires_grad_(False)
        return net.eval()

    def given_back(self, x: Tensor, state: State, bounds: tuple[float, float], name: str) -> Tensor:
        """Return what an autoencoder makes of x (B, *shape)."""
        found: Tensor = self.autoencoder(tuple(x.shape[1:]), state, bounds, name)(x)
        return found

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, 2 + temperatures), at least 0."""
        x = rows.x
        with torch.set_grad_enabled(create_graph):
            deep = self.given_back(x, state, oracle.bounds, "deep")
            shallow = self.given_back(x, state, oracle.bounds, "shallow")
            found = [
                (x - deep).square().flatten(1).mean(1), (x - shallow).abs().flatten(1).mean(1)
            ]  # fmt: skip
            if self.temperatures:
                here, there = oracle.scores(x, rows), oracle.scores(deep, rows)
                found += [divergence(here / t, there / t) for t in self.temperatures]
            return torch.stack(found, 1)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (B,) between softmaxes of logits (B, K), in nats."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    return 0.5 * ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1))
