"""The page of explanations: its cells on a real model, and what the report says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import context
from conftest import filled, predicted, rand
from report_fixture import make_run
from torch import Tensor, nn

from foible.audit import Plan, run
from foible.audit.explaining import GALLERY, DriftWork, explanation_cells, titled
from foible.audit.reading import read_run
from foible.audit.reporting import render

SECTIONS = ("explanations", "scores", "sanity", "counterfactuals", "texture", "drift")


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', page, re.S)
    assert found, name
    return found[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(read_run(make_run(tmp_path_factory.mktemp("made") / "run")))


def test_every_method_stands_under_every_input(page: str) -> None:
    text = section(page, "explanations")
    assert text.count('class="gallery"') == 2 and text.count("<tbody>") == 6
    # An input and three maps, clean and attacked, of three inputs and two models.
    assert text.count('<div class="frame">') == 4 * 2 * 3 * 2
    assert "Grad-CAM is not shown: no layer &lt;b&gt;has&lt;/b&gt; places" in text


def test_scores_carry_definition_interval_and_chance_and_no_ranking(page: str) -> None:
    text = section(page, "scores")
    assert text.count("<svg") == 4 and "there is no ranking over both" in text
    assert text.count("Area under the deletion curve &lt;b&gt;x&lt;/b&gt;.") == 2
    assert "its map shuffled" in text and "0.0037" in text and "0.19" in text


def test_a_map_that_stays_is_called_out(page: str) -> None:
    text = section(page, "sanity")
    assert text.count("this map says little about the model") == 1  # the second model's
    assert "&lt;i&gt;2&lt;/i&gt;" in text and "<i>2</i>" not in text


def test_drift_shows_the_attacks_beside_noise(page: str) -> None:
    text = section(page, "drift")
    assert text.count("attack on the map") >= 2 and text.count("random noise") >= 2


def test_drift_is_measured_where_the_label_is_right() -> None:
    """The attack on the map moves it further than noise does; its line may be left out alone."""
    images = rand(9, 1, 6, 6, seed=5)
    for middle in (nn.ReLU(), nn.Tanh(), OnceOnly()):
        net = nn.Sequential(nn.Conv2d(1, 8, 3), middle, nn.Flatten(), nn.Linear(128, 3))
        net = filled(net, 3, 2.0)
        y = predicted(net, images)
        y[6:] = (y[6:] + 1) % 3
        plan = Plan(samples=9, eps=0.2, curves=(), thesis=False, checks=False)
        given = context(net, images, y, plan)
        found = DriftWork()(given)
        assert found.n == 6 and found.forwards > 0 and found.backwards > 0
        lines = found.detail["lines"]
        if isinstance(middle, OnceOnly):
            assert list(lines) == ["random noise", "attack on the label"]
            assert found.detail["left_out"].startswith("attack on the map")
            continue
        assert list(lines)[-1] == "attack on the map" and "left_out" not in found.detail
        assert lines["attack on the map"][-1][0] < lines["random noise"][-1][0]
        assert found.value == lines["attack on the map"][-1][0]


class Halved(torch.autograd.Function):
    """A part of someone's own, without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


class OnceOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Halved.apply(x).tanh()


def test_counterfactuals_say_what_was_found(page: str) -> None:
    text = section(page, "counterfactuals")
    assert text.count('<div class="frame">') == 4 * 3 * 2
    assert text.count("no other class was found") == 2 and text.count("would be") == 4
    assert (
        text.count("no smaller part was found") == 2
        and len(re.findall(r"30(\.0)?\s% of it is enough", text)) == 4
    )


def test_texture_and_shape_stand_beside_each_other(page: str) -> None:
    text = section(page, "texture")
    assert text.count("<tr><td>") == 3 * 2 and text.count('<div class="frame">') == 3 * 2
    assert "Without shape, 4 × 4 patches" in text and text.count('class="wrong"') == 2
    assert len(re.findall(r"puts 31(\.0)?\s% of its map", text)) == 2


def test_what_is_missing_says_so(tmp_path: Path) -> None:
    empty = render(read_run(make_run(tmp_path / "run", skip=("explanation",))))
    for name in SECTIONS[:5]:
        assert section(empty, name).count("not measured") >= 2


def test_an_audit_measures_the_page(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(True), nn.Flatten(), nn.Linear(48, 3))
    net, x = filled(net, 3, 2.0), rand(9, 1, 6, 6, seed=5)
    y = predicted(net, x)
    y[6:] = (y[6:] + 1) % 3  # six are right
    assert len(y.unique()) > 1
    attack = {"name": "pgd-linf", "recipe": "pgd", "norm": "linf", "steps": 5}
    plan = Plan(samples=9, eps=0.3, attacks=(attack,), curves=(), thesis=False, checks=False,
                explanations=("saliency", "integrated_gradients"))  # fmt: skip
    report = run(net, (x, y), tmp_path / "run", plan=plan)
    lines = {c["name"]: c for c in report.cells if c["kind"] == "explanation"}
    failed = [(n, c["detail"]["error"]) for n, c in lines.items() if "error" in c["detail"]]
    assert failed == []
    assert set(lines) == {
        "explain-gallery", "explain-score-saliency", "explain-score-integrated_gradients",
        "explain-score-random_map", "explain-sanity", "explain-counter", "explain-drift-saliency",
        "explain-texture",
    }  # fmt: skip
    score = lines["explain-score-integrated_gradients"]
    assert score["n"] == 6 and score["forwards"] == 6 * (50 + 4 * 29) + 3
    assert score["backwards"] == 6 * 50 and score["detail"]["residual"]["median"] >= 0
    texture = lines["explain-texture"]
    assert texture["detail"]["k"] == 3 and texture["detail"]["rates"][0][0] == pytest.approx(6 / 9)
    # Three versions and a look for the right ones, the maps of those, three tiles; one to try.
    assert texture["n"] == 9 and texture["forwards"] == 9 * 4 + 6 * 50 + 3 + 1
    assert lines["explain-gallery"]["detail"]["methods"][0]["title"] == "Saliency"
    assert not any(m._forward_pre_hooks for m in net.modules())
    text = report.report.read_text("utf-8")
    assert all(section(text, name) for name in SECTIONS)


def test_a_method_that_does_not_fit_costs_no_other(tmp_path: Path) -> None:
    """A table has no places: methods for pictures are named with their reason."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(40, 6, generator=g)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    y = predicted(net, x)
    y[20:] = (y[20:] + 1) % 3  # an audit wants two classes
    attack = {"name": "pgd-linf", "recipe": "pgd", "norm": "linf", "steps": 10}
    plan = Plan(samples=40, eps=0.5, attacks=(attack,), curves=(), thesis=False, checks=False,
                explanations=("saliency",))  # fmt: skip
    report = run(net, (x, y), tmp_path / "run", plan=plan)
    found = next(c for c in report.cells if c["name"] == "explain-gallery")
    assert "error" not in found["detail"]
    if found["n"]:
        shown = {m["name"] for m in found["detail"]["methods"]}
        assert {"saliency", "lime", "random_map"} <= shown
        assert all(item["reason"] for item in found["detail"]["skipped"])


def test_titles_and_no_cells_without_methods() -> None:
    assert titled("smoothgrad") == "SmoothGrad" and titled("saliency") == "Saliency"
    assert explanation_cells((), ()) == [] and len(set(GALLERY)) == len(GALLERY)
