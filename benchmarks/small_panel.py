"""Small nets for the benchmarks of defences: trained once, three seeds, and how they are judged.

Nets are `small_cnn(width=16)` or what a benchmark makes, trained by `foible.defend.train` on the
first 20,000 training images of Fashion-MNIST; each is kept beside its checkpoint in
benchmarks/hardened/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import Section
from torch import Tensor, nn

import foible
from foible import defend
from foible.zoo.networks import small_cnn

ROOT = Path(__file__).resolve().parent / "hardened"
EPS, SEEDS, IMAGES = 0.1, (0, 1, 2), 20_000
PGD7 = foible.attacks.pgd(foible.Linf(EPS), 7)


def begun(make: Callable[[], Any], seed: int) -> Any:
    """What `make` makes when torch's generator stands at a seed."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return make()


def thin() -> nn.Module:
    return small_cnn(width=16)


def trained(
    name: str, net: nn.Module, loss: Any, epochs: int, seed: int, count: int = IMAGES
) -> nn.Module:
    """Train on the first images, once, or read what was trained."""
    x, y = foible.zoo.fashion_mnist("train")
    out = ROOT / f"nets-{name}-{seed}"
    settings = defend.Settings(batch=128, seed=seed)
    return defend.train(net, (x[:count], y[:count]), loss, epochs, out=out, settings=settings)


def standard(seed: int) -> nn.Module:
    return trained("plain", begun(thin, seed), defend.plain(), 6, seed)


def hardened(seed: int) -> nn.Module:
    return trained("pgd7", begun(thin, seed), defend.adversarial(PGD7), 6, seed)


def right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).double().mean())


def left(net: nn.Module, x: Tensor, y: Tensor, eps: float = EPS, steps: int = 40) -> float:
    """Accuracy in % under FGSM (steps=1), or under PGD on two losses, the worst of both."""
    threat = foible.Linf(eps)
    if steps == 1:
        return 100 * float(foible.attacks.fgsm(threat)(net, x, y).robust_accuracy)
    stands = torch.ones(len(y), dtype=torch.bool)
    for objective in ("cross_entropy", "margin"):
        attack = foible.attacks.pgd(threat, steps, objective=objective, stop="success")
        stands &= ~attack(net, x, y, seed=0).success
    return 100 * float(stands.double().mean())


def spread(values: list[float]) -> str:
    return "seeds " + ", ".join(f"{v:.3g}" for v in values)


def mean_bar(table: Section, row: str, what: str, values: list[float], sign: str, limit: float):
    table.bar(row, f"{what} ({spread(values)})", fmean(values), sign, limit)


def told(table: Section, row: str, what: str, values: list[float]) -> None:
    table.add(row, f"{what} ({spread(values)})", fmean(values), "none", "reported")
