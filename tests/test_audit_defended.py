"""The audit of a defended model: its breaker runs by default, and the masking alarm fires."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import FGSM, PGD, RANDOM, TINY, audit, by_name, honest, mlp, table
from test_trust import CHECK, audited
from torch import Tensor, nn

import foible
from foible import defend
from foible.audit import Plan
from foible.audit.runner import plan_cells
from foible.models import wrap

BARE = foible.zoo.load("standard")
SMALL = replace(TINY, attacks=(RANDOM, FGSM, PGD), explanations=(), checks=True, eps=0.2)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x, y = foible.zoo.sample()
    return x[:24], y[:24]


def test_both_figures_are_measured_and_shown(tmp_path: Path, data) -> None:
    x, y = data
    models = {"rounded": defend.squeeze(BARE, bits=2), "bare": BARE}
    report = foible.audit.run(models, (x, y), tmp_path, plan=SMALL, progress=False)
    assert report.complete
    lines = {(c["model"], c["name"]): c for c in report.cells}
    assert ("bare", "breaker-linf") not in lines
    line = lines["rounded", "breaker-linf"]
    detail = line["detail"]
    found = defend.breaker("squeeze", 20, 10)(models["rounded"], x, y, foible.Linf(0.2), seed=0)
    assert line["value"] == pytest.approx(found.adaptive.robust_accuracy)
    assert detail["naive"] == pytest.approx(found.naive.robust_accuracy)
    assert detail["naive"] > 0.6 and line["value"] < 0.2 and line["kind"] == "attack"
    spent = sum(int(r.forwards.sum()) for r in (found.naive, found.adaptive))
    assert line["forwards"] == spent
    page = (tmp_path / "report.html").read_text()
    assert "Breaker of squeeze" in page and "The naive attack leaves" in page
    assert page.count("The naive attack leaves") == 1 and "rounding has the gradient zero" in page
    # The worst case of the model is what its breaker leaves, not what PGD does.
    alarm = lines["rounded", "check-masking"]
    assert alarm["status"] == "failed" and "vanish" in alarm["detail"]["measured"]
    assert lines["bare", "check-masking"]["status"] == "ok"
    assert lines["rounded", "clean"]["key"] != lines["bare", "clean"]["key"]


def test_the_plan_has_the_breaker_where_it_has_attacks() -> None:
    assert "breaker-linf" in {c.name for c in plan_cells(Plan.preset("quick"), "jpeg")}
    assert not [c for c in plan_cells(Plan.preset("quick")) if c.name.startswith("breaker")]
    assert not [c for c in plan_cells(replace(SMALL, attacks=()), "jpeg") if c.kind == "attack"]
    l2 = replace(SMALL, attacks=({**PGD, "name": "pgd-l2", "norm": "l2"},))
    assert "breaker-l2" in {c.name for c in plan_cells(l2, "jpeg")}
    one, two = (
        next(c for c in plan_cells(Plan.preset("quick"), name) if c.name == "breaker-linf")
        for name in ("jpeg", "squeeze")
    )
    assert one.part != two.part


def test_what_gives_no_gradient_is_not_measured_and_the_audit_is_complete(tmp_path: Path) -> None:
    x, y = table(net=mlp())
    model = defend.region_vote(mlp(), 0.02, 9)
    report = audit(tmp_path, replace(SMALL, explanations=("saliency",)), model, (x, y))
    found = by_name(report)
    assert report.complete and report.exit_code == 0
    for name in ("fgsm-linf", "pgd-linf"):
        assert found[name]["status"] == "not measured" and found[name]["value"] is None
        assert "foible.defend.breaker" in found[name]["detail"]["reason"]
    assert found["breaker-linf"]["value"] < found["clean"]["value"]
    assert found["random-linf"]["value"] is not None
    assert found["check-gradients"]["status"] == "failed"
    assert "scores alone" in found["check-gradients"]["detail"]["measured"]
    assert found["check-masking"]["status"] == "failed"
    page = (tmp_path / "report.html").read_text()
    assert "Breaker of region vote" in page and "the model gives only SCORES" in page


CASES: dict[str, tuple[Any, set[str], float]] = {
    "bits": (lambda: defend.squeeze(BARE, bits=1), {"vanish"}, 0.1),
    "nonlocal": (lambda: defend.squeeze(BARE, nonlocal_means=(5, 3, 20.0)), {"vanish"}, 0.1),
    "jpeg": (lambda: defend.jpeg(BARE, 60), {"vanish"}, 0.1),
    "region_vote": (lambda: defend.region_vote(BARE, 0.15, 15), {"vanish", "random"}, 0.1),
    "randomize": (lambda: defend.randomize(BARE, 0.7), {"random"}, 0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_alarm_fires_where_a_gradient_is_hidden(name: str, data) -> None:
    make, signs, eps = CASES[name]
    alarm = alarmed(make(), data, eps)
    assert alarm.status == "failed"
    for sign in signs:
        assert sign in alarm.detail["measured"], alarm.detail["measured"]


def alarmed(model: Any, data: tuple[Tensor, Tensor], eps: float) -> Any:
    """The alarm from the two checks that ask nothing of an attack."""
    from audit_helpers import context

    x, y = data
    done = {}
    for name in ("check-gradients", "check-determinism"):
        cell = CHECK[name](context(model, x, y))
        line = {"value": cell.value, "status": cell.status, "detail": cell.detail}
        done[name.replace("-", "_")] = (line, {})
    return CHECK["check-masking"](context(model, x, y, **done))


def test_the_alarm_is_quiet_where_the_gradient_is_true(data) -> None:
    """Smoothing by total variation and by a median hide nothing: PGD sees through both."""
    for model in (defend.total_variation(BARE, 0.1, 5), defend.squeeze(BARE, median=2)):
        assert audited(model, data)["check-masking"].status == "ok"


def test_a_net_that_says_what_it_was_trained_on_is_broken_too(tmp_path: Path) -> None:
    net, x, y = honest()
    net.defence = "fgsm"
    try:
        found = by_name(audit(tmp_path, SMALL, wrap(net), (x, y)))
    finally:
        del net.defence
    assert found["breaker-linf"]["detail"]["naive"] == found["fgsm-linf"]["value"]
    assert isinstance(net, nn.Module) and torch.is_tensor(x)
