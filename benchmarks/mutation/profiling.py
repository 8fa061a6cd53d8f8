"""Which test executes which statement of foible, and what each test costs; measured once."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutation.code import marked
from mutation.serving import Job, Server

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "src" / "foible"
KEPT = ROOT / "benchmarks" / ".mutants"


@dataclass
class Profile:
    """What each test costs (CPU seconds) and executes: statements as (file, line)."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    imports: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    failing: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


def digest(*texts: bytes) -> str:
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def test_files() -> dict[str, str]:
    """Return every file that holds tests, doctests included, with its digest."""
    helpers = [p.read_bytes() for p in sorted((ROOT / "tests").rglob("*.py"))
               if not p.name.startswith("test_")]  # fmt: skip
    common = digest(*helpers)
    found = {f"tests/{p.name}": p for p in sorted((ROOT / "tests").glob("test_*.py"))}
    for path in sorted(BASE.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            found[path.relative_to(ROOT).as_posix()] = path
    return {name: digest(path.read_bytes(), common.encode()) for name, path in found.items()}


def profile(texts: Mapping[str, bytes]) -> Profile:
    """Return the profile, measuring what has changed since it was kept."""
    place = KEPT / "profile.json"
    now, kept, every = test_files(), Profile(), digest(*texts.values())
    if place.is_file():
        data = json.loads(place.read_text(encoding="utf-8"))
        if data["sources"] == every:
            kept = _read(data)
    stale = [name for name, mark in now.items() if kept.digests.get(name) != mark]
    for name in [n for n in kept.digests if n not in now or n in stale]:
        _drop(kept, name)
    if not stale:
        return kept
    print(f"measuring what {len(stale)} files of tests execute", flush=True)
    trees, table = marked(texts)
    helpers = sorted(p.stem for p in (ROOT / "tests").glob("*.py")
                     if not p.stem.startswith(("test_", "conftest", "audit_victim")))  # fmt: skip
    server = Server(ROOT, stale, trees, helpers)
    if server.broken:
        raise SystemExit(f"the tests cannot be collected: see {KEPT / 'log'}")
    for name, marks in server.imports.items():
        kept.imports[name] = {table[i] for i in marks}
    by_file = defaultdict(list)
    for test in server.ids:
        by_file[test.split("::")[0]].append(test)
    for name in stale:
        for line in server.run(Job(by_file[name], profile=True)).lines if by_file[name] else ():
            test = line["test"]
            kept.seconds[test] = line["seconds"]
            kept.lines[test] = {table[i] for i in line["lines"]}
            kept.failing += [] if line["ok"] else [test]
        missed = [test for test in by_file[name] if test not in kept.seconds]
        kept.failing += missed
        kept.digests[name] = now[name]
        cost = sum(kept.seconds.get(test, 0.0) for test in by_file[name])
        print(f"  {name}: {len(by_file[name])} tests, {cost:.1f} s", flush=True)
        _write(place, kept, every)
    server.close()
    return kept


def _drop(kept: Profile, name: str) -> None:
    tests = [test for test in kept.lines if test.split("::")[0] == name]
    for test in tests:
        del kept.seconds[test], kept.lines[test]
    kept.failing = [test for test in kept.failing if test.split("::")[0] != name]
    kept.imports.pop(name, None)
    kept.digests.pop(name, None)


def _read(data: dict[str, Any]) -> Profile:
    table = [tuple(pair) for pair in data["table"]]
    lines = {test: {table[i] for i in found} for test, found in data["lines"].items()}
    imports = {name: {table[i] for i in found} for name, found in data["imports"].items()}
    return Profile(data["seconds"], lines, imports, data["failing"], data["digests"])


def _write(place: Path, kept: Profile, every: str) -> None:
    table = sorted(set().union(*kept.lines.values(), *kept.imports.values()))
    at = {pair: i for i, pair in enumerate(table)}
    data = {
        "sources": every,
        "table": table,
        "seconds": kept.seconds,
        "lines": {test: sorted(at[p] for p in found) for test, found in kept.lines.items()},
        "imports": {name: sorted(at[p] for p in found) for name, found in kept.imports.items()},
        "failing": kept.failing,
        "digests": kept.digests,
    }
    place.with_suffix(".new").write_text(json.dumps(data), encoding="utf-8")
    place.with_suffix(".new").replace(place)
