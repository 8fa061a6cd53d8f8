"""The cells of the page of explanations in the made-up run of `report_fixture`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from report_cells import Maker

METHODS = {
    "saliency": "Saliency",
    "integrated_gradients": "Integrated gradients",
    "random_map": "Random map, the control",
}
SHARES = [j / 8 for j in range(9)]


def explanations(maker: Maker, model: str, strong: bool) -> None:
    """One cell of each of the page's kinds."""
    _gallery(maker, model)
    for place, (name, title) in enumerate(METHODS.items()):
        _score(maker, model, name, title, 0.2 + 0.15 * place)
    layers = ["7", "5", "<i>2</i>", "0"]
    rank = [[r, r - 0.05, r + 0.05] for r in (0.8, 0.4, 0.2, 0.6 if strong else 0.02)]
    detail = {"method": "saliency", "title": "Saliency", "layers": layers, "rank": rank,
              "topk": rank, "k": 100}  # fmt: skip
    tensors = {"x": maker.images[:1], "maps": maker.smooth(5)}
    maker.cell("explanation", "explain-sanity", model, 0.02, detail=detail, tensors=tensors, n=16)
    rows = [
        {"id": i, "true": i, "label": i + 1, "found": i != 2, "distance": 1.5, "enough": i != 1,
         "kept": 0.3}
        for i in range(3)
    ]  # fmt: skip
    tensors = {"x": maker.images[:3], "other": maker.images[1:4], "part": maker.images[:3] * 0.5}
    maker.cell(
        "explanation", "explain-counter", model, None, n=3, tensors=tensors,
        detail={"rows": rows, "found": 2},
    )  # fmt: skip
    detail = {
        "rates": [[r, r - 0.03, r + 0.03] for r in (0.9, 0.7, 0.5)], "lost": [0.2, 0.4], "k": 4,
        "n": 500, "edges": [0.31, 0.3, 0.32], "gini": [0.6, 0.58, 0.62], "maps": 50, "p": 1024.0,
        "seen": [0, 0, 3], "true": [0],
    }  # fmt: skip
    tensors = {"shown": maker.images[:3]}
    maker.cell("explanation", "explain-texture", model, 0.7, detail=detail, tensors=tensors, n=500)
    lines = {
        name: [[v, v - 0.05, v + 0.05] for v in (top, top - 0.1, top - 0.2, top - 0.3)]
        for name, top in (("random noise", 0.95), ("attack on the label", 0.85),
                          ("attack on the map", 0.6))
    }  # fmt: skip
    detail = {"method": "saliency", "title": "Saliency", "k": 100, "lines": lines,
              "eps": [0.01, 0.02, 0.05, 0.1]}  # fmt: skip
    maker.cell("explanation", "explain-drift-saliency", model, 0.3, detail=detail, n=32)


def _gallery(maker: Maker, model: str) -> None:
    rows = [{"id": i, "true": i, "label_clean": i, "label_adv": i + 1} for i in range(3)]
    detail: dict[str, Any] = {
        "methods": [{"name": name, "title": title} for name, title in METHODS.items()],
        "skipped": [{"name": "Grad-CAM", "reason": "no layer <b>has</b> places"}],
        "rows": rows,
        "attack": "PGD, 40 steps",
    }
    count = len(METHODS)
    maps = maker.smooth(3, count), maker.smooth(3, count)
    tensors = {
        "clean": maker.images[:3],
        "adversarial": np.clip(maker.images[:3] + 0.05, 0, 1),
        "clean_maps": maps[0],
        "adversarial_maps": maps[1],
    }
    maker.cell("explanation", "explain-gallery", model, None, detail=detail, tensors=tensors, n=3)


def _score(maker: Maker, model: str, name: str, title: str, area: float) -> None:
    fall = [float(0.9 * np.exp(-s / area)) for s in SHARES]
    detail: dict[str, Any] = {"method": name, "title": title, "residual": None}
    if name == "integrated_gradients":
        detail["residual"] = {"median": 0.0037, "worst": 0.19}
    for what, curve in (("deletion", fall), ("insertion", fall[::-1])):
        mean = float(np.mean(curve))
        detail[what] = {
            "definition": f"area under the {what} curve <b>x</b>",
            "better": "lower" if what == "deletion" else "higher",
            "mean": [mean, mean - 0.03, mean + 0.03],
            "chance": [0.5, 0.45, 0.55],
            "gain": [0.1, 0.05, 0.15],
            "shares": SHARES,
            "curve": curve,
            "low": [v - 0.03 for v in curve],
            "high": [v + 0.03 for v in curve],
            "control": [0.5] * len(SHARES),
        }
    maker.cell("explanation", f"explain-score-{name}", model, area, detail=detail, n=64)
