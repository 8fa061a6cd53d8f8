"""Detectors in four ways: the attack they know, a smaller one, others, and one that knows them.

python benchmarks/detectors.py [--only pixels,squeezed] [--samples 300] [--threads 1]
"""

from __future__ import annotations

import numpy as np
import torch
from common import Section, command_line, finish, header, setting
from detecting import Ground, Row, area, caught, four_ways, ground, merged

from foible import detect
from foible.detect import Watch, Worth
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
    known, x = part_of(watch.state, "feature"), ground.judged[0]
    made = ground.made[0].result
    bad = made.x[made.success & made.attacked]
    good, worse = (features_of(watch.detector.feature, ground.net, at, known) for at in (x, bad))
    for column, name in enumerate(("density", "uncertainty")):
        values = torch.cat([good[:, column], worse[:, column]]).numpy()
        alone = auc(values, np.arange(len(values)) >= len(good))
        table.bar(f"t4-{name}", f"AUC of the {name} alone, PGD", alone, ">=", 0.5)


def t5(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    table.bar("t5-pgd", "AUC, PGD, eps 0.1", area(worth, "as-fitted"), ">=", 0.95)
    table.bar("t5-fgsm", "AUC, FGSM", area(worth, "fgsm"), ">=", 0.90)
    table.bar("t5-cw", "AUC, C&W-L2", ground.area(worth, watch, ground.carlini), ">=", 0.70)
    last = worth.way("adaptive")
    assert last.fooled is not None and last.caught[0] is not None
    unseen = 100 * last.fooled * (1 - last.caught[0])
    table.add("t5-bpda", "% fooled unseen, straight through", unseen, "none", "reported")


def reference(ground: Ground, worth: Worth, watch: Watch, table: Section) -> None:
    """Mahalanobis distance and local dimension: no row of the survey, no bar of their own."""
    name = worth.detector.replace("_", "-")
    carlini = ground.area(worth, watch, ground.carlini)
    table.add(f"{name}-cw", "AUC, C&W-L2", carlini, "none", "reported")


ROWS = merged(
    {
        "pixels": Row("Binary classifier of the input (T1)", detect.pixels, t1),
        "squeezed": Row("Feature squeezing's detector (N3)", detect.squeezed, n3),
        "kde_uncertainty": Row(
            "Kernel density and uncertainty (T4)", detect.kde_uncertainty, t4,
            "The net has no dropout: units of its last hidden layer are dropped.", 20,
        ),
        "safetynet": Row("SafetyNet (T5)", detect.safetynet, t5),
        "mahalanobis": Row("Mahalanobis distance", detect.mahalanobis, reference),
        "local_dimension": Row(
            "Local intrinsic dimensionality", detect.local_dimension, reference
        ),
    },
)  # fmt: skip
ORDER = [part for name in ROWS for part in (name, f"{name}-bars")]


def main() -> None:
    args = command_line(__doc__ or "", "detectors", list(ROWS), 1)
    on = ground(setting(args))
    tables: list[Section] = []
    for name in args.chosen:
        print(name, flush=True)
        tables += four_ways(on, name, ROWS[name])
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
