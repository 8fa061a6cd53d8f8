"""Brackets of the smallest Linf change: proved by a mixed-integer program, reached by attacks.

python benchmarks/exact.py [--quick] [--only bars,brackets] [--threads 2]
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from common import Section, command_line, finish, header

SECTIONS = ("bars", "attacks", "brackets")
BAR = ("what", "measured", "bar", "verdict")
HIDDEN = (40,)


def programme() -> ModuleType:
    """tests/exact.py, which this file's own name would hide."""
    path = Path(__file__).resolve().parent.parent / "tests" / "exact.py"
    spec = importlib.util.spec_from_file_location("exact_minima", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exact_minima"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    args = command_line(__doc__ or "", "exact", SECTIONS, 1)
    exact = programme()
    held = exact.victim(HIDDEN, min(args.samples, 10 if args.quick else 50))
    found = exact.distances(held, exact.minimum_norm())
    pairs = exact.brackets(held, found)
    proved = np.array([one.proved for one in pairs])
    ratios = np.array([one.ratio for one in pairs])
    tables = {
        "bars": Section("bars", "Best attack over proved minimum", BAR),
        "attacks": Section(
            "attacks",
            "Each attack over the proved minimum",
            ("median", "worst", "not found"),
            "Default settings. The worst is over the inputs that it flips.",
        ),
        "brackets": Section(
            "brackets",
            "Brackets",
            ("[proved, attacked]", "attacked / proved", "by"),
            "No change below the first figure flips the net; an attack's of the second does.",
        ),
    }
    if "bars" in args.chosen:
        table, count = tables["bars"], len(pairs)
        table.bar("bar-median", f"median of {count} inputs", float(np.median(ratios)), "<=", 1.02)
        table.bar("bar-worst", f"worst of {count} inputs", float(ratios.max()), "<=", 1.10)
        closed = max(one.found / one.proved for one in pairs)
        text = "worst of the program's own point over its proof"
        table.add("proof-gap", text, f"{closed:.6f}", "none", "reported")
    if "attacks" in args.chosen:
        for name, size in found.items():
            each = (size / proved)[np.isfinite(size)]
            missing = int((~np.isfinite(size)).sum())
            cells = (f"{np.median(each):.5f}", f"{each.max():.4f}") if len(each) else ("-", "-")
            tables["attacks"].add(name, *cells, missing)
    if "brackets" in args.chosen:
        for i, one in enumerate(pairs):
            pair = f"[{one.proved:.6f}, {one.attacked:.6f}]"
            tables["brackets"].add(f"input-{i:02d}", pair, f"{one.ratio:.5f}", one.by)
    units = " + ".join(map(str, HIDDEN))
    head = header(
        "Exact minima",
        ("scipy",),
        f"A ReLU net of {units} hidden units on digits averaged to 7 x 7, float64 (accuracy "
        f"{100 * held.accuracy:.1f} % on unseen digits); inputs that it classifies rightly. The "
        "minimum over the other classes is proved by scipy's HiGHS.",
    )
    finish(args, head, [tables[name] for name in args.chosen], SECTIONS)


if __name__ == "__main__":
    main()
