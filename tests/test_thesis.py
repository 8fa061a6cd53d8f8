"""The thesis in one minute: exact where algebra knows the answer, sane on a trained net."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_helpers import TINY, Scaled, audit, by_name, context, honest, no_page
from conftest import LinearCase, linear, linear_case
from optimum import untargeted
from torch import Tensor, nn

import foible
from foible.audit import thesis
from foible.audit.cells import Context
from foible.models import wrap

__all__ = ["no_page"]  # a fixture
DIRECTIONS = ["random signs", "LIME", "integrated gradients", "saliency", "SmoothGrad", "PGD"]
THESIS = replace(TINY, attacks=(), explanations=(), thesis=True)


def around(case: LinearCase, **more: Any) -> Context:
    return context(case.model, case.x, case.y, replace(THESIS, **more))


def trained() -> Context:
    net, x, y = honest()
    return context(net, x, y, THESIS)


# --- a linear model


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_the_predicted_distance_is_the_exact_one(classes: int) -> None:
    case = linear_case(classes, 20, 3)
    found = thesis.predict(around(case), case.x, case.y)
    exact = untargeted(case, "linf")
    np.testing.assert_allclose(found.distance.numpy(), exact, rtol=1e-9)
    # A step of just that length along the sign of the map crosses to just that class.
    for length, crossed in ((1.001, True), (0.999, False)):
        step = length * found.distance[:, None] * found.direction.sign()
        labels = case.model(case.x + step).argmax(1)
        assert torch.equal(labels, found.rival if crossed else case.y)
    scores = case.weight[found.rival] - case.weight[case.y]
    torch.testing.assert_close(found.direction, scores)
    assert found.backwards == 20 * (1 + min(classes, 20))


def test_the_prediction_does_not_depend_on_the_batch() -> None:
    case = linear_case(5, 21, 3)
    whole = thesis.predict(around(case), case.x, case.y)
    parts = [thesis.predict(around(case), case.x[i : i + 4], case.y[i : i + 4]).distance
             for i in range(0, 21, 4)]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), whole.distance, rtol=1e-12, atol=0)


def test_measured_distances_agree_with_predicted_ones() -> None:
    case = linear_case(5, 30, 7)
    cell = thesis.distance(around(case))
    predicted, measured = cell.tensors["predicted"], cell.tensors["measured"]
    exact = torch.from_numpy(untargeted(case, "linf"))
    assert cell.n == cell.detail["n"] == len(measured) >= 25 and cell.value is not None
    assert float((predicted[:, None] / exact - 1).abs().amin(1).max()) < 1e-9
    # No attack beats the optimum, and the grid's next value above it is nearly always enough.
    assert bool((measured >= predicted * (1 - 1e-6)).all())
    assert float((measured / predicted).quantile(0.9)) < 1.3
    assert cell.value > 0.97 and cell.detail["confidence"] < cell.value


def test_the_predicted_crossing_is_the_measured_one() -> None:
    case = linear_case(5, 30, 7)
    cell = thesis.frames(around(case))
    found = cell.detail
    predicted, measured = found["predicted_crossing"], found["measured_crossing"]
    fine = 3 * predicted / 240
    assert 0 <= measured - predicted <= fine * 1.001 and cell.value == predicted
    exact = untargeted(case, "linf")
    assert min(abs(exact - predicted)) < 1e-9 * predicted
    assert abs(np.median(exact) - predicted) <= np.ptp(exact) / 4  # the typical example
    frames = cell.tensors["frames"]
    assert frames.shape == (9, 12) and len(found["t"]) == len(found["label"]) == 9
    assert found["t"][0] == 0 and found["t"] == sorted(found["t"])
    assert found["label"] == case.model(frames).argmax(1).tolist()
    for t, label in zip(found["t"], found["label"], strict=True):
        assert label == (found["true"] if t < measured else found["rival"])
    step = (frames[1:] - frames[0]).abs().amax(1)
    np.testing.assert_allclose(step.numpy(), found["t"][1:], rtol=1e-9)
    moved = -cell.tensors["map"][0].sign()
    assert torch.equal((frames[-1] - frames[0]).sign(), moved)
    soft = case.model(frames).softmax(1).detach()
    np.testing.assert_allclose(found["confidence"], soft.amax(1).numpy(), rtol=1e-9)
    np.testing.assert_allclose(found["true_confidence"], soft[:, found["true"]].numpy(), rtol=1e-9)


def test_on_a_linear_model_every_gradient_names_the_same_direction() -> None:
    case = linear_case(2, 40, 11)
    rows = {r["direction"]: r for r in thesis.follow(around(case)).detail["rows"]}
    best = {rows[name]["accuracy"] for name in ("saliency", "SmoothGrad", "PGD")}
    exact = untargeted(case, "linf")
    eps = thesis.follow(around(case)).detail["eps"]
    assert best == {float((exact > eps).mean())}
    assert rows["random signs"]["accuracy"] > rows["saliency"]["accuracy"] + 0.2


# --- a trained net


def test_all_six_directions_are_followed_and_none_beats_pgd() -> None:
    cell = thesis.follow(trained())
    rows = cell.detail["rows"]
    assert [row["direction"] for row in rows] == DIRECTIONS and cell.detail["verb"] == "push"
    rate = {row["direction"]: row["accuracy"] for row in rows}
    assert all(0 <= r["low"] <= r["accuracy"] <= r["high"] <= 1 for r in rows)
    assert all(rate["PGD"] <= rate[name] + 0.02 for name in DIRECTIONS)
    assert rate["saliency"] < 0.5 < rate["random signs"]  # the size tells weak from strong
    assert cell.value == cell.detail["eps"] > 0 and cell.n == 60
    assert cell.forwards > cell.backwards > 0
    deleted = cell.detail["delete"]
    assert deleted["k"][0] == 0 and deleted["k"][-1] == 12
    names = [row["direction"] for row in deleted["rows"]]
    assert names == ["random", "saliency", "integrated gradients"]
    for row in deleted["rows"]:
        assert row["accuracy"][0] == 1 and len(row["accuracy"]) == len(deleted["k"])
        assert row["accuracy"] == sorted(row["accuracy"], reverse=True)
    area = {row["direction"]: sum(row["accuracy"]) for row in deleted["rows"]}
    assert area["integrated gradients"] < area["random"]


def test_the_map_predicts_the_distance_of_a_trained_net() -> None:
    cell = thesis.distance(trained())
    assert cell.value is not None and cell.value > 0.8 and cell.n == 60
    assert cell.tensors["predicted"].shape == cell.tensors["measured"].shape == (60,)
    assert bool((cell.tensors["measured"] > 0).all()) and -1 <= cell.detail["confidence"] <= 1


def test_frames_stay_in_the_box() -> None:
    net, x, _ = honest()
    edge = x.clone()
    edge[:, ::2] = edge[:, ::2].round()
    held = wrap(net, (0, 1))
    cell = thesis.frames(context(held, edge, held(edge).argmax(1), THESIS))
    frames = cell.tensors["frames"]
    assert float(frames.min()) >= 0 and float(frames.max()) <= 1
    assert bool(((frames == 0) | (frames == 1)).any(1).all())  # the box was met
    assert len(cell.detail["t"]) == 9 and cell.detail["label"][0] == cell.detail["true"]


def test_a_bent_map_keeps_the_label_of_the_true_net() -> None:
    about = trained()
    cell = thesis.bent(about)
    found, held = cell.detail, about.model
    clean, adversarial = cell.tensors["clean"], cell.tensors["adversarial"]
    label = torch.tensor([found["label"]])
    assert torch.equal(held(clean).argmax(1), label)
    assert torch.equal(held(adversarial).argmax(1), label)
    assert 0 < float((adversarial - clean).abs().max()) <= found["eps"] * (1 + 1e-5) + 1e-7
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1
    explain = foible.explain.saliency()
    torch.testing.assert_close(explain(held, clean, label), cell.tensors["clean_map"])
    torch.testing.assert_close(explain(held, adversarial, label), cell.tensors["bent_map"])

    def alike(a: Tensor, b: Tensor) -> float:
        return float(torch.cosine_similarity(a.abs().flatten(), b.abs().flatten(), dim=0))

    order = cell.tensors["target_map"]
    assert alike(cell.tensors["clean_map"], order) == pytest.approx(found["similarity_before"])
    assert alike(cell.tensors["bent_map"], order) == pytest.approx(found["similarity_after"])
    assert found["similarity_after"] > found["similarity_before"]
    for x, key in ((clean, "confidence_before"), (adversarial, "confidence_after")):
        assert float(held(x).detach().softmax(1)[0, label]) == pytest.approx(found[key], rel=1e-5)


# --- where there is nothing to show


def test_a_net_without_relu_modules_is_not_bent_and_says_why() -> None:
    case = linear_case(3, 12, 5)
    cell = thesis.bent(around(case))
    assert (cell.status, cell.value) == ("not measured", None)
    assert "no ReLU was found" in cell.detail["why"]


def test_where_nothing_is_right_nothing_is_measured() -> None:
    case = linear_case(2, 12, 5)
    about = context(case.model, case.x, 1 - case.y, THESIS)
    for page in (thesis.follow, thesis.distance, thesis.frames, thesis.bent):
        cell = page(about)
        assert (cell.status, cell.value, cell.n) == ("not measured", None, 0)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :3]


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("kind", ["constant", "detached", "flat"])
def test_models_without_a_gradient_cost_no_other_cell(
    tmp_path: Path, no_page: None, kind: str
) -> None:
    net, x, y = honest()
    models: dict[str, nn.Module] = {
        "constant": Constant(),
        "detached": Scaled(net, before=Detached()),
        "flat": linear(torch.zeros(2, 12), torch.tensor([0.0, 0.0])),
    }
    plan = replace(TINY, thesis=True, explanations=foible.audit.planning.EXPLAINERS, checks=True)
    report = audit(tmp_path, plan, models[kind], (x, y))
    assert report.complete, [c["detail"] for c in report.cells if "error" in c["detail"]]
    failed = {check["name"] for check in report.checks_failed}
    assert "check-gradients" in failed and not report.passed
    found = by_name(report)
    assert found["thesis-distance"]["status"] == "not measured"
    assert found["pgd-linf"]["value"] <= found["clean"]["value"]


def test_the_four_pages_are_cells_with_keys(tmp_path: Path, no_page: None) -> None:
    net, x, y = honest()
    report = audit(tmp_path, THESIS, net, (x, y))
    pages = [c for c in report.cells if c["kind"] == "thesis"]
    assert [c["name"] for c in pages] == [f"thesis-{n}" for n in ("follow", "distance", "frames",
                                                                  "bent")]  # fmt: skip
    assert all(c["status"] == "ok" and c["value"] is not None for c in pages)
    names = {c["name"]: c["tensors"] for c in pages}
    assert names["thesis-frames"] == ["frames", "map"] and names["thesis-follow"] == []
    assert names["thesis-distance"] == ["measured", "predicted"]
    assert names["thesis-bent"] == ["adversarial", "bent_map", "clean", "clean_map", "target_map"]
