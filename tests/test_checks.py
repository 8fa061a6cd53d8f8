"""The trust checks: each fires on a fault that was planted for it, and none on an honest net."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import (
    FGSM,
    HILL,
    PGD,
    RANDOM,
    TINY,
    Landscape,
    Scaled,
    audit,
    band,
    by_name,
    context,
    honest,
    no_page,
)
from torch import Tensor, nn

import foible
from foible.audit import Plan
from foible.audit.checks import CHECKS
from foible.audit.runner import plan_cells

__all__ = ["no_page"]  # a fixture
CHECK = {check.name: check for check in CHECKS}
CHECKED = replace(TINY, attacks=(RANDOM, FGSM, {**PGD, "steps": 40}), explanations=(), checks=True)


def failed(tmp_path: Path, model: Any, data: Any, plan: Plan = CHECKED) -> dict[str, Any]:
    """The failed checks of an audit by name; each must say what to do and what it spoils."""
    report = audit(tmp_path, plan, model, data)
    names = {cell["name"] for cell in report.cells}
    known = {cell.name for cell in plan_cells(Plan.preset("full"))} | names
    out = {}
    for check in report.checks_failed:
        assert len(check["advice"]) > 20
        assert check.get("error") or (check["measured"] and check["expected"])
        assert check["spoils"] and set(check["spoils"]) <= known | {"*"}
        out[check["name"]] = check
    assert not report.passed or not out
    assert sorted(out) == sorted(c["name"] for c in report.cells if c["status"] == "failed")
    return out


# --- quiet


def test_an_honest_net_passes_every_check(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    plan = replace(CHECKED, attacks=Plan.preset("quick").attacks)
    report = audit(tmp_path, plan, net, (x, y))
    assert report.checks_failed == [] and report.complete
    found = {c["name"]: c for c in report.cells if c["kind"] == "check"}
    assert {c["status"] for c in found.values()} == {"ok"} and set(found) == set(CHECK)
    assert 0 < by_name(report)["pgd-linf"]["value"] < 1  # the checks had something to look at
    assert found["check-eval-mode"]["detail"]["measured"] == "evaluation mode"
    assert all(c["n"] == len(x) for c in found.values())


def test_what_is_not_applicable_is_not_measured(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    held = foible.wrap(
        Scaled(net, after=Softmax()), (float("-inf"), float("inf")), outputs="probabilities"
    )
    report = audit(tmp_path, replace(CHECKED, attacks=()), held, (x, y))
    states = {c["name"]: (c["status"], c["value"]) for c in report.cells if c["kind"] == "check"}
    for name in ("check-logits", "check-range", "check-iterative", "check-random",
                 "check-verified", "check-huge-eps", "check-worst-case"):  # fmt: skip
        assert states[name] == ("not measured", None), name
    assert states["check-accuracy"][0] == "ok" and report.complete


def test_names_are_those_of_cells() -> None:
    cells = {cell.name for cell in plan_cells(Plan.preset("full"))}
    for check in CHECKS:
        assert {*check.spoils, *check.after} <= cells | {"*"}, check.name
        assert check.title and check.advice.endswith(".")
        assert check.spoils or check.name == "check-eval-mode"


# --- the model and its data


class Softmax(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


def test_probabilities_declared_as_logits(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    soft = Scaled(net, after=Softmax())
    found = failed(tmp_path / "a", soft, (x, y))["check-logits"]
    assert found["measured"] == "scores sum to 1 a sample" and "*" in found["spoils"]
    assert 'outputs="probabilities"' in found["advice"]
    declared = foible.wrap(soft, outputs="probabilities")
    assert "check-logits" not in failed(tmp_path / "b", declared, (x, y))


def far_away() -> tuple[nn.Module, Tensor, Tensor]:
    """A net that wants (x - 0.9) / 0.05, and the data that it was made for."""
    net, x, y = honest()
    return net, 0.9 + 0.05 * x, y


@pytest.mark.parametrize(("zeros", "ones"), [(25, 25), (4, 25), (25, 4)])
def test_forgotten_normalisation(tmp_path: Path, no_page: None, zeros: int, ones: int) -> None:
    net, x, y = far_away()
    # A constant answer is right on the larger class: on unbalanced data, too, that is chance.
    kept = torch.cat([(y == 0).nonzero()[:zeros], (y == 1).nonzero()[:ones]]).squeeze(1)
    x, y = x[kept], y[kept]
    x[0, 0] = 0.0  # the data fill the bounds
    found = failed(tmp_path / "a", net, (x, y))["check-accuracy"]
    assert "mean and std" in found["advice"] and {"clean", "*"} <= set(found["spoils"])
    told = foible.wrap(net, preprocess=(0.9, 0.05))
    report = audit(tmp_path / "b", CHECKED, told, (x, y))
    assert by_name(report)["check-accuracy"]["status"] == "ok"


def test_small_data_under_wide_bounds(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    found = failed(tmp_path, foible.wrap(net, (0, 255)), (x, y), replace(CHECKED, eps=8.0))
    assert "data in [" in found["check-range"]["measured"]
    assert found["check-range"]["expected"] == "most of [0, 255]"
    assert "bounds" in found["check-range"]["advice"]


class Noisy(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores + 0.01 * torch.randn_like(scores)


def test_a_model_that_is_random_at_test_time(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    found = failed(tmp_path, Scaled(net, after=Noisy()), (x, y))["check-determinism"]
    assert "foible.attacks.eot" in found["advice"] and found["spoils"] == ["*"]


def test_training_mode_is_noted_and_not_a_failure(tmp_path: Path, no_page: None) -> None:
    body, x, y = honest()
    net = nn.Sequential(nn.Dropout(0.5), *body).train()
    report = audit(tmp_path, CHECKED, net, (x, y))
    cell = by_name(report)["check-eval-mode"]
    assert (cell["status"], cell["value"]) == ("ok", 1.0) and net.training
    assert cell["detail"]["measured"] == "training mode; audited in evaluation mode"
    assert by_name(report)["clean"]["value"] == 1.0 and report.checks_failed == []


# --- gradients


class Quantised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 7).round() / 7


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("front", [Quantised(), Detached()])
def test_gradients_that_are_not_there(tmp_path: Path, no_page: None, front: nn.Module) -> None:
    net, x, y = honest()
    found = failed(tmp_path, Scaled(net, before=front), (x, y))
    assert found["check-gradients"]["measured"].startswith("zero on 100.0% (margin)")
    assert "foible.models.bpda" in found["check-gradients"]["advice"]
    assert found["check-gradients"]["spoils"] == found["check-huge-eps"]["spoils"] == ["*"]


class Loud(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return 1e4 * scores


def test_scores_so_large_that_the_loss_is_flat(tmp_path: Path, no_page: None) -> None:
    """Gradient masking: the cross-entropy of float32 is exactly 0, and PGD stays where it began."""
    net, x, y = honest()
    found = failed(tmp_path, Scaled(net, after=Loud()), (x, y))
    assert "zero on 0.0% (margin)" in found["check-gradients"]["measured"]
    assert {"check-gradients", "check-huge-eps", "check-random"} <= set(found)
    assert 'objective="margin"' in found["check-huge-eps"]["advice"]
    assert "pgd-linf" in found["check-random"]["spoils"]
    weak = replace(CHECKED, attacks=(*CHECKED.attacks, {**PGD, "name": "m", "objective": "margin"}))
    report = by_name(audit(tmp_path, weak, Scaled(net, after=Loud()), (x, y)))
    assert report["m"]["value"] < report["pgd-linf"]["value"] - 0.2  # so the checks were right


def test_a_hill_before_the_slope(tmp_path: Path, no_page: None) -> None:
    """One large step jumps what turns small steps back: PGD is weaker than FGSM and than noise."""
    found = failed(tmp_path, Landscape(HILL), Landscape.samples())
    assert {"check-iterative", "check-random", "check-huge-eps"} <= set(found)
    assert set(found["check-iterative"]["spoils"]) == {"fgsm-linf", "pgd-linf"}
    assert "FGSM 0.000" in found["check-iterative"]["measured"]
    assert "check-gradients" not in found and "check-determinism" not in found


def test_a_band_that_larger_steps_jump_over(tmp_path: Path, no_page: None) -> None:
    x, y = Landscape.samples()
    larger = CHECK["check-larger-eps"](context(Landscape(band(0.03, 0.0032)), x, y))
    assert larger.status == "failed" and larger.value is not None and larger.value > 0.2
    assert larger.detail["measured"].startswith("0.000, then 0.")
    more = CHECK["check-more-steps"](context(Landscape(band(0.03, 0.0013)), x, y))
    assert more.status == "failed" and more.value is not None and more.value > 0.2
    assert "restarts" in more.detail["advice"] and "pgd-linf" in more.detail["spoils"]
    assert more.detail["measured"].endswith("100 steps 0.000")
    for name in ("check-larger-eps", "check-more-steps"):
        assert CHECK[name](context(Landscape(band(0.03, 0.01)), x, y)).status == "ok"


def test_no_attack_alone_is_the_worst_case(tmp_path: Path, no_page: None) -> None:
    """FGSM breaks one half of the samples, PGD the other."""
    net = Landscape(HILL, other=band(0.03, 0.0032))
    found = failed(tmp_path, net, Landscape.samples())["check-worst-case"]
    assert found["measured"].endswith("union 0.000") and "pgd-linf" in found["spoils"]
    report = by_name(audit(tmp_path, CHECKED, net, Landscape.samples()))
    assert min(report["fgsm-linf"]["value"], report["pgd-linf"]["value"]) > 0.3


# --- verdicts


class AtSize(nn.Module):
    """Gives other scores to batches of 37: the model depends on its batch."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.flip(1) if len(scores) == 37 else scores


def test_successes_that_do_not_hold_in_another_batch(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    found = failed(tmp_path, Scaled(net, after=AtSize()), (x, y))["check-verified"]
    lost, total = (int(word) for word in found["measured"].split() if word.isdigit())
    assert 0 < lost <= total and "evaluation mode" in found["advice"]
    assert found["spoils"] == ["pgd-linf"]


def test_stored_successes_are_judged_afresh() -> None:
    net, x, y = honest()
    line = {"value": 0.0}
    true = context(net, x, y, pgd_linf=(line, {"x": x, "success": torch.zeros(60).bool()}))
    assert CHECK["check-verified"](true).status == "ok"
    claimed = context(net, x, y, pgd_linf=(line, {"x": x, "success": torch.ones(60).bool()}))
    cell = CHECK["check-verified"](claimed)
    assert (cell.status, cell.value) == ("failed", 60.0)
    assert cell.detail["measured"] == "60 of 60 did not hold"


@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        ("check-iterative", {"fgsm_linf": 0.5, "pgd_linf": 0.51}, "failed"),
        ("check-iterative", {"fgsm_linf": 0.5, "pgd_linf": 0.5}, "ok"),
        ("check-iterative", {"fgsm_linf": None, "pgd_linf": 0.5}, "not measured"),
        ("check-random", {"random_linf": 0.4, "pgd_linf": 0.5}, "failed"),
        ("check-random", {"random_linf": 0.4, "pgd_linf": 0.4}, "ok"),
        ("check-random", {"pgd_linf": 0.5}, "not measured"),
    ],
)
def test_figures_of_other_cells_are_compared(name: str, values: Any, status: str) -> None:
    net, x, y = honest()
    found = {k: ({"value": v}, {}) for k, v in values.items() if v is not None}
    assert CHECK[name](context(net, x, y, **found)).status == status


def test_a_check_that_cannot_be_made_is_told_and_spoils(tmp_path: Path, no_page: None) -> None:
    class Break(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt() * (x - x)  # the gradient at 0 is not finite

    net, x, y = honest()
    x = x.clone()
    x[:, 0] = 0.0
    report = audit(tmp_path, CHECKED, Scaled(net, before=lambda v: v + Break()(v)), (x, y))
    cell = by_name(report)["check-gradients"]
    assert cell["status"] == "failed" and "not finite" in cell["detail"]["error"]
    assert cell["detail"]["advice"] and cell["detail"]["spoils"] == ["*"]
    assert not report.complete and report.exit_code == 3 and not report.passed
    assert by_name(report)["clean"]["status"] == "ok"


def test_checks_of_pictures_work_as_those_of_tables(tmp_path: Path, no_page: None) -> None:
    body, x, y = honest()
    net = nn.Sequential(nn.Flatten(), body)
    assert failed(tmp_path / "a", net, (x.reshape(-1, 1, 3, 4), y)) == {}
    flipped = failed(tmp_path / "b", net, (x.reshape(-1, 1, 3, 4), 1 - y))
    assert set(flipped) == {"check-accuracy"}
