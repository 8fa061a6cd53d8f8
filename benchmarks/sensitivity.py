"""How far a map moves in a small ball: random search and an attack.

python benchmarks/sensitivity.py [--quick] [--samples 200] [--threads 1]
"""

from __future__ import annotations

import time

from common import MODELS, Section, command_line, finish, header, images, load

import foible
from foible import explain
from foible.explain import Explanation

BAR = ("what", "measured", "bar", "verdict")
WHAT = ("attack", "random", "corners", "attack / random", "at least as large", "spent: f + b", "s")
BUDGET = 100


def measured(
    table: Section, model: str, method: str, explainer: Explanation, radius: float, count: int
) -> tuple[float, float]:
    """All three ways; the median ratio and the share where the attack is at least as large."""
    net, (x, y) = load(model), images(count)
    found, seconds = {}, []
    for how in ("attack", "random", "corners"):
        start = time.process_time()
        found[how] = explain.sensitivity(explainer, radius, BUDGET, how)(net, x, y)
        seconds.append(f"{time.process_time() - start:.0f}")
    worst, tried = found["attack"].values, found["random"].values
    ratio = (worst / tried)[tried > 0]  # Grad-CAM may not move at all
    least = float((worst >= tried).double().mean())
    spent = [
        f"{int(f.forwards.double().mean())} + {int(f.backwards.double().mean())}"
        for f in (found["attack"], found["random"])
    ]
    table.add(
        f"{method}-{model}-{radius:g}", *(float(f.values.median()) for f in found.values()),
        float(ratio.median()), f"{100 * least:.1f} % of {len(x)}", ", ".join(spent),
        ", ".join(seconds),
    )  # fmt: skip
    return float(ratio.median()), least


def main() -> None:
    args = command_line(__doc__ or "", "sensitivity", ("bars", "values"), 1)
    count = min(args.samples, 200)
    bars = Section("bars", "Bars: the plain gradient", BAR)
    table = Section(
        "values", f"Medians at a budget of {BUDGET} explanations", WHAT,
        "Spent: forwards and backwards a sample, of the attack and of random points. Seconds of "
        "CPU, in the order of the columns: a backward through a backward costs more than one.",
    )  # fmt: skip
    for model in MODELS:
        for radius in (0.02, 0.05):
            middle, least = measured(table, model, "saliency", explain.saliency(), radius, count)
            at = f"{model}, radius {radius:g}: "
            bars.bar(f"least-{model}-{radius:g}", at + "share of inputs where the attack is at "
                     "least as large as random search", least, ">=", 0.99)  # fmt: skip
            bars.bar(f"median-{model}-{radius:g}", at + "attack / random, median", middle, ">=", 2)
        for method, explainer, some in (
            ("gradient_x_input", explain.gradient_x_input(), count),
            ("grad_cam", explain.grad_cam(), count),
            ("smoothgrad", explain.smoothgrad(10), count // 10),
            ("integrated_gradients", explain.integrated_gradients(10), count // 10),
        ):
            measured(table, model, method, explainer, 0.02, some)
    head = header(
        "Worst-case sensitivity of maps", [],
        "max |map(x') - map(x)| / |map(x)| over an Linf ball (Yeh et al. 2019), on the true net, "
        f"on the first images. foible {foible.__version__}: `explain.sensitivity`, at equal cost.",
    )  # fmt: skip
    finish(args, head, [bars, table], ("bars", "values"))


if __name__ == "__main__":
    main()
