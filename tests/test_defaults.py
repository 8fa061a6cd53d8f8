"""Default settings are those that the papers give and that the documentation tells."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest

import foible.parts
from foible import attacks, explain
from foible.core.explainer import Explainer
from foible.parts.searches import apgd, fmn

PAGE = Path(__file__).resolve().parents[1] / "docs" / "attacks.md"
Settings = Mapping[str, Mapping[str, float | None]]

PUBLISHED: Settings = {
    "apgd": {"steps": 100, "restarts": 1},  # Croce and Hein 2020
    "apgd_targeted": {"steps": 100, "targets": 9},
    "contrastive": {"searches": 9, "gamma": 100.0},  # Dhurandhar et al. 2018
    "cw": {"searches": 9, "confidence": 0.0},  # Carlini and Wagner 2017
    "deepfool": {"steps": 50, "overshoot": 0.02},  # Moosavi-Dezfooli et al. 2016
    "ead": {"searches": 9, "confidence": 0.0},  # Chen et al. 2018
    "fab": {"steps": 100},  # Croce and Hein 2020
    "fab_targeted": {"steps": 100, "targets": 9},
    "jsma": {"theta": 1.0},  # Papernot et al. 2016: features go all the way
    "mim": {"steps": 10, "decay": 1.0},  # Dong et al. 2018
    "nes": {"samples": 50, "sigma": 1e-3, "momentum": 0.9},  # Ilyas et al. 2018
    "pgd": {"steps": 40},  # Madry et al. 2018, on MNIST
    "r_fgsm": {"alpha": 0.5},  # Tramer et al. 2018
    "simba": {"step": 0.2, "low": 1 / 8},  # Guo et al. 2019: 28 of 224 frequencies
    "spatial": {"angles": 31, "shifts": 5},  # Engstrom et al. 2019: a grid of 775
    "spsa": {"samples": 128, "delta": 0.01},  # Uesato et al. 2018
    "square": {"queries": 5000, "p": 0.8},  # as in AutoAttack
    "substitute": {"rounds": 6, "step": 0.1},  # Papernot et al. 2017
    "Teaching": {"epochs": 10},
    "ti_dim": {"steps": 10, "decay": 1.0, "diversity": 0.7},  # Dong et al. 2019
    "with_density": {"bandwidth": 10.0},  # Biggio et al. 2013
}

# Ours: the figures in benchmarks/results were measured with them. Another number is another attack,
# whose rows there must be measured anew.
OURS: Settings = {
    "alternatives": {"count": 4},
    "autoencoder_penalty": {"weight": 1.0},
    "Noise": {"scale": 0.3, "copies": 30},
    "Stage": {"share": 1.0},
    "Substitution": {"copies": 10},
    "Teaching": {"rate": 1e-3, "batch": 64, "period": 3},
    "Attack": {"restarts": 1},
    "Diverse": {"scales": 1},
    "bend": {"steps": 100, "beta": 30.0, "tolerance": 0.05},
    "bim": {"steps": 10},
    "boundary": {"queries": 5000, "tries": 100},
    "contrastive": {"beta": 10.0, "kappa": 0.0, "steps": 100},
    "counterfactual": {"steps": 200, "searches": 9, "confidence": 0.0},
    "cw": {"steps": 100},
    "ddn": {"steps": 200},
    "ead": {"steps": 100},
    "eot": {"samples": 20},
    "fab": {"restarts": 1},
    "fab_targeted": {"restarts": 1},
    "fmn": {"steps": 200},
    "fool_both": {"k": 100, "steps": 100, "safe": 0.1, "weight": 3.0, "beta": 100.0},
    "fool_map": {"steps": 100, "weight": 3.0, "step": 0.1},
    "fragile": {"k": 100, "steps": 100, "beta": 100.0},
    "hop_skip_jump": {"queries": 5000, "probes": 30, "tries": 100},
    "ig_deletion": {"baseline": 0.0},
    "jsma": {"steps": 200, "gamma": 1.0},
    "lbfgs": {"searches": 10, "iterations": 20},
    "least_likely": {"steps": 10},
    "minimal_erasure": {"baseline": 0.0},
    "nes": {"queries": 5000},
    "pgd": {"restarts": 1},
    "random_noise": {"points": 1},
    "scaffolding": {"trees": 100, "threshold": 0.5},
    "sigma_zero": {"steps": 300},
    "simba": {"queries": 5000},
    "smoothgrad_attack": {"samples": 25, "sigma": 0.15, "steps": 1},
    "spatial": {"restarts": 1},
    "spsa": {"queries": 5000},
    "square": {"restarts": 1},
    "strongest": {"budget": 2000},
    "surrogate_attack": {"queries": 1000, "steps": 10, "refit": 5},
    "ti_dim": {"kernel": 3, "scales": 1},
    "with_density": {"weight": 1.0},
}

# Of the parts that recipes are made of; what a recipe sets is told above.
PARTS: Settings = {
    "APGD": {"momentum": 0.75, "rho": 0.75},  # Croce and Hein 2020
    "Averaged": {"samples": 20},
    "FoolBoth": {"k": 100, "safe": 0.1, "weight": 3.0},
    "Fragile": {"k": 100},
    "Hidden": {"weight": 3.0},
    "Rivals": {"most": 9},  # as many as there are targets in AutoAttack
    "Adam": {"steps": 300, "rate": 0.1, "last": 0.1},
    "Ascent": {"share": 1.0, "kernel": 1},
    "BoundaryWalk": {"around": 0.1, "inward": 0.03},
    "BoxLBFGS": {"weight": 5.0, "polish": 8},
    "CarliniL0": {"rate": 0.2, "share": 0.3},
    "CarliniL2": {"rate": 0.4, "last": 0.004, "weight": 4.0},
    "CarliniLinf": {"rate": 0.1, "last": 0.002, "shrink": 0.9, "first": 1.2},  # shrink: the paper's
    "DeepFool": {"classes": 10, "polish": 3},  # ten classes: its authors' code
    "ElasticDescent": {"rate": 0.1, "last": 0.002, "weight": 2.0, "pruning": 0},
    "ElasticNet": {"beta": 0.01},
    "EstimatedAscent": {"width": 0.001, "share": 0.2, "momentum": 0.9},
    "FastBoundary": {"alpha": 0.1, "eta": 1.05, "beta": 0.9, "classes": 10, "polish": 3},  # Croce
    "FastMinimum": {"prune": 10},
    "Funnel": {"wide": 5.0, "descent": 0.8, "length": 0.5, "last": 0.02},
    "HopSkipJump": {"most": 10_000, "tolerance": 0.001, "reach": 0.036},  # most: Chen et al. 2020
    "L1": {"density": 0.01},
    "Light": {"brightness": 0.1, "contrast": 0.1},
    "Noise": {"sigma": 0.1},
    "Pace": {"gamma": 0.02, "still": 0.001},
    "Penalty": {"polish": 8},
    "ResizePad": {"low": 0.9, "high": 1.0, "p": 0.5, "fill": 0.0},  # p: Xie et al. 2019
    "SaliencyPairs": {"candidates": 64, "prune": 10},
    "ShiftRotate": {"degrees": 15.0, "shift": 2.0, "scale": 0.0, "fill": 0.0},
    "SigmaZero": {"sigma": 1e-3, "tau": 0.3, "rate": 0.02, "eta": 4.0, "prune": 10},  # 2: its own
    "Spatial": {"rotation": 30.0, "translation": 3.0, "scale": 0.0, "fill": 0.0},  # Engstrom 2019
    "Tempered": {"share": 0.05},
}  # fmt: skip


def defaults(name: str) -> dict[str, Any]:
    made = inspect.signature(getattr(attacks, name)).parameters
    return {key: parameter.default for key, parameter in made.items()}


def numbers(settings: Mapping[str, Any]) -> dict[str, float]:
    """The settings that are numbers, but for seeds and yes or no."""
    kept = {k: v for k, v in settings.items() if type(v) in (int, float) and k != "seed"}
    return dict(sorted(kept.items()))


def parts() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    rooms = (foible.parts, "foible.parts."), (attacks, "foible.attacks.")
    for module in (m for room, name in rooms for m in walk_packages(room.__path__, name)):
        for name, kind in vars(import_module(module.name)).items():
            if is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.name:
                given = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
                found.setdefault(name, given)
    return found


GIVEN = {n: numbers(defaults(n)) for n in attacks.__all__ if callable(getattr(attacks, n))}


@pytest.mark.parametrize("name", [name for name, given in GIVEN.items() if given])
def test_every_number_given_by_default_is_a_papers_or_one_of_ours(name: str) -> None:
    published, ours = PUBLISHED.get(name, {}), OURS.get(name, {})
    assert GIVEN[name] == numbers({**published, **ours}) and not set(published) & set(ours)


@pytest.mark.parametrize("name", PARTS)
def test_the_numbers_of_the_parts_are_those_that_were_measured(name: str) -> None:
    given = parts()[name]
    assert {key: given[key] for key in PARTS[name]} == PARTS[name]


def test_explainers_say_what_their_maps_are() -> None:
    """Sums that must fit are checked of those alone, and no gradient is asked of the others."""
    for module in walk_packages(explain.__path__, "foible.explain."):
        import_module(module.name)
    kinds: list[Any] = [Explainer]
    for kind in kinds:  # grows while it is walked
        kinds += [k for k in kind.__subclasses__() if k.__module__.startswith("foible.explain")]
    made = {k.__name__: k for k in kinds if not inspect.isabstract(k)}
    told = {
        flag: {name for name, kind in made.items() if getattr(kind, flag) is value}
        for flag, value in (("additive", True), ("differentiable", False), ("signed", False))
    }
    assert told["additive"] == {"DeepLift", "ExactShapley", "IntegratedGradients", "KernelShap"}
    assert told["differentiable"] == {
        "DataLime", "Erasure", "ExactShapley", "KernelShap", "LeaveOneOut", "Lemna", "Lime",
        "MeaningfulPerturbation", "Occlusion", "RandomMap", "SparsifiedSmoothGrad", "TabularLime",
    }  # fmt: skip
    squares = {"SparsifiedSmoothGrad", "VarGrad"}
    assert told["signed"] == {"MaskingModel", "MeaningfulPerturbation", *squares}
    assert {made[name].verb for name in ("Saliency", "SmoothGrad", "TabularLime")} == {"push"}
    assert {made[name].verb for name in (*told["additive"], "Cam", "Lime", "Lrp")} == {"delete"}


def test_constants_that_papers_give_and_paces_that_were_measured() -> None:
    assert (apgd.DENSITY, apgd.SPARSER) == (0.2, 1.5)  # Croce and Hein 2021
    assert {
        norm: (pace.first, pace.targeted, pace.last, pace.gamma, pace.still)
        for norm, pace in fmn.PACES.items()
    } == {
        "linf": (0.5, 0.5, 0.01, 0.02, 0.001),
        "l2": (100.0, 2.0, 0.001, 0.02, 0.001),
        "l1": (30.0, 1.0, 0.002, 0.02, 0.001),
        "l0": (1000.0, 1000.0, 0.1, 0.05, 0.001),
    }


def told() -> dict[str, list[int]]:
    """The last column of the page's table of smallest changes: steps, runs or targets."""
    text = PAGE.read_text(encoding="utf-8")
    table = re.search(r"^\| recipe .* steps by default \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert table is not None
    rows = [line.strip("| \n").split(" | ") for line in table[1].splitlines()]
    return {row[0].strip("`"): sorted(map(int, re.findall(r"\d+", row[-1]))) for row in rows}


@pytest.mark.parametrize(("name", "numbers"), told().items())
def test_the_page_tells_the_steps_that_are_taken(name: str, numbers: list[int]) -> None:
    given = defaults(name)
    counts = ("steps", "searches", "iterations", "targets")
    assert sorted(given[key] for key in counts if key in given) == numbers
