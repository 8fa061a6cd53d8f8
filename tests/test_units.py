"""The unit of the pixels does not matter: [0, 255] or [0, 1], every attack does the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SmallNet, filled, predicted, rand
from torch import Tensor, nn

from foible import attacks, explain
from foible.models import TorchModel, wrap
from foible.parts.threats import L0, L1, L2, Kept, Linf

SCALE = 16.0  # a power of two: dividing by it rounds nothing

# What each recipe is told about the unit is its threat alone.
RECIPES: dict[str, Callable[[float], Any]] = {
    "apgd linf": lambda s: attacks.apgd(Linf(0.05 * s), 12),
    "apgd l1": lambda s: attacks.apgd(L1(1.0 * s), 12, "margin"),
    "apgd_targeted": lambda s: attacks.apgd_targeted(L2(0.3 * s), 8, 2),
    "boundary": lambda s: attacks.boundary(L2(), 150, tries=20),
    "contrastive": lambda s: attacks.contrastive(Kept(), steps=10, searches=3, beta=10.0 * s),
    "cw l2": lambda s: attacks.cw(L2(), 10, 3),
    "cw linf": lambda s: attacks.cw(Linf(), 10, 3),
    "cw l0": lambda s: attacks.cw(L0(), 10, 3),
    "ddn": lambda s: attacks.ddn(L2(), 12),
    "deepfool": lambda s: attacks.deepfool(L2(), 6),
    "ead": lambda s: attacks.ead(L1(), 10, 3),
    "fab": lambda s: attacks.fab(L1(), 8),
    "fab_targeted": lambda s: attacks.fab_targeted(Linf(), 6, targets=2),
    "fmn l0": lambda s: attacks.fmn(L0(), 14),
    "fmn linf": lambda s: attacks.fmn(Linf(), 14),
    "hop_skip_jump": lambda s: attacks.hop_skip_jump(L2(), 200, 20, tries=20),
    "jsma": lambda s: attacks.jsma(L0(), 8),
    "lbfgs one run": lambda s: attacks.lbfgs(L2(), 1, 6),
    "lbfgs": lambda s: attacks.lbfgs(L2(), 3, 6),
    "mim": lambda s: attacks.mim(L2(0.3 * s), 8),
    "nes": lambda s: attacks.nes(Linf(0.05 * s), 60, 8),
    "nes l2": lambda s: attacks.nes(L2(0.3 * s), 60, 8),
    "pgd l0": lambda s: attacks.pgd(L0(4), 6),
    "pgd l1": lambda s: attacks.pgd(L1(1.0 * s), 6),
    "random_noise": lambda s: attacks.random_noise(L2(0.5 * s), 6),
    "sigma_zero": lambda s: attacks.sigma_zero(L0(), 60),
    "simba pixel": lambda s: attacks.simba(L2(0.5 * s), 60),
    "simba dct": lambda s: attacks.simba(L2(), 60, "dct"),
    "smoothgrad_attack": lambda s: attacks.smoothgrad_attack(Linf(0.05 * s), 4, steps=4),
    "spsa": lambda s: attacks.spsa(Linf(0.05 * s), 60, 8),
    "spsa l2": lambda s: attacks.spsa(L2(0.3 * s), 60, 8),
    "square linf": lambda s: attacks.square(Linf(0.05 * s), 40),
    "square l1": lambda s: attacks.square(L1(1.0 * s), 40),
    "strongest l2": lambda s: attacks.strongest(L2(0.3 * s), budget=80),
    "surrogate_attack": lambda s: attacks.surrogate_attack(
        L2(0.5 * s), explain.tabular_lime(scale=0.1 * s), 60, 4, 2
    ),
}


class Divided(nn.Module):
    """A net of inputs in [0, 1], for inputs in [0, SCALE]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / SCALE)


@pytest.fixture(scope="module")
def pair() -> tuple[TorchModel, TorchModel, Tensor, Tensor]:
    net = filled(SmallNet(), 5, 2.0).double()
    x = rand(6, 1, 6, 6, seed=6, dtype=torch.float64)
    near = wrap(net, bounds=(0.0, 1.0))
    return near, wrap(Divided(net), bounds=(0.0, SCALE)), x, predicted(near, x)


@pytest.mark.parametrize("name", RECIPES)
def test_the_unit_of_the_inputs_changes_nothing_but_the_unit(name: str, pair) -> None:
    near, far, x, y = pair
    small, large = (
        RECIPES[name](s)(model, s * x, y, seed=3) for s, model in ((1.0, near), (SCALE, far))
    )
    assert torch.equal(small.success, large.success)
    assert torch.equal(small.forwards, large.forwards)
    assert torch.equal(small.backwards, large.backwards)
    torch.testing.assert_close(SCALE * small.x, large.x, rtol=0, atol=1e-6 * SCALE)
