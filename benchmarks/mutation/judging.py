"""One mutant: which tests run on it, in which order, and how it ends."""

from __future__ import annotations

import ast
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutation.operators import Mutant
from mutation.profiling import BASE, ROOT, Profile, digest
from mutation.serving import Job, Server, Told

READING = "tests/test_defaults.py"  # reads defaults and constants, and executes none of them


@dataclass
class Runner:
    """Judges mutants: in forks of one server, or in a server of the mutant's own."""

    texts: Mapping[str, bytes]
    known: Profile
    cap: float
    slow: float
    server: Server | None = None
    killers: Counter[tuple[str, str]] = field(default_factory=Counter)
    unsound: set[str] = field(default_factory=set)
    suite: str = ""

    def __post_init__(self) -> None:
        self.suite = digest(
            *sorted(mark.encode() for mark in self.known.digests.values()),
            f"{self.cap} {self.slow}".encode(),
        )
        self.breadth = {test: len(lines) for test, lines in self.known.lines.items()}

    def judge(self, one: Mutant) -> dict[str, Any]:
        """Return the record of a mutant: how it ended, by which test, and what was run."""
        start, source = time.process_time(), self.texts[one.file]
        new = one.apply(source)
        tests, left_out = self.tests(one)
        told, way = Told(), "no test executes it"
        if tests and one.kind != "outside":
            default = one.scope[0] if one.kind == "default" else None
            told, way = self._swapped(tests, (BASE / one.file, source, new, default)), "swapped"
        imported = self._importers(one)
        if told.end == "unfit" or (told.end == "passed" and (imported or one.kind == "outside")):
            fresh, way = self._fresh(one, new, tests, imported), f"{way}, imported"
            fresh.ran += told.ran
            told = fresh
        return {
            "id": identity(one, source), "end": told.end, "by": told.at, "why": told.why,
            "way": way, "ran": told.ran, "left_out": len(left_out), "suite": self.suite,
            "cpu": round(time.process_time() - start, 2),
        }  # fmt: skip

    def tests(self, one: Mutant) -> tuple[list[str], list[str]]:
        """Return the tests for a mutant, best first, and those that the cap leaves out."""
        if one.statement is not None:
            want = {(one.file, one.statement)}
        else:
            want = {(one.file, line) for line in range(one.scope[0], min(one.scope[1], 9999) + 1)}
        bad = self.unsound.union(self.known.failing)
        found = [t for t, lines in self.known.lines.items() if t not in bad and lines & want]
        if one.kind != "body":
            found += [
                t for t in self.known.lines if t.startswith(READING) and t not in {*bad, *found}
            ]
        return self._cut(sorted(found, key=lambda t: self._rank(one, t)))

    def _rank(self, one: Mutant, test: str) -> float:
        stem = one.file.split("/")[-1].removesuffix(".py").strip("_")
        weight = 1 + 4 * self.killers[one.file, test] + 300 / (30 + self.breadth[test])
        weight += 3 * (stem in test.split("::")[0])
        return (self.known.seconds[test] + 0.02) / weight

    def _cut(self, tests: list[str]) -> tuple[list[str], list[str]]:
        spent, kept, out = 0.0, [], []
        for test in tests:
            cost = self.known.seconds[test]
            fits = cost <= self.slow and spent + cost <= self.cap
            (kept if fits else out).append(test)
            spent += cost if fits else 0.0
        return self._together(kept), out

    def _together(self, tests: list[str]) -> list[str]:
        """Return slow tests of a file side by side: they often share a fixture that is dear."""
        order, slow = list[str](), defaultdict[str, list[str]](list)
        for test in tests:
            if self.known.seconds[test] > 1:
                slow[test.split("::")[0]].append(test)
        for test in tests:
            order += slow.pop(test.split("::")[0], []) if self.known.seconds[test] > 1 else [test]
        return order

    def _importers(self, one: Mutant) -> list[str]:
        """Return the test files whose import already executes the mutant."""
        if one.statement is not None:
            want = {(one.file, one.statement)}
        else:
            want = {(one.file, line) for line in range(one.scope[0], min(one.scope[1], 9999) + 1)}
        hit = {name for name, lines in self.known.imports.items() if lines & want}
        return [f for f in self.known.digests if f in hit or hit & _helpers(f)]

    def _limits(self, tests: Iterable[str]) -> dict[str, float]:
        return {test: 10 * self.known.seconds[test] + 10 for test in tests}

    def _collected(self) -> Server:
        if self.server is None:
            self.server = Server(ROOT, ["tests", "src/foible"], {})
        return self.server

    def _swapped(self, tests: list[str], change: tuple[Path, bytes, bytes, int | None]) -> Told:
        server, ran = self._collected(), 0
        while True:
            told = server.run(Job(tests, self._limits(tests), change))
            ran += told.ran
            if told.end in ("passed", "unfit") or self._sound(told.at):
                told.ran = ran
                return told
            tests = [test for test in tests if test != told.at]

    def _fresh(self, one: Mutant, new: bytes, tests: list[str], files: list[str]) -> Told:
        """Run in servers that import the mutant: the quickest files first, then the others."""
        bad = self.unsound.union(self.known.failing)
        tests = list(tests)
        more = [t for t in self.known.lines if t.split("::")[0] in files and t not in bad]
        more = sorted(set(more) - set(tests), key=lambda t: self._rank(one, t))
        tests = self._cut(tests + more)[0]
        first: list[str] = []
        for test in tests:
            name = test.split("::")[0]
            if name not in first and len(first) < 4:
                first.append(name)
        told = Told()
        for chosen in (
            [t for t in tests if t.split("::")[0] in first],
            [t for t in tests if t.split("::")[0] not in first],
        ):
            while chosen and told.end == "passed":
                ran, told = told.ran, self._alone(one, new, chosen)
                told.ran += ran
                if told.end == "passed":
                    break
                if told.end == "failed" and not self._sound(told.at):
                    chosen = [test for test in chosen if test != told.at]
                    told = Told(ran=told.ran)
        return told

    def _alone(self, one: Mutant, new: bytes, tests: list[str]) -> Told:
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        server = Server(ROOT, files, {one.file: new})
        try:
            # Collection runs module code of the tests, which may fail, too; ids may then be gone.
            if server.broken or not set(tests) <= set(server.ids):
                return Told("failed", "collection", "the tests cannot be collected")
            return server.run(Job(tests, self._limits(tests)))
        finally:
            server.close()

    def _sound(self, test: str) -> bool:
        """Say whether a test passes without the mutant, right after it failed with it."""
        if self._collected().run(Job([test], self._limits([test]))).end == "passed":
            return True
        self.unsound.add(test)
        return False


_IMPORTED: dict[str, set[str]] = {}


def _helpers(name: str) -> set[str]:
    """Return the modules of tests/ that a file imports."""
    if name not in _IMPORTED:
        tree = ast.parse((ROOT / name).read_bytes())
        froms = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        plain = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        _IMPORTED[name] = {m for m in froms | plain if (ROOT / "tests" / f"{m}.py").is_file()}
    return _IMPORTED[name]


def identity(one: Mutant, source: bytes) -> str:
    return digest(one.file.encode(), one.apply(source))
