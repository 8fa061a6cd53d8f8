"""Detectors in four ways: the attack they know, a smaller one, others, and one that knows them.

python benchmarks/detectors.py [--only pixels,squeezed] [--samples 300] [--threads 1]
"""

from __future__ import annotations

import numpy as np
import torch
from common import Section, command_line, finish, header, percent, setting
from detecting import BAR, THREAT, Ground, Row, area, caught, four_ways, ground, merged
from detecting_maps import MAPS, OTHERS
from torch import Tensor

import foible
from foible import attacks, detect
from foible.attacks import Result
from foible.detect import Detector, Watch, Worth
from foible.detect.base import features_of, part_of
from foible.parts.statistics import auc

# ---------------------------------------------------------------- bars, a row of the survey each


def t1(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.bar("t1-same", "AUC on the attack that it knows", area(worth, "as-fitted"), ">=", 0.99)
    table.add("t1-cliff", "caught at 5 %, a quarter of eps (<= 0.6 expected)",
              caught(worth, "as-fitted-small"), "none", "reported")  # fmt: skip
    last = worth.way("adaptive")
    assert last.fooled is not None and last.caught[0] is not None
    unseen = 100 * last.fooled * (1 - last.caught[0])
    table.bar("t1-adaptive", "% of images fooled unseen at 5 %", unseen, ">=", 90)


def n3(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.add("n3-detector", "AUC on PGD in full", area(worth, "as-fitted"), "none", "reported")


def t4(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.bar("t4-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.75)
    table.bar("t4-cw", "AUC, C&W-L2", ground.area(worth, watch, ground.carlini), ">=", 0.80)
    known, made = part_of(watch.state, "feature"), ground.made[0].result
    full = made.x[made.success & made.attacked]
    good, bad, least = (
        features_of(watch.detector.feature, ground.net, at, known)
        for at in (ground.judged[0], full, ground.carlini)
    )
    for column, name in enumerate(("density", "uncertainty")):
        for attack, worse in (("PGD", bad), ("C&W-L2", least)):
            values = torch.cat([good[:, column], worse[:, column]]).numpy()
            alone = auc(values, np.arange(len(values)) >= len(good))
            row = f"t4-{name}-{'pgd' if attack == 'PGD' else 'cw'}"
            table.bar(row, f"AUC of the {name} alone, {attack}: right way round", alone, ">=", 0.5)


def t5(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.bar("t5-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.95)
    table.bar("t5-fgsm", "AUC, FGSM", area(worth, "fgsm"), ">=", 0.90)
    table.bar("t5-cw", "AUC, C&W-L2", ground.area(worth, watch, ground.carlini), ">=", 0.70)
    last = worth.way("adaptive")
    assert last.fooled is not None and last.caught[0] is not None
    unseen = 100 * last.fooled * (1 - last.caught[0])
    table.add("t5-bpda", "% fooled unseen, straight through", unseen, "none", "reported")


def t3(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    """The static detector, and what dynamic training does for it."""
    table.bar("t3-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.97)
    table.bar("t3-fgsm", "AUC, FGSM", area(worth, "fgsm"), ">=", 0.95)
    table.bar("t3-deepfool", "AUC, DeepFool", area(worth, "deepfool-l2"), ">=", 0.75)
    table.bar("t3-cw", "AUC, C&W-L2", ground.area(worth, watch, ground.carlini), ">=", 0.75)
    static, fell = seen(ground, watch, None), seen(ground, watch, 0.5)
    what = f"points of TPR that the dynamic adversary takes, s = 0.5 ({static:.0f} to {fell:.0f} %)"
    table.bar("t3-dynamic", what, static - fell, ">=", 40)
    taught = ground.fit(detect.subnetwork(dynamic=20))
    back = seen(ground, taught, 0.5)
    what = f"share of the fall that dynamic training brings back (to {back:.0f} %)"
    table.bar("t3-taught", what, (back - fell) / max(static - fell, 1e-9), ">=", 0.5)
    clean = taught.score(ground.net, ground.judged[0]) > taught.threshold().value
    table.add("t3-taught-alarms", "its false alarms at 5 %", percent(float(clean.double().mean())),
              "none", "reported")  # fmt: skip
    few = tuple(part[: ground.knowing] for part in ground.judged)
    found = detect.adaptive(taught, THREAT)(ground.net, *few)
    unseen = percent(float(found.success[found.attacked].double().mean()))
    table.add("t3-taught-adaptive", "its images fooled unseen by `adaptive`", unseen, "none",
              "reported")  # fmt: skip


def seen(ground: Ground, watch: Watch, share: float | None) -> float:
    """% flagged at 5 % of what the dynamic adversary, or PGD as fitted, fools the model with."""
    result = ground.made[0].result
    if share is not None:
        result = detect.dynamic_adversary(watch, THREAT, share, 10)(ground.net, *ground.judged)
    bad = result.x[result.success & result.attacked]
    flagged = watch.score(ground.net, bad) > watch.threshold().value
    return 100 * float(flagged.double().mean())


def t7(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    """The paper's count: detected, or classified right behind the reformer."""
    x, y = (part[:100] for part in ground.judged)
    result = attacks.cw(foible.L2())(ground.net, x, y, seed=0)
    model, level = detect.reformed(watch, ground.net), watch.threshold(0.05).value
    with torch.no_grad():
        right = model(result.x).argmax(1) == y
        clean = model(ground.judged[0]).argmax(1) == ground.judged[1]
    flagged = watch.score(ground.net, result.x) > level
    table.bar("t7-cw", "% of 100 with C&W-L2, k = 0, detected or classified right",
              100 * float((right | flagged).double().mean()), ">=", 70)  # fmt: skip
    table.bar("t7-rejects", "% of clean images refused", 100 * worth.false_alarms[0], "<=", 5)
    table.add("t7-clean", "clean % behind the reformer", 100 * float(clean.double().mean()),
              "none", "reported")  # fmt: skip
    last = worth.way("adaptive")
    assert last.fooled is not None and last.caught[0] is not None
    unseen = 100 * last.fooled * (1 - last.caught[0])
    table.bar("t7-adaptive", "% fooled unseen through the autoencoders", unseen, ">=", 80)


def reference(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    """Mahalanobis distance and local dimension: no row of the survey, no bar of their own."""
    name = worth.detector.replace("_", "-")
    carlini = ground.area(worth, watch, ground.carlini)
    table.add(f"{name}-cw", "AUC, C&W-L2", carlini, "none", "reported")


def outliers(ground: Ground) -> list[Section]:
    """T2's other half: a net with one class more."""
    table = Section(
        "outlier_class", "Outlier class (T2)", BAR, "Trained on 15,000 training images."
    )
    x, y = foible.zoo.fashion_mnist("train")
    net, attack = ground.net, attacks.pgd(THREAT, 10)
    made = detect.outlier_class(net, (x[:15_000], y[:15_000]), attack, 5)
    x, y = ground.judged
    with torch.no_grad():
        before, after = net(x).argmax(1), made(x).argmax(1)
    points = 100 * float((before == y).double().mean() - (after == y).double().mean())
    table.bar("t2-clean", "clean points lost", points, "<=", 1)
    alarms = 100 * float((after == 10).double().mean())
    table.bar("t2-alarms", "% of clean images in the class", alarms, "<=", 2)
    bad = attack(net, x, y, seed=1)
    with torch.no_grad():
        hits = made(bad.x[bad.success & bad.attacked]).argmax(1) == 10
    table.bar("t2-outlier", "share of PGD-10 on the old net in the class",
              float(hits.double().mean()), ">=", 0.95)  # fmt: skip
    few = x[: ground.knowing], y[: ground.knowing]
    detector = Detector("outlier", detect.LastClass(), detect.Largest(normed=False))
    watch = detector.fit(made, ground.fitted)
    found = detect.adaptive(watch, THREAT)(made, *few)
    unseen = percent(float(found.success[found.attacked].double().mean()))
    table.add("t2-adaptive", "fooled below the level of 5 %, attack on the new net", unseen,
              "none", "reported")  # fmt: skip
    return [table]


def samples(ground: Ground) -> list[Section]:
    """T2: the power of the kernel test, 100 against 100, ten draws of each."""
    note = (
        "100 images against 100, 500 permutations. The width of the kernel is the median distance, "
        "about 11; 2 is the best of six on other images."
    )
    table = Section("mmd", "Two-sample test (T2)", BAR, note)
    x, y = ground.judged
    large = attacks.fgsm(foible.Linf(0.275))(ground.net, x, y, seed=0)
    fine = attacks.ddn(foible.L2())(ground.net, x, y, seed=0)
    kinds = {
        "clean": x, "pgd": fooling(ground.made[0].result), "fgsm": fooling(ground.made[2].result),
        "fgsm-paper": fooling(large), "ddn": fooling(fine),
    }  # fmt: skip
    told = {"fgsm-paper": "FGSM at the paper's 0.275", "ddn": "DDN in L2", "clean": "clean images"}
    for kind, suspect in kinds.items():
        for width, after in ((None, ""), (2.0, "-narrow")):
            low = sum(one_test(ground.fitted[0], suspect, seed, width) < 0.05 for seed in range(10))
            what = f"{told.get(kind, f'{kind.upper()} at 0.1')}: draws of 10 with p < 0.05"
            if after:
                table.add(f"t2-mmd-{kind}{after}", f"{what}, width 2", low, "none", "reported")
            elif kind == "clean":
                table.bar("t2-mmd-clean", what, low, "<=", 1)
            elif kind in ("pgd", "fgsm"):
                table.bar(f"t2-mmd-{kind}", what, low, ">=", 9)
            else:
                table.add(f"t2-mmd-{kind}", what, low, "none", "reported")
    return [table]


def fooling(result: Result) -> Tensor:
    return result.x[result.success & result.attacked]


def one_test(clean: Tensor, suspect: Tensor, seed: int, width: float | None) -> float:
    """p of 100 clean images against 100 others, drawn by the seed."""
    rng = torch.Generator().manual_seed(seed)
    one = clean[torch.randperm(len(clean), generator=rng)[:100]]
    two = suspect[torch.randperm(len(suspect), generator=rng)[:100]]
    return detect.mmd_test(one, two, 500, width, seed).p


ROWS = merged(
    {
        "pixels": Row("Binary classifier of the input (T1)", detect.pixels, t1),
        "squeezed": Row("Feature squeezing's detector (N3)", detect.squeezed, n3),
        "kde_uncertainty": Row(
            "Kernel density and uncertainty (T4)", detect.kde_uncertainty, t4,
            "The net has no dropout: units of its last hidden layer are dropped.", 20,
        ),
        "subnetwork": Row("Detector subnetwork (T3)", detect.subnetwork, t3),
        "magnet": Row("MagNet (T7)", detect.magnet, t7),
        "safetynet": Row("SafetyNet (T5)", detect.safetynet, t5),
        "mahalanobis": Row("Mahalanobis distance", detect.mahalanobis, reference),
        "local_dimension": Row(
            "Local intrinsic dimensionality", detect.local_dimension, reference
        ),
    },
    MAPS,
)  # fmt: skip
ALONE = {"outlier_class": outliers, "mmd": samples, **OTHERS}
ORDER = [part for name in ROWS for part in (name, f"{name}-bars")] + list(ALONE)


def main() -> None:
    args = command_line(__doc__ or "", "detectors", [*ROWS, *ALONE], 1)
    on = ground(setting(args))
    tables: list[Section] = []
    for name in args.chosen:
        print(name, flush=True)
        tables += four_ways(on, name, ROWS[name]) if name in ROWS else ALONE[name](on)
    intro = (
        f"The bundled standard model, Linf 0.1. Fitted to {len(on.fitted[0])} test images that are "
        "not in the sample, of which six tenths are learnt from and the rest sets the levels; "
        f"judged on {on.few} images of the bundled sample, clean, and on those of their "
        f"adversarials that truly fool the model, and by an adaptive attack on {on.knowing}. "
        "Every attack runs in full. The plan asks for 1,000: `--samples 1000` takes as many."
    )
    finish(args, header("Detectors", ["scikit-learn"], intro), tables, ORDER)


if __name__ == "__main__":
    main()
