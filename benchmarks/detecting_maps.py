"""Sections of benchmarks/detectors.py: detectors by explanations, and the one of tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from common import Section
from detecting import (
    BAR,
    EPS,
    THREAT,
    Ground,
    Once,
    Row,
    area,
    caught,
    cpu,
)
from torch import Tensor

import foible
from foible import detect
from foible.attacks import Result
from foible.core.rows import Rows
from foible.detect import Watch, Worth
from foible.detect.base import features_of, part_of
from foible.detect.features import LeavingOut
from foible.explain.removal import filling
from foible.parts.statistics import auc


@dataclass(frozen=True)
class Fewer(Ground):
    """Fewer images to fit on: what an input costs is hundreds of forwards, or seconds."""

    fits: int = 600
    mixed: bool = False

    @cached_property
    def fitted(self) -> tuple[Tensor, Tensor]:
        x, y = super().fitted
        return x[: self.fits], y[: self.fits]

    @cached_property
    def attack(self) -> Once:
        return Once(Mixed() if self.mixed else super().attack)  # type: ignore[arg-type]


class Mixed:
    """FGSM, PGD and C&W, a third of the images each."""

    def __call__(self, model: object, x: Tensor, y: Tensor, *, seed: int = 0) -> Result:
        made = (foible.attacks.fgsm(THREAT), foible.attacks.pgd(THREAT, 40), carlini())
        parts = [attack(model, x[i::3], y[i::3], seed=seed) for i, attack in enumerate(made)]
        names = ("x", "success", "distance", "forwards", "backwards", "label", "clean_label")
        joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
        return replace(parts[0], **joined, status=[s for p in parts for s in p.status])


def carlini() -> foible.attacks.Attack:
    return foible.attacks.cw(foible.L2())


def against(worth_clean: Tensor, bad: Tensor) -> float:
    """AUC of the scores of adversarials against those of clean images."""
    values = torch.cat([worth_clean, bad]).double().numpy()
    found = auc(values, np.arange(len(values)) >= len(worth_clean))
    assert found is not None
    return found


def fooling(ground: Ground, attack: object, few: int = 100) -> Tensor:
    """What an attack makes of some of the judged images, where it truly fools."""
    x, y = (part[:few] for part in ground.judged)
    result = attack(ground.net, x, y, seed=0)  # type: ignore[operator]
    return result.x[result.success & result.attacked]


# ---------------------------------------------------------------- bars, a row of the survey each


def t8(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.bar("t8-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.97)
    small = fooling(ground, foible.attacks.pgd(foible.Linf(0.03), 40), len(ground.judged[0]))
    table.bar("t8-small", "AUC, PGD, eps 0.03", ground.area(worth, watch, small), ">=", 0.80)
    alone = ground.fit(detect.saliency_detector(image=False))
    clean = alone.score(ground.net, ground.judged[0])
    made = fooling(ground, foible.attacks.pgd(THREAT, 40), len(ground.judged[0]))
    table.bar("t8-alone", "AUC, the saliency alone",
              against(clean, alone.score(ground.net, made)), ">=", 0.85)  # fmt: skip
    last = worth.way("adaptive").caught[0]
    assert last is not None
    fall = 100 * (caught(worth, "as-fitted") - last)
    table.bar("t8-joint", "points that the joint attack takes at 5 %", fall, ">=", 40)


def t9(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    made, net = ground.carlini, ground.net
    good, bad = (features_of(LeavingOut(), net, x, {})[:, 0] for x in (ground.judged[0], made))
    table.bar("t9-single", "AUC of the probability's spread alone, C&W-L2", against(good, bad),
              ">=", 0.85)  # fmt: skip
    other = detect.ml_loo().fit(net, ground.fitted, attack=carlini())
    clean = other.score(net, ground.judged[0])
    table.bar("t9-cw", "AUC, C&W-L2, fitted to it", against(clean, other.score(net, made)),
              ">=", 0.95)  # fmt: skip
    table.bar("t9-pgd", "AUC, PGD, eps 0.1, fitted to it", area(worth, "as-fitted"), ">=", 0.95)
    pgd = fooling(ground, foible.attacks.pgd(THREAT, 40), 50)
    table.add("t9-transfer", "AUC, PGD, fitted to C&W-L2", against(clean, other.score(net, pgd)),
              "none", "reported")  # fmt: skip


def costs(ground: Ground) -> list[Section]:
    """What ML-LOO and X-Ensemble cost over their bare forwards and backwards."""
    told = "CPU time, the median of nine rounds, each side after the other; fitted to 60 images."
    table = Section("explanation_costs", "What they cost (T9, T11)", BAR, told)
    ground = own(80, 0, 60, False)
    net, x = ground.net, ground.judged[0][:64]
    watch = ground.fit(detect.ml_loo())
    ratio = _ratio(lambda: watch.score(net, x[:16]), lambda: _bare_leaving_out(ground, x[:16]))
    table.bar("t9-cost", "ML-LOO over its bare forwards, 16 images", ratio, "<=", 1.15)
    guarded = detect.guard(net, watch)
    alone = 4 * cpu(lambda: [guarded(one) for one in x[:16].split(1)])
    what = "a guard with ML-LOO: 64 single calls over one of 64; one input fills whole forwards"
    table.bar("t9-guard", what, alone / cpu(lambda: guarded(x)), ">=", 8)
    made = ground.fit(detect.x_ensemble(epochs=1))
    looks = made.detector.feature.looks
    ratio = _ratio(lambda: made.score(net, x), lambda: _bare_gradients(ground, x, looks))
    what = f"X-Ensemble over {looks} bare forwards and backwards, 64 images"
    table.bar("t11-cost", what, ratio, "<=", 1.15)
    return [table]


def _ratio(ours: Callable[[], object], bare: Callable[[], object]) -> float:
    return float(np.median([cpu(ours) / cpu(bare) for _ in range(9)]))


def _bare_leaving_out(ground: Ground, x: Tensor) -> None:
    chunk = foible.wrap(ground.net).chunk(x)
    with torch.no_grad():
        for one in x:
            points = one.flatten().repeat(784, 1).fill_diagonal_(0)
            for part in points.view(-1, 1, 28, 28).split(chunk):
                ground.net(part)


def t10(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    net, state = ground.net, part_of(watch.state, "feature")
    x = ground.judged[0]
    found = features_of(watch.detector.feature, net, x, state)
    with torch.no_grad():
        mean = state["weight"] @ state["mean"] + net[-1].bias  # type: ignore[index]
        apart = float((found.sum(2) - (net(x) - mean)).abs().max())
    table.bar("t10-exact", "largest |sum over units - (z - E z)|", apart, "<=", 1e-4)
    table.bar("t10-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.95)
    table.bar("t10-cw", "AUC, C&W-L2", ground.area(worth, watch, ground.carlini), ">=", 0.85)
    attacks = {
        "FGSM": foible.attacks.fgsm(THREAT), "PGD": foible.attacks.pgd(THREAT, 40),
        "DDN": foible.attacks.ddn(foible.L2()), "DeepFool": foible.attacks.deepfool(foible.L2()),
    }  # fmt: skip
    learnt = {}
    for name, attack in attacks.items():
        result = attack(net, *(part[:200] for part in ground.fitted), seed=0)
        learnt[name] = result.x[result.success & result.attacked]
    areas = []
    for name, attack in attacks.items():
        rest = torch.cat([made for other, made in learnt.items() if other != name])
        held = detect.shap_signatures().fit(net, ground.fitted, adversarial=rest)
        scores = held.score(net, fooling(ground, attack))
        areas.append(against(held.score(net, x), scores))
    told = ", ".join(f"{name} {value:.3f}" for name, value in zip(attacks, areas, strict=True))
    table.bar("t10-unknown", f"mean AUC, one attack left out of the fit at a time ({told})",
              float(np.mean(areas)), ">=", 0.85)  # fmt: skip


def t11(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    net, (x, y) = ground.net, ground.judged
    known, head = part_of(watch.state, "head"), watch.detector.head
    assert isinstance(head, detect.Panel)
    made = ground.made[0].result
    chosen = made.success & made.attacked
    odds = [
        head.odds(features_of(watch.detector.feature, net, at, {}), known)
        for at in (x, made.x[chosen])
    ]
    members = [against(odds[0][:, i], odds[1][:, i]) for i in range(head.members)]
    whole = area(worth, "as-fitted")
    table.bar("t11-pgd", "AUC, PGD, eps 0.1", whole, ">=", 0.95)
    told = ", ".join(f"{value:.3f}" for value in members)
    table.bar("t11-best", f"AUC less that of the best member (saliency, IG, guided: {told})",
              whole - max(members), ">=", -0.005)  # fmt: skip
    table.bar("t11-unknown", "AUC, DeepFool, not fitted to", area(worth, "deepfool-l2"), ">=", 0.8)
    recovered = {}
    for name, bad in (("PGD", made), ("DeepFool", ground.made[-1].result)):
        fools = bad.success & bad.attacked
        found = detect.rectify(watch, net, bad.x[fools])
        recovered[name] = float((found.label == y[fools])[found.flagged].double().mean())
    what = "% of flagged PGD adversarials, eps 0.1, whose label is recovered (0 untouched)"
    table.bar("t11-rectified", what, 100 * recovered["PGD"], ">=", 40)
    table.add("t11-rectified-deepfool", "the same, DeepFool", 100 * recovered["DeepFool"], "none",
              "reported")  # fmt: skip


def _bare_gradients(ground: Ground, x: Tensor, looks: int) -> None:
    chunk = foible.wrap(ground.net).chunk(x)
    for part in x.repeat(looks, 1, 1, 1).split(chunk):
        leaf = part.clone().requires_grad_()
        torch.autograd.grad(ground.net(leaf).amax(1).sum(), leaf)


def t13(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    net, (x, y) = ground.net, ground.judged
    table.bar("t13-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.80)
    explainer = watch.detector.feature.explainers[0]  # type: ignore[attr-defined]
    with torch.no_grad():
        seen = net(x).argmax(1)
    maps = explainer(net, x)
    before, after = (_probability(net, at, seen) for at in (x, _deleted(x, maps)))
    table.bar("t13-deletion", "% of clean images whose probability falls to a fifth",
              100 * float((after <= 0.2 * before).double().mean()), ">=", 80)  # fmt: skip
    table.bar("t13-area", "median area of a mask", float(maps.flatten(1).mean(1).median()),
              "<=", 0.4)  # fmt: skip
    made = ground.made[0].result
    fools = made.success & made.attacked
    bad, labels = made.x[fools], y[fools]
    masks = explainer(net, bad)
    order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(0))
    for row, what, used, sign, limit in (
        ("t13-recovered", "masked", masks, ">=", 30), ("t13-random", "another's mask",
                                                       masks[order], "<=", 5),
    ):  # fmt: skip
        with torch.no_grad():
            hits = net(_deleted(bad, used)).argmax(1) == labels
        rate = 100 * float(hits.double().mean())
        table.bar(row, f"% of adversarials whose label is recovered, {what}", rate, sign, limit)


def _deleted(x: Tensor, maps: Tensor) -> Tensor:
    index = torch.arange(len(x))
    return torch.lerp(x, filling("blur", Rows(index, index, x, index)).expand_as(x), maps)


def _probability(net: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).softmax(1).gather(1, y[:, None]).squeeze(1)


def s13(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.bar("s13-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.75)
    last = worth.way("adaptive")
    table.add("s13-adaptive", f"caught at 5 % by the adaptive attack, eps {EPS}", last.caught[0],
              "none", "reported")  # fmt: skip


def t12(ground: Ground) -> list[Section]:
    """The detector of tables: a synthetic one, and scikit-learn's of breast cancer."""
    from sklearn.datasets import load_breast_cancer, make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import f1_score

    note = (
        "A forest of ten trees; half of each table is fitted to, the other half's evasion-prone "
        "rows are moved against the first fit. Synthetic: 4,000 rows, 20 features, clusters that "
        "lie apart; settings were chosen on another draw of it."
    )
    table = Section("surrogate_detector", "Local surrogates on tables (T12)", BAR, note)
    made = make_classification(4000, 20, n_informative=10, n_redundant=0, n_clusters_per_class=2,
                               class_sep=2.5, flip_y=0, random_state=1)  # fmt: skip
    cells, benign = load_breast_cancer(return_X_y=True)
    for name, (x, y) in {"t12": made, "t12-cancer": (cells, 1 - benign)}.items():
        x = (x - x.min(0)) / (x.max(0) - x.min(0))
        order = np.random.default_rng(0).permutation(len(x))
        first, rest = np.array_split(order, 2)
        maker = detect.surrogate_detector(share=0.3, ratio=0.5)
        forest = RandomForestClassifier(10, min_samples_leaf=5, random_state=0)
        found = maker.fit(forest, x[first], y[first])
        moved = maker.evade(found.old, x[rest], y[rest], seed=1)
        old, new = found.recall(moved.x)
        control = found.recall(moved.random)[0]
        before, after = (f1_score(y[rest], m.predict(x[rest])) for m in (found.old, found.new))
        rows = (
            ("old", f"recall of the first fit, {len(moved.x)} moved rows", old, "<=", 0.6),
            ("new", "recall of the second fit", new, ">=", 0.85),
            ("f1", f"F1 that the second fit loses of {before:.3f}", before - after, "<=", 0.03),
            ("random", "points by which moves evade more than random ones",
             100 * (control - old), ">=", 20),
        )  # fmt: skip
        for row, what, value, sign, limit in rows:
            if name == "t12":
                table.bar(f"{name}-{row}", what, float(value), sign, limit)
            else:
                table.add(f"{name}-{row}", f"breast cancer: {what}", float(value), "none",
                          "reported")  # fmt: skip
    return [table]


def note(fits: int, few: int, knowing: int, more: str = "") -> str:
    return f"Fitted to {fits} images and judged on {few}, the adaptive attack on {knowing}.{more}"


def row(title: str, make: object, bars: object, sizes: tuple[int, int, int], **more: object) -> Row:
    mixed = bool(more.get("mixed", False))
    told = " Fitted to FGSM, PGD and C&W, a third each." if mixed else ""
    told += str(more.get("told", ""))
    fits, few, knowing = sizes
    on = own(few, knowing, fits, mixed)
    return Row(title, make, bars, note(*sizes, told), knowing, on)  # type: ignore[arg-type]


@cache
def own(few: int, knowing: int, fits: int, mixed: bool) -> Fewer:
    return Fewer(few, knowing, fits, mixed)


GREW = " With fewer images to fit on the AUC on PGD missed its bar; the number was raised then."
SEEN = " Saliency was chosen among seven explainers on images that are judged here."
MAPS = {
    "saliency_detector": row("The input and its saliency (T8)", detect.saliency_detector, t8,
                             (1200, 120, 30), told=GREW),
    "ml_loo": row("ML-LOO (T9)", detect.ml_loo, t9, (150, 50, 10)),
    "shap_signatures": row("SHAP signatures (T10)", detect.shap_signatures, t10, (500, 120, 30)),
    "x_ensemble": row("X-Ensemble (T11)", detect.x_ensemble, t11, (1500, 80, 20), mixed=True,
                      told=GREW),
    "mask_detector": row("Masks (T13)", detect.mask_detector, t13, (850, 80, 0), told=GREW),
    "class_template": row("A class's template (S13)", detect.class_template, s13, (500, 120, 30),
                          told=SEEN),
}  # fmt: skip
OTHERS = {"surrogate_detector": t12, "explanation_costs": costs}
