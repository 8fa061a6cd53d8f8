"""What the benchmarks of training defences share: data, nets, one way to train, two accuracies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foible
from foible import attacks, defend
from foible.attacks import Attack
from foible.defend import Batch, Settings
from foible.parts.threats import Linf
from foible.zoo.networks import small_cnn

Data = tuple[Tensor, Tensor]


def train_images(count: int) -> Data:
    x, y = foible.zoo.fashion_mnist("train")
    return x[:count], y[:count]


def mnist(folder: Path, part: str, count: int) -> Data:
    """The first images of MNIST's own files, unpacked."""
    x = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8)[16:]
    y = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8)[8:]
    x = x.reshape(-1, 1, 28, 28)[:count].astype(np.float32) / 255
    return torch.from_numpy(x), torch.from_numpy(y[:count].astype(np.int64))


def fresh(seed: int = 0, make: Callable[[], nn.Module] | None = None) -> nn.Module:
    """A net with weights from a seed of its own; the small net of width 16 by default."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return small_cnn(10, 16) if make is None else make()


def train(
    net: nn.Module, data: Any, loss: defend.Loss, epochs: int, seed: int = 0, **given: Any
) -> nn.Module:
    """Every training: batches of 128, Adam at 0.002, a cosine, weights averaged at 0.99."""
    how = Settings(hold_out=0.0, average=0.99, seed=seed, **given)
    return defend.train(net, data, loss, epochs, settings=how)


def clean(net: nn.Module, data: Data) -> float:
    with torch.no_grad():
        hits = [(net(a).argmax(1) == b) for a, b in zip(*(p.split(500) for p in data), strict=True)]
    return 100 * float(torch.cat(hits).float().mean())


def left(net: Any, attack: Attack, data: Data) -> float:
    """The accuracy under an attack, in percent."""
    found = attack(net, *data).robust_accuracy
    assert found is not None
    return 100 * found


def pgd(eps: float, **given: Any) -> Attack:
    return attacks.pgd(Linf(eps), 40, stop="success", **given)


def fgsm(eps: float) -> Attack:
    return attacks.fgsm(Linf(eps))


def moved(net: nn.Module, attack: Attack, data: Data) -> Data:
    """Adversarials of every sample on a net, for others to judge."""
    made = Batch(foible.wrap(net), *data, torch.arange(len(data[1]))).craft(attack)
    return made, data[1]


def size(net: nn.Module, data: Data) -> float:
    """The mean length of the loss's gradient by the input."""
    return float(gradients(net, data).flatten(1).norm(dim=1).mean())


def gradients(net: nn.Module, data: Data) -> Tensor:
    batch = Batch(foible.wrap(net), *data, torch.arange(len(data[1])))

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(batch.scores(x), batch.y, reduction="none")

    return batch.oracle().value_and_grad(loss, batch.x, batch.rows())[1]
