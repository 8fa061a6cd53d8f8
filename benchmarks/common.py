"""What the benchmarks share: fair timing, tables with row names, result files.

Timing: every contender runs once in each round, in an order that rotates, and a verdict is the
median over rounds of the ratio within a round. So a machine that slows down for a while slows
all contenders, and no absolute time decides anything.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = ("standard", "hardened")
EPS = 0.1
STEPS = 40
STEP = 2.5 * EPS / STEPS
BUSY = os.getloadavg()[0]  # before this process adds to it


# ---------------------------------------------------------------- timing


def clock(kind: str) -> Callable[[], float]:
    """wall: what a user waits for; cpu: steadier while the machine does other work."""
    return time.process_time if kind == "cpu" else time.perf_counter


def alternate(
    contenders: Mapping[str, Callable[[], object]], runs: int, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Time every contender `runs` times, interleaved; the order rotates from round to round."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(runs):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            start = now()
            contenders[name]()
            times[name].append(now() - start)
    return times


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> float:
    """The median over rounds of time(above) / time(below)."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def spread(times: Mapping[str, list[float]], above: str, below: str) -> str:
    """The range of the same ratio over rounds: how far one round may be trusted."""
    each = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return f"{min(each):.2f} to {max(each):.2f}"


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- tables


@dataclass
class Section:
    """One table. The first cell of a row is its name, which never changes."""

    name: str
    title: str
    columns: Sequence[str]
    note: str = ""
    rows: list[list[str]] = field(default_factory=list)

    def add(self, row: str, *cells: object) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{row}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append([row, *map(shown, cells)])
        print(f"  {row}: " + " | ".join(self.rows[-1][1:]), flush=True)

    def bar(self, row: str, what: str, measured: float, sign: str, limit: float) -> None:
        """A row of a section whose columns are: what, measured, bar, verdict."""
        slack = 1e-12 + 1e-9 * abs(limit)  # rounding of a figure that is exactly at its bar
        met = measured <= limit + slack if sign == "<=" else measured >= limit - slack
        self.add(row, what, measured, f"{sign} {limit:g}", "met" if met else "**missed**")

    def text(self) -> str:
        head = ["row", *self.columns]
        lines = [f"## {self.title}", "", f"<!-- section: {self.name} -->", ""]
        if self.note:
            lines += [self.note, ""]
        lines += [f"Run as `{command()}`{shared()}.", ""]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A cell: three significant digits, and no made-up zero for what was not measured."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not measured"
    if isinstance(value, float):
        if value and not 1e-3 <= abs(value) < 1e5:
            return f"{value:.1e}"
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def command() -> str:
    """How this run was called."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def shared() -> str:
    """What to add where other work ran beside this one: its times scatter, its counts do not."""
    if BUSY <= 0.5:
        return ""
    return f" on a machine shared with other work (load {BUSY:.1f} when it began)"


def header(title: str, packages: Sequence[str], intro: str) -> str:
    """What the figures depend on; no date, so that an equal run gives an equal header."""
    others = [f"{p} {importlib.metadata.version(p)}" for p in packages]
    own = [f"foible {foible_version()}", f"torch {torch.__version__}"]
    versions = ", ".join([*own, *others, f"Python {platform.python_version()}"])
    return "\n".join(
        [
            f"# {title}",
            "",
            intro,
            "",
            f"- versions: {versions}",
            f"- machine: {processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
            f"- command: `{command()}`{shared()}",
            "",
        ]
    )


def foible_version() -> str:
    import foible

    return foible.__version__


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{found[1].strip()} ({platform.machine()})" if found else platform.machine()


def write(path: Path, head: str, sections: Sequence[Section], order: Sequence[str]) -> None:
    """Write a result file; sections that were not run keep the text that they had."""
    texts: dict[str, str] = {}
    if path.is_file():
        for part in re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            mark = re.search(r"<!-- section: (\S+) -->", part)
            if mark:
                texts[mark[1]] = part.rstrip("\n") + "\n"
    texts |= {section.name: section.text() for section in sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [texts[name] for name in order if name in texts]
    path.write_text("\n".join([head, *body]), encoding="utf-8")
    print(f"written: {path}")


# ---------------------------------------------------------------- command line


@dataclass(frozen=True)
class Setting:
    """How much is run. samples: images; runs: rounds of a timing; now: the clock."""

    quick: bool
    samples: int
    runs: int
    now: Callable[[], float]


def command_line(doc: str, name: str, sections: Sequence[str], runs: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="200 images, one round; written only with --out"
    )
    parser.add_argument(
        "--only", default="", help=f"sections, separated by commas: {', '.join(sections)}"
    )
    parser.add_argument("--runs", type=int, default=None, help=f"rounds of a timing ({runs})")
    parser.add_argument("--samples", type=int, default=None, help="images (1000)")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (all CPUs)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, default=None, help=f"result file (results/{name}.md)")
    args = parser.parse_args()
    unknown = set(filter(None, args.only.split(","))) - set(sections)
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; choose from {', '.join(sections)}")
    args.chosen = [s for s in sections if not args.only or s in args.only.split(",")]
    args.runs = args.runs or (1 if args.quick else runs)
    args.samples = args.samples or (200 if args.quick else 1000)
    args.path = args.out or (None if args.quick else RESULTS / f"{name}.md")
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    if BUSY > 0.5:
        print(f"the machine is busy (load {BUSY:.1f}): ratios will scatter; wait for a quiet one")
    return args


def setting(args: argparse.Namespace) -> Setting:
    return Setting(args.quick, args.samples, args.runs, clock(args.clock))


def load(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    import foible

    return foible.zoo.load(name).to(dtype)


def images(count: int) -> tuple[Tensor, Tensor]:
    import foible

    x, y = foible.zoo.sample()
    return x[:count], y[:count]


def finish(
    args: argparse.Namespace, head: str, sections: Sequence[Section], order: Sequence[str]
) -> None:
    if args.path is None:
        print("quick run: nothing written (name a file with --out)")
    else:
        write(args.path, head, sections, order)
    missed = [row[0] for s in sections for row in s.rows if "**missed**" in row]
    print(f"bars missed: {', '.join(missed) or 'none'}")
