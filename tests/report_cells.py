"""The cells of the made-up run of `report_fixture`: figures that a real audit might give."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from report_maps import explanations
from safetensors.numpy import save_file

EPS = [0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2]
EXPLAINERS = {
    "saliency": "Saliency",
    "smoothgrad": "SmoothGrad",
    "integrated_gradients": "Integrated gradients",
    "gradient_x_input": "Gradient x input",
}
DIRECTIONS = ["random signs", "LIME", "integrated gradients", "saliency", "SmoothGrad", "PGD"]


@dataclass
class Maker:
    """Writes cells one by one, as the runner does: tensors first, then the line."""

    folder: Path
    shape: tuple[int, ...]
    images: np.ndarray
    rng: np.random.Generator
    skip: tuple[str, ...] = ()
    planned: list[dict[str, str]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def cell(self, kind: str, name: str, model: str, value: float | None, **more: Any) -> None:
        key = hashlib.sha256(f"{kind} {name} {model}".encode()).hexdigest()[:16]
        self.planned.append({"key": key, "kind": kind, "name": name, "model": model})
        if name in self.skip or kind in self.skip:
            return
        tensors = more.pop("tensors", None)
        n = more.pop("n", 400)
        line = {
            "schema": 1,
            "key": key,
            "kind": kind,
            "name": name,
            "model": model,
            "part": {"is": name},
        }
        line |= {"n": n, "value": value, "interval": more.pop("interval", None)}
        line |= {
            "forwards": more.pop("forwards", n * 10),
            "backwards": more.pop("backwards", n * 5),
        }
        line |= {
            "status": more.pop("status", "ok"),
            "detail": more.pop("detail", {}),
            "seconds": 1.25,
        }
        assert not more
        if tensors:
            path = self.folder / "tensors" / f"{key}.safetensors"
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
        self.lines.append(line)

    def smooth(self, *size: int) -> np.ndarray:
        """Signed noise with some structure, as maps have."""
        noise = self.rng.normal(size=(*size, *self.shape))
        for axis in range(-len(self.shape) + 1, 0):
            noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 4
        return noise.astype(np.float32)


def wilson(p: float, n: int) -> list[float]:
    z = 1.96
    centre = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    return [max(0.0, centre - half), min(1.0, centre + half)]


def measure(maker: Maker, model: str, *, strong: bool, failed: bool) -> None:
    rng, n = maker.rng, 400
    clean = 0.868 if strong else 0.925
    right = rng.uniform(size=n) < clean
    clean = float(right.mean())
    labels = np.arange(n) % 10
    per_class = np.clip(rng.normal(clean, 0.06, 10), 0, 1).tolist()
    detail = {"per_class": per_class, "confidence": 0.94}
    tensors = {"scores": rng.normal(size=(n, 10)).astype(np.float32), "y": labels}
    kept = {"interval": wilson(clean, n), "detail": detail, "tensors": tensors}
    maker.cell("clean", "clean", model, clean, forwards=n, backwards=0, **kept)
    smallest = np.exp(rng.normal(np.log(0.13 if strong else 0.022), 0.5, n))
    _attacks(maker, model, right, smallest, strong)
    for norm, unit in (("linf", 1.0), ("l2", 12.0)):
        broken = np.where(right, smallest, 0.0)
        accuracy = [float((broken > e).mean()) for e in EPS]
        band = [wilson(a, n) for a in accuracy]
        noise = [clean - 0.3 * e for e in EPS]
        detail = {
            "norm": norm,
            "eps": [e * unit for e in EPS],
            "accuracy": accuracy,
            "random": noise,
        }
        detail |= {"low": [b[0] for b in band], "high": [b[1] for b in band]}
        detail["attack"] = "the smallest perturbation found: FMN, 60 steps"
        half = len(EPS) // 2
        detail["leader"] = [*["fmn"] * half, None, *[f"pgd-{norm}"] * (half - 1)]
        detail["set_by"] = {"fmn": 301, f"pgd-{norm}": 60}
        quarters = np.quantile(smallest[right], (0.25, 0.5, 0.75)) * unit
        detail["quartiles"] = [float(quarters[0]), float(quarters[1]), None]
        kept = np.where(broken > EPS[-1], np.inf, broken * unit)
        maker.cell("curve", f"curve-{norm}", model, None, detail=detail, tensors={"smallest": kept})
    _stability(maker, model, strong)
    explanations(maker, model, strong)
    _thesis(maker, model, smallest, right, strong)
    _strips(maker, model)
    _checks(maker, model, failed)


def _attacks(
    maker: Maker, model: str, right: np.ndarray, smallest: np.ndarray, strong: bool
) -> None:
    rng, n = maker.rng, len(right)
    table = [
        ("fgsm-linf", "FGSM", "linf", 0.1, 1.5, 1, False),
        ("pgd-linf", "PGD, 40 steps", "linf", 0.1, 1.0, 40, False),
        ("smoothgrad-linf", "PGD along SmoothGrad, 10 steps", "linf", 0.1, 1.15, 10, False),
        ("random-linf", "Random noise, 40 draws", "linf", 0.1, 18.0, 40, True),
        ("strongest-linf", "Strongest, the cascade", "linf", 0.1, 0.97, 30, False),
        ("square-linf", "Square, scores only", "linf", 0.1, 1.1, 200, False),
        ("pgd-l2", "PGD, 40 steps", "l2", 1.0, 8.0, 40, False),
        ("random-l2", "Random noise, 40 draws", "l2", 1.0, 150.0, 40, True),
        ("deepfool-l2", "DeepFool, smallest change", "l2", None, 8.5, 50, False),
    ]
    for name, title, norm, eps, factor, steps, control in table:
        need = smallest * factor * np.exp(rng.normal(0, 0.12, n))
        success = ~right | (need <= (eps or np.inf))
        distance = np.where(right, np.minimum(need, eps or np.inf), 0.0)
        accuracy = float(1 - success.mean())
        wrong, fooled = int((~right).sum()), int((success & right).sum())
        rate = fooled / max(n - wrong, 1)
        detail = {
            "norm": norm,
            "eps": eps,
            "stop": "success" if _stops(name) or (strong and eps) else "never",
            "steps": steps,
        }
        detail |= {"title": title, "success_rate": rate, "success_n": n - wrong, "control": control}
        detail |= {"success_interval": wilson(rate, n - wrong)}
        detail["median_distance"] = float(np.median(distance[success & right])) if fooled else None
        detail["statuses"] = {"wrong": wrong, "fooled": fooled, "survived": n - wrong - fooled}
        tensors = {
            "x": maker.images[:16],
            "success": success,
            "distance": distance,
            "label": np.arange(n) % 10,
        }
        # What is harder to break takes more calls; a survivor takes all of them.
        spent = np.where(success, np.clip(need / (eps or 1.0), 0.02, 1.0), 1.0) * (2 * steps)
        tensors["calls"] = np.where(right, np.ceil(spent) + 2, 1).astype(np.int64)
        if name == "strongest-linf":
            detail |= _stages(n - wrong, fooled)
        cost = {"forwards": n * (steps + 1), "backwards": 0 if control else n * steps}
        kept = {"interval": wilson(accuracy, n), "detail": detail, "tensors": tensors}
        maker.cell("attack", name, model, accuracy, **cost, **kept)


def _stops(name: str) -> bool:
    return name.startswith(("strongest", "square"))


def _stages(tried: int, broke: int) -> dict[str, Any]:
    """Two stages that broke all but one of what fell, and that one."""
    first = {"name": "first steps", "tried": tried, "broke": broke - 1}
    second = {"name": "nearest class", "tried": tried - broke + 1, "broke": 1}
    for stage, calls in ((first, 6), (second, 30)):
        stage |= {"forwards": stage["tried"] * calls, "backwards": stage["tried"] * calls}
    left = tried - broke
    return {"stages": [first, second], "advice": f"{left} samples survive: more calls break more"}


def _stability(maker: Maker, model: str, strong: bool) -> None:
    for place, (name, title) in enumerate(EXPLAINERS.items()):
        attack, noise = (0.55 if strong else 0.22) + 0.05 * place, 0.86 + 0.02 * place
        residual = {"median": 0.004, "worst": 0.021} if name == "integrated_gradients" else None
        detail = {"explainer": name, "title": title, "k": 100, "eps": 0.1, "residual": residual}
        detail["topk"] = {
            "attack": [attack, attack - 0.03, attack + 0.03],
            "noise": [noise, noise - 0.02, noise + 0.02],
        }
        detail["rank"] = {
            "attack": [attack - 0.1, attack - 0.13, attack - 0.07],
            "noise": [noise, noise - 0.01, noise + 0.01],
        }
        maker.cell("stability", f"stability-{name}", model, attack, detail=detail)


def _thesis(
    maker: Maker, model: str, smallest: np.ndarray, right: np.ndarray, strong: bool
) -> None:
    rng, n = maker.rng, len(right)
    steps = [0.86, 0.84, 0.83, 0.79, 0.55, 0.26] if strong else [0.91, 0.71, 0.59, 0.12, 0.05, 0.01]
    rows = [
        dict(direction=d, accuracy=a, low=wilson(a, n)[0], high=wilson(a, n)[1])
        for d, a in zip(DIRECTIONS, steps, strict=True)
    ]
    k = [0, 8, 16, 32, 64, 128, 256]
    speed = {
        "random": 900,
        "LIME": 260,
        "saliency": 240,
        "SmoothGrad": 190,
        "integrated gradients": 90,
    }
    top = float(right.mean())
    fall = [
        {"direction": d, "accuracy": [0.1 + (top - 0.1) * float(np.exp(-i / s)) for i in k]}
        for d, s in speed.items()
    ]
    detail = {
        "verb": "push",
        "eps": 0.15 if strong else 0.05,
        "rows": rows,
        "delete": {"k": k, "rows": fall},
    }
    maker.cell("thesis", "thesis-follow", model, None, detail=detail)
    predicted = smallest * np.exp(rng.normal(-0.1, 0.22 if strong else 0.1, n))
    measured = np.where(right, smallest, 0.0)
    measured[3] = np.inf
    detail = {"confidence": 0.68 if strong else 0.89, "n": n}
    maker.cell("thesis", "thesis-distance", model, 0.84 if strong else 0.96, detail=detail,
               tensors={"predicted": predicted, "measured": measured})  # fmt: skip
    size = 0.2 if strong else 0.06
    t = [round(size * i / 8, 4) for i in range(9)]
    true_confidence = [1 / (1 + float(np.exp((v - 0.52 * size) / size * 9))) for v in t]
    label = [9 if c > 0.5 else 7 for c in true_confidence]
    frame_map = maker.smooth(1)
    frames = np.clip(
        maker.images[0] - np.array(t).reshape(-1, *[1] * len(maker.shape)) * np.sign(frame_map),
        0,
        1,
    )
    detail = {
        "t": t,
        "label": label,
        "confidence": [max(c, 1 - c) for c in true_confidence],
        "true": 9,
    }
    detail |= {
        "true_confidence": true_confidence,
        "predicted_crossing": 0.48 * size,
        "measured_crossing": 0.52 * size,
    }
    maker.cell("thesis", "thesis-frames", model, None, n=1, detail=detail,
               tensors={"frames": frames.astype(np.float32), "map": frame_map})  # fmt: skip
    target = np.zeros((1, *maker.shape), np.float32)
    target[..., : maker.shape[-1] // 2] = 1.0
    clean_map = maker.smooth(1)
    detail = {"label": 2, "confidence_before": 0.97, "confidence_after": 0.95, "eps": 0.1}
    detail |= {"similarity_before": -0.03, "similarity_after": 0.41 if strong else 0.78}
    bent = maker.images[1:2] + 0.05 * maker.smooth(1)
    tensors = {
        "clean": maker.images[1:2],
        "adversarial": np.clip(bent, 0, 1),
        "clean_map": clean_map,
    }
    tensors |= {"bent_map": 0.6 * clean_map + (target - 0.5), "target_map": target}
    maker.cell("thesis", "thesis-bent", model, None, n=1, detail=detail, tensors=tensors)


def _strips(maker: Maker, model: str) -> None:
    clean = maker.images[10:18]
    clean_map = maker.smooth(8) * (0.3 + clean)
    adversarial = np.clip(clean + 0.1 * np.sign(maker.smooth(8)), 0, 1)
    rows = []
    for i in range(8):
        fooled = (i + 9) % 10 if i % 3 else i
        rows.append({"id": 10 + i, "true": i, "label_clean": i, "confidence_clean": 0.99 - 0.03 * i,
                     "label_adv": fooled, "confidence_adv": 0.9 - 0.05 * i})  # fmt: skip
    tensors = {"clean": clean, "adversarial": adversarial, "clean_map": clean_map}
    tensors["adversarial_map"] = clean_map * 0.4 + maker.smooth(8) * 0.6
    detail = {"attack": "PGD, 40 steps", "eps": 0.1, "explainer": "SmoothGrad", "rows": rows}
    maker.cell("strips", "strips", model, None, n=8, detail=detail, tensors=tensors)


def _checks(maker: Maker, model: str, failed: bool) -> None:
    steps, sizes = "More steps change little", "Larger eps at least as strong"
    table = [
        ("check-eval-mode", "Model in evaluation mode", "eval", "eval", ["clean"]),
        ("check-logits", "Logits, not probabilities", "-41.2 to 38.7", "not all 1", ["clean"]),
        ("check-determinism", "Same input, same output", "0", "difference 0", ["clean"]),
        ("check-gradients", "Gradients not zero", "0.2 % zero", "under 10 % zero", ["pgd-linf"]),
        ("check-iterative", "Iterative beats one step", "0.01", "<= 0.10", ["pgd-linf"]),
        ("check-larger-eps", sizes, "never rises", "never rises", ["curve-linf"]),
        ("check-huge-eps", "Huge eps reaches zero", "0.0 % at eps 1", "0 %", ["pgd-linf"]),
        ("check-more-steps", steps, "0.3 points from 40 to 80", "under 1 point", ["pgd-linf"]),
        ("check-reverify", "Success verified again", "400 of 400", "all", ["pgd-linf", "pgd-l2"]),
    ]
    for name, title, measured, expected, spoils in table:
        bad = failed and name == "check-more-steps"
        detail = {"title": title, "measured": measured, "expected": expected, "spoils": spoils}
        if bad:
            detail |= {"measured": "4.1 points from 40 to 80"}
            detail |= {"advice": "Raise the steps to 200: the attack has not converged."}
        status = "failed" if bad else "ok"
        value = 0.041 if bad else None
        maker.cell("check", name, model, value, status=status, detail=detail)
    detail = {"title": "Black-box no stronger than white-box", "measured": "", "expected": ""}
    detail |= {"advice": "", "spoils": [], "reason": "no black-box attack in this plan"}
    maker.cell("check", "check-black-box", model, None, status="not measured", detail=detail)
