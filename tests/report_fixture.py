"""A made-up run folder that looks like a real one, to test the report and to look at it.

Run as a script to write all variants: `python tests/report_fixture.py FOLDER`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from report_cells import Maker, measure

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def pictures(shape: tuple[int, ...], n: int, rng: np.random.Generator) -> np.ndarray:
    """Inputs of any shape in 0..1: Fashion-MNIST where it is there and fits, else shapes."""
    if shape == (1, 28, 28) and FASHION.is_file():
        raw = gzip.decompress(FASHION.read_bytes())[16:]
        pixels = np.frombuffer(raw, np.uint8)[: n * 784]
        return pixels.reshape(n, 1, 28, 28).astype(np.float32) / 255
    if len(shape) != 3:
        return rng.uniform(size=(n, *shape)).astype(np.float32)
    channels, height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    out = np.zeros((n, *shape), np.float32)
    for i in range(n):
        radius = height * (0.2 + 0.02 * (i % 8))
        p = 2 + i % 3
        inside = (abs(y - height / 2) ** p + abs(x - width / 2) ** p) ** (1 / p) < radius
        for c in range(channels):
            out[i, c] = np.where(inside, 0.4 + 0.5 * np.sin(i + 2 * c) ** 2, 0.1 + 0.2 * y / height)
    return out


def make_run(
    folder: Path | str,
    *,
    models: tuple[str, ...] = ("standard", "hardened"),
    shape: tuple[int, ...] = (1, 28, 28),
    classes: list[str] | None = None,
    skip: tuple[str, ...] = (),
    failed: bool = True,
    thresholds: bool = True,
) -> Path:
    """Write a run folder and give its path.

    Args:
        folder: made if it is not there.
        models: names; the second one is more robust than the others.
        shape: of one sample.
        classes: names, ten of them.
        skip: names or kinds of cells that are planned and have no line.
        failed: whether a check of the first model failed.
        thresholds: whether the plan has thresholds.
    """
    folder = Path(folder)
    (folder / "tensors").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    maker = Maker(folder, shape, pictures(shape, 400, rng), rng, skip)
    for index, model in enumerate(models):
        measure(maker, model, strong=index == 1, failed=failed and index == 0)
    plan = {
        "schema": 1,
        "foible": "0.1.0",
        "torch": "2.13.0",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "command": "foible audit --preset quick --out runs/first",
        "seed": 0,
        "preset": "quick",
        "models": [_model_facts(name) for name in models],
        "data": {
            "name": "Fashion-MNIST sample" if len(shape) == 3 else "a table",
            "hash": "sha256:" + "5e" * 32,
            "n": 400,
            "shape": list(shape),
            "classes": classes or CLASSES,
        },
        "bounds": [0.0, 1.0],
        "thresholds": [
            {"what": "accuracy", "cell": "clean", "at_least": 0.84},
            {"what": "robust", "cell": "pgd-linf", "at_least": 0.6},
        ]
        if thresholds
        else [],
        "fail_under": False,
        "cells": maker.planned,
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1), "utf-8")
    text = "".join(json.dumps(line) + "\n" for line in maker.lines)
    (folder / "log.jsonl").write_text(text, "utf-8")
    return folder


def _model_facts(name: str) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    facts = {"hash": f"sha256:{digest}", "weights": f"sha256:{digest[::-1]}"}
    return {"name": name, **facts, "parameters": 458570, "source": f"foible.zoo {name}"}


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    '$5 & "cheap"',
    "a'b",
    *CLASSES[4:],
]

VARIANTS: dict[str, dict[str, Any]] = {
    "two": {},
    "one": {"models": ("standard",), "failed": False, "thresholds": False},
    "table": {"shape": (13,)},
    "colour": {"shape": (3, 32, 32), "models": ("standard", "hardened", "distilled")},
    "holes": {
        "skip": (
            "curve-linf",
            "curve-l2",
            "thesis-distance",
            "pgd-linf",
            "strips",
            "clean",
            "check-logits",
        )
    },
    "empty": {
        "skip": (
            "clean",
            "attack",
            "curve",
            "stability",
            "thesis",
            "strips",
            "explanation",
            "check",
        )
    },
    "hostile": {"classes": HOSTILE, "models": ("<b>bold</b>", 'hard & "ened"')},
}

if __name__ == "__main__":
    import sys

    for variant, options in VARIANTS.items():
        print(make_run(Path(sys.argv[1]) / variant, **options))
