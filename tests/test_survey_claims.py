"""Claims of the survey on the bundled models: rows S2, S3 and S6."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

import foible

EPS = foible.Linf(0.1)


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    x, y = foible.zoo.sample()
    return {n: foible.zoo.load(n) for n in ("standard", "hardened")}, x[:100], y[:100]


@pytest.mark.parametrize("name", ["standard", "hardened"])
def test_one_step_never_leaves_less_than_many(name: str, case) -> None:
    nets, x, y = case
    one = foible.attacks.fgsm(EPS)(nets[name], x, y).robust_accuracy
    many = foible.attacks.pgd(EPS, stop="success")(nets[name], x, y).robust_accuracy
    assert one >= many
    assert name == "hardened" or one > many  # on the standard net the gap is real


@pytest.mark.parametrize("name", ["standard", "hardened"])
def test_white_box_is_never_weaker_than_transfer(name: str, case) -> None:
    nets, x, y = case
    other = nets["standard" if name == "hardened" else "hardened"]
    attack = foible.attacks.pgd(EPS)
    own = attack(nets[name], x, y)
    moved = attack(other, x, y).x
    transferred = (nets[name](moved).argmax(1) == y).float().mean()
    assert own.robust_accuracy <= transferred
    assert transferred > own.robust_accuracy + 0.05  # another model's adversarials are weaker


def test_to_reach_a_class_is_harder_than_to_leave_one(case) -> None:
    nets, x, y = case
    attack = foible.attacks.pgd(EPS)
    left = attack(nets["standard"], x, y)
    reached = attack(nets["standard"], x, y, target=(y + 1) % 10)
    assert reached.success_rate < left.success_rate
    hit = reached.success & reached.attacked
    assert hit.any() and (nets["standard"](reached.x[hit]).argmax(1) == (y[hit] + 1) % 10).all()
