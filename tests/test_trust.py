"""The checks that attack: each fires on a published masking trick, none on the bundled models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from audit_helpers import context
from torch import Tensor

import foible
from foible import zoo
from foible.audit.checks import CHECKS
from foible.audit.trust import SIGNS, _split
from foible.zoo import weak

CHECK = {check.name: check for check in CHECKS}


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x, y = zoo.sample()
    return x[:60], y[:60]


def audited(net: Any, data: tuple[Tensor, Tensor], eps: float = 0.1) -> dict[str, Any]:
    """PGD, then the checks that attack, as an audit would run them."""
    x, y = data
    attack = foible.attacks.pgd(foible.Linf(eps), 40)
    done: dict[str, Any] = {}
    result = attack(net, x, y)
    line = {"value": result.robust_accuracy, "status": "ok", "detail": {}}
    done["pgd_linf"] = (line, {"x": result.x, "success": result.success})
    fgsm = foible.attacks.fgsm(foible.Linf(eps))(net, x, y)
    done["fgsm_linf"] = ({"value": fgsm.robust_accuracy, "status": "ok", "detail": {}}, {})
    cells = {}
    for name in ("check-gradients", "check-huge-eps", "check-planted", "check-black-box",
                 "check-masking"):  # fmt: skip
        cell = CHECK[name](context(net, x, y, **done))
        done[name.replace("-", "_")] = (
            {"value": cell.value, "status": cell.status, "detail": cell.detail}, {},
        )  # fmt: skip
        cells[name] = cell
    return cells


@pytest.mark.parametrize("name", ["standard", "hardened"])
def test_nothing_fires_on_the_bundled_models(name: str, data: tuple[Tensor, Tensor]) -> None:
    found = audited(zoo.load(name), data)
    for check in ("check-planted", "check-black-box", "check-masking"):
        assert found[check].status == "ok", (check, found[check].detail["measured"])
    assert found["check-planted"].value >= 0.95
    assert found["check-planted"].forwards > 0 and found["check-planted"].backwards > 0


@pytest.mark.parametrize(
    ("make", "signs"),
    [
        (weak.DetachedSoftmax, {"vanish", "black box", "planted"}),
        (weak.MinMaxLogits, {"vanish", "black box"}),
        (weak.Temperature, {"vanish", "black box"}),
        (lambda net: weak.Quantised(net, 2), {"vanish", "black box", "planted"}),
    ],
    ids=["detached", "min-max", "temperature", "one bit"],
)
def test_the_alarm_fires_on_masked_gradients(
    make: Any, signs: set[str], data: tuple[Tensor, Tensor]
) -> None:
    found = audited(make(zoo.load("standard")), data, eps=0.1)
    alarm = found["check-masking"]
    assert alarm.status == "failed" and alarm.detail["spoils"] == ["*"]
    for sign in signs:
        assert sign in alarm.detail["measured"], alarm.detail["measured"]
    assert "bpda" in alarm.detail["advice"] and "eot" in alarm.detail["advice"]


def test_the_alarm_fires_on_single_step_training(data: tuple[Tensor, Tensor]) -> None:
    found = audited(zoo.load("single_step"), data, eps=0.3)
    assert "one step leaves" in found["check-masking"].detail["measured"]


def test_the_alarm_fires_on_distillation(data: tuple[Tensor, Tensor]) -> None:
    assert audited(zoo.load("distilled"), data)["check-masking"].status == "failed"


def test_the_readout_separates_what_it_says() -> None:
    cloud = torch.randn(5, 24, 4, generator=torch.Generator().manual_seed(0)).double()
    outer = cloud.mean(1) + 9.0
    outer[3] = cloud[3].mean(0)  # inside its own cloud: no readout may be claimed
    w, level, apart = _split(cloud, outer)
    assert apart.tolist() == [0, 1, 2, 4]
    inside = (cloud * w[:, None]).sum(2)
    assert bool((inside[apart] < level[apart, None]).all())
    assert bool(((outer * w).sum(1)[apart] > level[apart]).all())


def test_every_sign_is_a_check() -> None:
    assert set(SIGNS) <= set(CHECK)
    order = [check.name for check in CHECKS]
    assert all(order.index(name) < order.index("check-masking") for name in SIGNS)
