"""Detectors in four ways: the attack they know, a smaller one, others, and one that knows them.

python benchmarks/detectors.py [--only pixels,squeezed] [--samples 300] [--threads 1]
"""

from __future__ import annotations

from common import Section, command_line, finish, header, setting
from detecting import Ground, Row, area, caught, four_ways, ground, merged

from foible import detect
from foible.detect import Watch, Worth

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


ROWS = merged(
    {
        "pixels": Row("Binary classifier of the input (T1)", detect.pixels, t1),
        "squeezed": Row("Feature squeezing's detector (N3)", detect.squeezed, n3),
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
