"""The result file of mutants.py: counts, what was left out, and every survivor with its reason."""

from __future__ import annotations

import argparse
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from common import Section, header, percent, write

from mutation.operators import FOLDERS, OPERATORS, Mutant, candidates
from mutation.profiling import ROOT, Profile

BAR = 0.95
REASONS = ROOT / "benchmarks" / "mutants_reasons.toml"
KINDS = ("equivalent", "only speed", "tolerance", "tuning", "gap", "not explained")
ORDER = ("bars", "counts", "survivors", "left-out")


def report(
    args: argparse.Namespace,
    ids: Mapping[str, Mutant],
    done: Mapping[str, dict[str, Any]],
    known: Profile,
    unsound: set[str],
    texts: Mapping[str, bytes],
) -> None:
    known_reasons = reasons()
    alive = {
        mark: known_reasons.get(one.key, ("not explained", ""))
        for mark, one in ids.items()
        if done[mark]["end"] == "passed"
    }
    killed = len(ids) - len(alive)
    bars = Section("bars", "The bar", ("what", "measured", "bar", "verdict"))
    bars.bar("mutants", "mutants in the sample", len(ids), ">=", 200)
    share = 100 * killed / len(ids)
    bars.bar("killed", f"killed, % of all ({killed} of {len(ids)})", share, ">=", 100 * BAR)
    same = sum(kind in ("equivalent", "only speed") for kind, _ in alive.values())
    rest = len(ids) - same
    bars.add(
        "killed of those that differ",
        f"without the {same} that give the same results ({killed} of {rest})",
        100 * killed / rest, "", "",
    )  # fmt: skip
    sections = [bars, _counts(ids, done, alive), _survivors(ids, alive, done)]
    sections.append(_left_out(args, known, unsound, done, len(ids)))
    total = sum(len(candidates(file, text)) for file, text in texts.items())
    intro = (
        f"A sample (seed {args.seed}) of {len(ids)} of the {total:,} single edits that the "
        f"operators of `benchmarks/mutation/operators.py` make in core, parts and attacks, as "
        f"they were at {commit()}. What the operators leave alone is told in that file. Killed: a "
        "test fails that passes without the edit, or does not end within ten times its time and "
        "ten seconds."
    )
    write(args.out, header("Mutants", ["pytest", "hypothesis"], intro), sections, ORDER)


def _counts(
    ids: Mapping[str, Mutant], done: Mapping[str, dict[str, Any]], alive: Mapping[str, object]
) -> Section:
    columns = ("mutants", "killed", "of them endless or at import", "share killed")
    section = Section("counts", "By operator and by folder", columns)

    def row(name: str, holds: Callable[[Mutant], bool]) -> None:
        marks = [mark for mark, one in ids.items() if holds(one)]
        if not marks:
            return
        dead = [mark for mark in marks if mark not in alive]
        endless = sum(done[mark]["end"] != "failed" for mark in dead)
        broken = sum(done[mark]["by"] == "collection" for mark in dead)
        share = percent(len(dead) / len(marks))
        section.add(name, len(marks), len(dead), f"{endless} and {broken}", share)

    for operator in OPERATORS:
        row(operator, lambda m, operator=operator: m.operator == operator)
    for folder in FOLDERS:
        row(folder, lambda m, folder=folder: m.file.startswith(f"{folder}/"))
    row("all", lambda m: True)
    return section


def _survivors(
    ids: Mapping[str, Mutant],
    alive: Mapping[str, tuple[str, str]],
    done: Mapping[str, dict[str, Any]],
) -> Section:
    counts = Counter(kind for kind, _ in alive.values())
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    section = Section(
        "survivors", "Survivors", ("operator", "was", "became", "reason"),
        f"By reason: {told or 'none survived'}.",
    )  # fmt: skip
    for mark in sorted(alive, key=lambda mark: KINDS.index(alive[mark][0])):
        one, (kind, why) = ids[mark], alive[mark]
        if done[mark]["left_out"]:
            why = f"{why} ({done[mark]['left_out']} slow tests were not run)"
        row = f"{one.file}:{one.line} `{one.where}`"
        section.add(row, one.operator, _code(one.was), _code(one.new), f"{kind}: {why}".strip(": "))
    return section


def _code(text: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= 90 else f"{text[:60]} ... {text[-25:]}"
    return f"`{text}`"


def _left_out(
    args: argparse.Namespace,
    known: Profile,
    unsound: Iterable[str],
    done: Mapping[str, dict[str, Any]],
    count: int,
) -> Section:
    slow = {test: cost for test, cost in known.seconds.items() if cost > args.slow}
    capped = sum(done[mark]["end"] == "passed" and done[mark]["left_out"] > 0 for mark in done)
    section = Section(
        "left-out", "What was run, and what was not", ("count", "which"),
        "Tests are those of `make test`: not the ones marked slow, and none that drives a browser. "
        "A program that a test starts does not see the edit.",
    )  # fmt: skip
    section.add("tests", len(known.seconds), f"{sum(known.seconds.values()):.0f} CPU seconds")
    section.add(f"above {args.slow:g} s each", len(slow), ", ".join(sorted(slow)) or "none")
    failing = sorted({*known.failing, *unsound})
    section.add("failing without an edit", len(failing), ", ".join(failing) or "none")
    section.add(
        "survivors with tests left out", capped,
        f"beyond {args.cap:g} CPU seconds a mutant, or above {args.slow:g} s",
    )  # fmt: skip
    ran = sum(done[mark]["ran"] for mark in done)
    section.add("tests run", ran, f"{ran / max(1, count):.0f} a mutant")
    return section


def commit() -> str:
    asked = ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "src/foible"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def reasons() -> dict[str, tuple[str, str]]:
    """Return kind and reason by a mutant's key."""
    if not REASONS.is_file():
        return {}
    found = tomllib.loads(REASONS.read_text(encoding="utf-8")).get("survivor", [])
    return {f"{r['file']}::{r['where']}::{r['now']}": (r["kind"], r["why"]) for r in found}
