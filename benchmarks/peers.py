"""The three peers, each behind the same call: (x, y, steps, start) -> adversarial images.

Nothing is held against them: parameters are frozen, so that no backward pays for weight
gradients; progress bars are off; each gets the batch size at which it is fastest.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from common import STEP
from torch import Tensor, nn


@dataclass
class Peer:
    """A peer's PGD around x at radius `eps`; start: begin at a random point."""

    net: nn.Module
    eps: float
    batch: int = 1000
    name: str = field(default="", init=False)

    def __call__(self, x: Tensor, y: Tensor, steps: int, start: bool = True) -> Tensor:
        pieces = zip(x.split(self.batch), y.split(self.batch), strict=True)
        return torch.cat([self.run(a, b, steps, start) for a, b in pieces])

    def run(self, x: Tensor, y: Tensor, steps: int, start: bool) -> Tensor:
        raise NotImplementedError


class Foolbox(Peer):
    name = "foolbox"

    def run(self, x: Tensor, y: Tensor, steps: int, start: bool) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(self.net, bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=start)
        return attack(model, x, y, epsilons=self.eps)[1]


class Torchattacks(Peer):
    name = "torchattacks"

    def run(self, x: Tensor, y: Tensor, steps: int, start: bool) -> Tensor:
        # Its metadata asks for torchvision, which it never imports: nothing has to be replaced.
        import torchattacks

        attack = torchattacks.PGD(
            self.net, eps=self.eps, alpha=STEP, steps=steps, random_start=start
        )
        return attack(x, y)


class Art(Peer):
    name = "art"

    def run(self, x: Tensor, y: Tensor, steps: int, start: bool) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from art.attacks.evasion import ProjectedGradientDescentPyTorch
            from art.estimators.classification import PyTorchClassifier

        logging.getLogger("art").setLevel(logging.ERROR)
        model = PyTorchClassifier(
            self.net,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = ProjectedGradientDescentPyTorch(
            model,
            norm=np.inf,
            eps=self.eps,
            eps_step=STEP,
            max_iter=steps,
            num_random_init=int(start),
            batch_size=len(x),
            verbose=False,
        )
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def peers(net: nn.Module, eps: float) -> list[Peer]:
    return [Foolbox(net, eps), Torchattacks(net, eps), Art(net, eps)]


def tune(peer: Peer, x: Tensor, y: Tensor, sizes: tuple[int, ...]) -> None:
    """Give the peer the batch size at which it is fastest on these images."""
    best = (float("inf"), peer.batch)
    peer.batch = max(sizes)
    peer(x[:10], y[:10], 1)  # imports
    for size in sizes:
        peer.batch = size
        took = []
        for _ in range(3):
            start = time.process_time()
            peer(x, y, 3)
            took.append(time.process_time() - start)
        best = min(best, (min(took), size))
    peer.batch = best[1]


def wrapped(peer: Peer, x: Tensor, y: Tensor, steps: int, calls: int) -> Tensor:
    """The peer as a careful user would call it to save time: with a success check around it.

    What the model gets wrong anyway is never attacked. The peer is called `calls` times for an
    equal share of the steps, each time from where it stood and only on what is not fooled yet;
    the random start is taken once. The peer projects onto a ball around the point that it is
    given, so the ball around the clean image is enforced here, before each check.
    """
    out = x.clone()
    with torch.no_grad():
        left = (peer.net(x).argmax(1) == y).nonzero().squeeze(1)
    low, high = (x - peer.eps).clamp_min(0), (x + peer.eps).clamp_max(1)
    for call in range(calls):
        if len(left) == 0:
            break
        moved = peer(out[left], y[left], steps // calls, start=call == 0)
        moved = torch.minimum(torch.maximum(moved, low[left]), high[left])
        out[left] = moved
        with torch.no_grad():
            left = left[peer.net(moved).argmax(1) == y[left]]
    return out
