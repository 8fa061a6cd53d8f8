"""The audit: resumed by identity with the same numbers, judged by thresholds, refused in time."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import (
    FGSM,
    NOTHING,
    PGD,
    RANDOM,
    TINY,
    audit,
    by_name,
    honest,
    mlp,
    no_page,
    numbers,
    table,
    text,
)
from torch import Tensor, nn

import foible
from foible.audit import Plan, cells
from foible.audit.reading import read_run
from foible.audit.runner import plan_cells
from foible.audit.verdicts import thresholds, tiles
from foible.core.errors import FoibleError

__all__ = ["no_page"]  # a fixture


# --- the same numbers


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, no_page) -> None:
    plan = replace(TINY, curves=("linf",), checks=True)
    first = audit(tmp_path / "a", plan)
    torch.rand(7)  # the state of the global generator does not matter
    audit(tmp_path / "b", plan)
    audit(tmp_path / "c", replace(plan, seed=1))
    assert text(tmp_path / "a") == text(tmp_path / "b")
    for name in ("random-linf", "pgd-linf"):
        key = by_name(first)[name]["key"]
        held = (tmp_path / x / f"tensors/{key}.safetensors" for x in "ab")
        assert len({path.read_bytes() for path in held}) == 1
    assert not set(numbers(tmp_path / "a")) & set(numbers(tmp_path / "c"))
    found = []
    for folder in "ac":
        run = read_run(tmp_path / folder)
        found.append(run.tensor(run.cell("model", "random-linf"), "x"))
    assert found[0] is not None and not (found[0] == found[1]).all()


def test_a_finished_audit_runs_nothing_again(tmp_path, no_page, monkeypatch) -> None:
    first = audit(tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    monkeypatch.setattr(cells.AttackWork, "__call__", None)
    again = audit(tmp_path)
    assert again.cells == first.cells and (tmp_path / "log.jsonl").read_bytes() == log
    assert again.notes == [f"resumed: {len(first.cells)} of {len(first.cells)} cells were "
                           "already done"]  # fmt: skip
    assert first.notes == []


def test_a_log_of_another_model_is_kept_and_not_shown(tmp_path, no_page) -> None:
    first = audit(tmp_path)
    mine = numbers(tmp_path)
    other = audit(tmp_path, model=mlp(seed=9))
    assert any("6 cells in this folder belong to another model" in n for n in other.notes)
    assert not any("resumed" in n for n in other.notes)
    seen = read_run(tmp_path)
    assert {c.key for c in seen.cells.values()} == {c["key"] for c in other.cells}
    assert not {c["key"] for c in other.cells} & set(mine)
    assert mine.items() <= numbers(tmp_path).items()  # nothing finished was lost
    back = audit(tmp_path)
    assert back.cells == first.cells and any("resumed: 6 of 6" in n for n in back.notes)


def test_more_cells_of_the_same_audit_use_what_is_there(tmp_path, no_page) -> None:
    audit(tmp_path, replace(TINY, attacks=(RANDOM,), explanations=()))
    report = audit(tmp_path)
    assert any("resumed: 2 of 6" in note for note in report.notes)


# --- identity


def keys(tmp_path: Path, model: Any = None, data: Any = None, plan: Plan = TINY) -> set[str]:
    audit(tmp_path / "keys", plan, model, data)
    found = json.loads((tmp_path / "keys/plan.json").read_text())["cells"]
    shutil.rmtree(tmp_path / "keys")
    return {cell["key"] for cell in found}


def one_weight() -> nn.Module:
    net = mlp()
    with torch.no_grad():
        net[2].bias[1] += 1e-6
    return net


def half(x: Tensor) -> Tensor:
    return x / 2


def first(out: Tensor) -> Tensor:
    return out[:, :3]


@pytest.mark.parametrize(
    "changed",
    [
        one_weight,
        lambda: nn.Sequential(*mlp(), nn.Identity()),
        lambda: foible.wrap(mlp(), (0, 2)),
        lambda: foible.wrap(mlp(), preprocess=(0.1, 1.0)),
        lambda: foible.wrap(mlp(), preprocess=(0.0, 1.0)),
        lambda: foible.wrap(mlp(), preprocess=half),
        lambda: foible.wrap(mlp(), outputs="probabilities"),
        lambda: foible.wrap(mlp(), outputs=first),
    ],
)
def test_whatever_changes_the_model_changes_every_key(tmp_path, no_page, changed) -> None:
    same = keys(tmp_path)
    assert keys(tmp_path, copy.deepcopy(mlp()).train()) == same
    other = changed()
    if getattr(other, "outputs", None) == "probabilities":
        other.net.append(nn.Softmax(1))
    assert not keys(tmp_path, other) & same


def test_whatever_changes_data_plan_or_version_changes_every_key(
    tmp_path, no_page, monkeypatch
) -> None:
    same, (x, y) = keys(tmp_path), table()
    assert keys(tmp_path, data=(x.clone(), y.int())) == same  # the labels, not their dtype
    relabelled, moved = y.clone(), x.clone()
    relabelled[3] = (y[3] + 1) % 3
    moved[5, 2] += 1e-6
    for data in ((x, relabelled), (moved, y), (x[:-1], y[:-1]), (x.flip(0), y.flip(0)),
                 (x.reshape(-1, 1, 8), y)):  # fmt: skip
        net = nn.Sequential(nn.Flatten(), *mlp()) if data[0].dim() > 2 else None
        assert not keys(tmp_path, net, data) & same
    for plan in (replace(TINY, eps=0.11), replace(TINY, seed=5), replace(TINY, samples=39)):
        assert not keys(tmp_path, plan=plan) & same
    monkeypatch.setattr(foible, "__version__", "0.1.1")
    assert not keys(tmp_path) & same


def test_a_changed_attack_changes_what_reads_it_and_nothing_else(tmp_path, no_page) -> None:
    found = []
    for steps in (10, 11):
        plan = replace(TINY, attacks=(RANDOM, FGSM, {**PGD, "steps": steps}), checks=True)
        audit(tmp_path / str(steps), plan)
        listed = json.loads((tmp_path / str(steps) / "plan.json").read_text())["cells"]
        found.append({c["name"]: c["key"] for c in listed})
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert changed == {"pgd-linf", "stability-saliency", "strips", "check-iterative",
                       "check-black-box", "check-masking",
                       "check-random", "check-verified", "check-worst-case"}  # fmt: skip


class Module(nn.Module):
    """Three ways to differ without a trace in weights and repr."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Other(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


Other.__name__ = Other.__qualname__ = "Same"
Like = type("Same", (nn.Module,), {"forward": lambda self, x: x / 3})


HIDDEN = {
    "a module in front": [
        lambda f=f: foible.wrap(mlp(), preprocess=Module(f)) for f in (1.0, 0.5)
    ],
    "lambdas": [
        lambda: foible.wrap(mlp(), preprocess=lambda x: x / 2),
        lambda: foible.wrap(mlp(), preprocess=lambda x: x / 3),
    ],
    "an attribute": [lambda f=f: nn.Sequential(Module(f), mlp()) for f in (1.0, 0.5)],
    "code": [lambda kind=kind: nn.Sequential(kind(), mlp()) for kind in (Other, Like)],
}  # fmt: skip


@pytest.mark.parametrize("name", list(HIDDEN))
def test_what_weights_do_not_show_changes_every_key_or_is_refused(
    tmp_path, no_page, name: str
) -> None:
    try:
        one, two = (keys(tmp_path, make()) for make in HIDDEN[name])
    except FoibleError:
        return
    assert not one & two


# --- verdicts


@pytest.mark.parametrize(
    ("least", "ask", "code", "passed"),
    [(0.0, True, 0, True), (0.0, False, 0, True), (1.01, True, 1, False), (1.01, False, 0, False)],
)
def test_thresholds_and_exit_codes(tmp_path, no_page, least, ask, code, passed) -> None:
    plan = replace(TINY, thresholds=({"what": "robust", "norm": "linf", "at_least": least},))
    report = audit(tmp_path, plan, fail_under=ask)
    assert (report.exit_code, report.passed, report.complete) == (code, passed, True)
    assert [t["state"] for t in report.thresholds] == ["met" if passed else "missed"]
    attacks = [c["value"] for c in report.cells if c["kind"] == "attack"]
    assert report.thresholds[0]["value"] <= min(attacks) and len(attacks) == 3
    assert json.loads((tmp_path / "plan.json").read_text())["fail_under"] is ask


def test_each_threshold_is_judged_at_its_value(tmp_path, no_page) -> None:
    value = by_name(audit(tmp_path, NOTHING))["clean"]["value"]
    assert value == 1.0
    for least, state in ((1.0, "met"), (1.0 + 1e-9, "missed")):
        asked = ({"what": "accuracy", "at_least": least},)
        report = audit(tmp_path, replace(NOTHING, thresholds=asked))
        assert [t["state"] for t in report.thresholds] == [state]
    never = ({"what": "robust", "norm": "l2", "at_least": 0.0},)
    report = audit(tmp_path, replace(NOTHING, thresholds=never), fail_under=True)
    assert [t["state"] for t in report.thresholds] == ["not measured"]
    assert (report.passed, report.exit_code) == (False, 1)  # nothing is not zero, and not met


def test_a_failed_check_fails_the_audit(tmp_path, no_page) -> None:
    net, x, y = honest()
    soft = nn.Sequential(net, nn.Softmax(1))
    plan = replace(NOTHING, checks=True, thresholds=({"what": "accuracy", "at_least": 0.5},))
    for ask, code in ((True, 1), (False, 0)):
        report = audit(tmp_path, plan, soft, (x, y), fail_under=ask)
        assert report.thresholds[0]["state"] == "met" and "check-logits" in {
            c["name"] for c in report.checks_failed
        }
        assert not report.passed and report.exit_code == code and report.complete


def test_a_cell_that_cannot_be_measured_costs_no_other(tmp_path, no_page, monkeypatch) -> None:
    real = cells.AttackWork.__call__

    def call(self: Any, about: Any) -> Any:
        if self.table["name"] == "odd":
            raise FoibleError("the gradient went away")
        return real(self, about)

    monkeypatch.setattr(cells.AttackWork, "__call__", call)
    plan = replace(TINY, attacks=(RANDOM, {**FGSM, "name": "odd"}, FGSM, PGD))
    report = audit(tmp_path, plan, fail_under=True)
    line = by_name(report)["odd"]
    assert line["status"] == "failed" and line["value"] is None
    assert line["detail"] == {"error": "the gradient went away"}
    assert (report.exit_code, report.complete, report.passed) == (3, False, False)
    others = [c for c in report.cells if c["name"] != "odd"]
    assert len(others) == 6 and all(c["status"] == "ok" for c in others)
    # It is tried again, and only it.
    again = audit(tmp_path, plan)
    assert any("resumed: 6 of 7" in note for note in again.notes) and not again.complete
    fixed = audit(tmp_path)
    assert fixed.complete and by_name(fixed)["pgd-linf"] == by_name(report)["pgd-linf"]


def perfect(line: dict[str, Any]) -> dict[str, Any]:
    """The line of an explanation's cell as it would be if the explanation were perfect."""
    if line["kind"] == "stability":
        best = {"attack": [1.0, 1.0, 1.0], "noise": [1.0, 1.0, 1.0]}
        line["detail"] |= {"topk": best, "rank": best, "residual": {"median": 0.0, "worst": 0.0}}
    if line["kind"] == "thesis":
        line["detail"] |= {"confidence": 1.0, "similarity_before": 1.0, "similarity_after": 1.0}
    return {**line, "value": 1.0, "interval": [1.0, 1.0], "status": "ok"}


@pytest.mark.parametrize("fault", ["accuracy", "check", "none"])
def test_no_explanation_turns_a_verdict_green(tmp_path, no_page, fault: str) -> None:
    """Row S16: defects show presence, not absence."""
    net, x, y = honest()
    model = nn.Sequential(net, nn.Softmax(1)) if fault == "check" else net
    least = 1.01 if fault == "accuracy" else 0.0
    asked = tuple({"what": w, **n, "at_least": least}
                  for w, n in (("accuracy", {}), ("robust", {"norm": "linf"})))  # fmt: skip
    plan = replace(TINY, explanations=("saliency", "gradient_x_input"), thesis=True, checks=True,
                   thresholds=asked)  # fmt: skip
    audit(tmp_path, plan, model, (x[:40], y[:40]))
    log = tmp_path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    explained = [line for line in lines if line["kind"] in ("stability", "thesis", "strips")]
    assert len(explained) == 7
    lines = [perfect(line) if line in explained else line for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = audit(tmp_path, plan, model, (x[:40], y[:40]), fail_under=True)
    assert by_name(report)["stability-saliency"]["value"] == 1.0
    run = read_run(tmp_path)
    states = {tile.title: tile.state for tile in tiles(run, "model")}
    if fault == "none":  # so that the test can tell
        assert list(states.values())[:2] == ["met", "met"] and report.exit_code == 0
        return
    assert "met" not in states.values() and not report.passed and report.exit_code == 1
    expected = "missed" if fault == "accuracy" else "spoiled"
    assert list(states.values())[:2] == [expected, expected]
    assert len(thresholds(run)) == 2


# --- what an audit returns


def test_the_cells_of_a_report_are_the_lines_of_the_log(tmp_path, no_page) -> None:
    x, y = table()
    wrong = y.clone()
    wrong[:10] = (y[:10] + 1) % 3
    report = audit(tmp_path, data=(x, wrong))
    found = by_name(report)
    assert [c["name"] for c in report.cells] == [c.name for c in plan_cells(TINY)]
    assert found["clean"]["value"] == 0.75 and found["clean"]["n"] == 40
    for c in range(3):
        rate = found["clean"]["detail"]["per_class"][c]
        assert rate == pytest.approx(float((y == wrong)[wrong == c].double().mean()))
    low, high = found["clean"]["interval"]
    assert low < 0.75 < high and found["clean"]["forwards"] == 40
    for name in ("random-linf", "fgsm-linf", "pgd-linf"):
        cell = found[name]
        counts = cell["detail"]["statuses"]
        assert counts["wrong"] == 10 and sum(counts.values()) == 40
        assert cell["value"] == counts["survived"] / 40
        assert cell["detail"]["success_n"] == 30
        assert cell["detail"]["success_rate"] == counts["fooled"] / 30
        assert cell["detail"]["control"] is (name == "random-linf") and cell["forwards"] >= 40
        assert (cell["detail"]["eps"], cell["detail"]["norm"]) == (0.1, "linf")
    assert found["random-linf"]["backwards"] == 0 < found["pgd-linf"]["backwards"]
    assert found["pgd-linf"]["value"] <= found["fgsm-linf"]["value"] + 0.005
    held = read_run(tmp_path)
    adversarial = held.tensor(held.cell("model", "pgd-linf"), "x")
    success = held.tensor(held.cell("model", "pgd-linf"), "success")
    assert adversarial is not None and success is not None
    moved = torch.from_numpy(adversarial)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1
    with torch.no_grad():
        assert torch.equal(mlp()(moved).argmax(1) != wrong, torch.from_numpy(success))


def test_two_models_share_a_report_and_what_is_equal(tmp_path, no_page) -> None:
    models = {"one": mlp(), "twin": mlp(), "other": mlp(seed=9)}
    report = audit(tmp_path, model=models)
    assert [(c["model"], c["name"]) for c in report.cells] == [
        (m, c.name) for m in models for c in plan_cells(TINY)
    ]
    assert len(numbers(tmp_path)) == 12  # the twin's cells are those of the first
    assert read_run(tmp_path).models == list(models)
    renamed = audit(tmp_path, model={"new": mlp()})
    assert {c["model"] for c in renamed.cells} == {"new"} and len(renamed.notes) == 2


def test_samples_are_chosen_by_seed(tmp_path, no_page) -> None:
    picked = []
    for seed in (0, 0, 1):
        report = audit(tmp_path, replace(NOTHING, samples=20, seed=seed))
        assert by_name(report)["clean"]["n"] == 20
        picked.append(json.loads((tmp_path / "plan.json").read_text())["data"]["hash"])
    assert picked[0] == picked[1] != picked[2]
