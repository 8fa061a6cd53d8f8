"""Running tests on a changed foible without writing into the tree.

A server is a fork of a process that holds torch and pytest but not foible: it imports foible,
collects the tests once, and forks for every job. In that fork the functions of one file get the
code of the mutated source; a mutant outside of functions gets a server of its own, which imports
the mutated source in the first place.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from mutation.code import SEEN, Served, swap

# What tests import beside foible; whatever is missing is imported by the tests that need it.
HEAVY = (
    "torch", "numpy", "scipy.optimize", "sklearn.ensemble", "sklearn.svm", "sklearn.datasets",
    "captum.attr", "lime.lime_image", "lime.lime_tabular", "shap", "skimage.segmentation",
    "hypothesis.strategies", "matplotlib.figure", "jinja2", "typer.testing", "rich.table",
    "safetensors.torch",
)  # fmt: skip
STALLED = 120.0  # seconds without a tick of CPU time: threads that wait for each other


def preload() -> None:
    """Import what is slow to import and does not change."""
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    sys.modules["torch"].set_num_threads(1)  # a fork of a process with threads hangs


@dataclass(frozen=True)
class Job:
    """Tests to run in this order until one fails, each with its limit in CPU seconds.

    change: what `swap` is called with, or None; profile: run all and tell what each one executes.
    """

    tests: Sequence[str]
    limits: Mapping[str, float] = field(default_factory=dict)
    change: tuple[Path, bytes, bytes, int | None] | None = None
    profile: bool = False


@dataclass
class Told:
    """What a job told: how it ended ("passed", "failed", "endless", "unfit"), and where."""

    end: str = "passed"
    at: str = ""
    why: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)
    ran: int = 0


class _Watch:
    """The plugin inside a server: collects, then forks for every job."""

    def __init__(self, conn: Connection, helpers: Sequence[str], seen: set[int]) -> None:
        self.conn, self.helpers, self.seen = conn, helpers, seen
        self.imports: dict[str, list[int]] = {}
        self.fixtures: dict[Any, tuple[set[int], float]] = {}
        self.failure: tuple[str, str] | None = None
        self.inside = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        for name in self.helpers:
            self.seen.clear()
            importlib.import_module(name)
            self.imports[name] = sorted(self.seen)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: Any) -> Any:
        if isinstance(collector, pytest.Module):
            self.seen.clear()
        report = yield
        if isinstance(collector, pytest.Module):
            name = collector.nodeid.split("::")[0]
            self.imports[name] = sorted(self.seen.union(self.imports.get(name, ())))
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.scope == "function" or not self.inside:
            return (yield)
        before, start = set(self.seen), time.process_time()
        self.seen.clear()
        try:
            return (yield)
        finally:
            self.fixtures[fixturedef] = (set(self.seen), time.process_time() - start)
            self.seen.update(before)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failure is None:
            text = str(report.longrepr).strip().splitlines()
            errors = [line for line in text if line.startswith("E  ")]
            self.failure = (report.nodeid, (errors or text or [""])[0][:200])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.conn.send((list(items), self.imports, session.testsfailed))
        while (job := self.conn.recv()) is not None:
            self.conn.send(self._fork(items, job))
        return True

    def _fork(self, items: Mapping[str, Any], job: Job) -> Told:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.close(reader)
            try:
                with os.fdopen(writer, "w", buffering=1) as out:
                    self._run(items, job, out)
            finally:
                os._exit(0)
        os.close(writer)
        return _listen(child, reader)

    def _run(self, items: Mapping[str, Any], job: Job, out: Any) -> None:
        def tell(**what: object) -> None:
            out.write(json.dumps(what) + "\n")

        if job.change is not None and not swap(*job.change):
            tell(end="unfit")
            return
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        self.inside = True
        for i, name in enumerate(job.tests):
            item = items[name]
            tell(start=name)
            self.seen.clear()
            self.failure, before = None, _spent()
            signal.setitimer(signal.ITIMER_PROF, job.limits.get(name, 600.0))
            later = items[job.tests[i + 1]] if i + 1 < len(job.tests) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=later)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if job.profile:
                tell(test=name, ok=self.failure is None, **self._profile(item, _spent() - before))
                _forget()
            elif self.failure is not None:
                tell(end="failed", at=name, why=self.failure[1])
                return
        tell(end="passed")

    def _profile(self, item: Any, spent: float) -> dict[str, object]:
        lines, info = set(self.seen), getattr(item, "_fixtureinfo", None)
        held = [] if info is None else [f for fs in info.name2fixturedefs.values() for f in fs]
        for one in held:
            hits, cost = self.fixtures.get(one, (set(), 0.0))
            if not hits <= lines:  # set up for an earlier test, and needed by this one as well
                lines, spent = lines | hits, spent + cost
        return {"seconds": round(spent, 4), "lines": sorted(lines)}


def _spent() -> float:
    return time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def _forget() -> None:
    """Empty foible's caches, or only the first test that fills one would seem to need it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("foible."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _listen(child: int, reader: int) -> Told:
    """Read what a child tells until it ends; end it if it stands still."""
    told, at, rest = Told(end="died"), "", b""
    ticks, since = -1, time.monotonic()
    while True:
        ready, _, _ = select.select([reader], [], [], 5.0)
        if ready:
            got = os.read(reader, 1 << 20)
            if not got:
                break
            *whole, rest = (rest + got).split(b"\n")
            for line in map(json.loads, whole):
                if "start" in line:
                    at, told.ran = line["start"], told.ran + 1
                elif "test" in line:
                    told.lines.append(line)
                else:
                    told.end, told.at = line["end"], line.get("at", "")
                    told.why = line.get("why", "")
        if told.end != "died":
            break
        now = _ticks(child)
        if now != ticks or ready:
            ticks, since = now, time.monotonic()
        elif time.monotonic() - since > STALLED:
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if told.end == "died":
        told.at, told.why = at, "the process died"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL):
            told.end, told.why = "endless", "no end in sight"
    return told


def _ticks(child: int) -> int:
    try:
        text = Path(f"/proc/{child}/stat").read_text()
    except OSError:
        return -1
    return sum(map(int, text.rsplit(")", 1)[1].split()[11:13]))


# ---------------------------------------------------------------- servers


class Server:
    """A process that has collected tests and runs jobs on them."""

    def __init__(
        self,
        root: Path,
        tests: Iterable[str],
        texts: Mapping[str, bytes | ast.Module],
        helpers: Sequence[str] = (),
    ) -> None:
        self.conn, other = Pipe()
        self.child = os.fork()
        if self.child == 0:
            try:
                self.conn.close()
                _serve(other, root, list(tests), texts, helpers)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        other.close()
        self.ids: list[str] = []
        self.imports: dict[str, list[int]] = {}
        self.broken = True
        try:
            self.ids, self.imports, failed = self.conn.recv()
            self.broken = bool(failed)
        except EOFError:
            pass

    def run(self, job: Job) -> Told:
        self.conn.send(job)
        return self.conn.recv()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.conn.send(None)
        os.waitpid(self.child, 0)


def _serve(
    conn: Connection,
    root: Path,
    tests: list[str],
    texts: Mapping[str, bytes | ast.Module],
    helpers: Sequence[str],
) -> None:
    log = os.open(root / "benchmarks" / ".mutants" / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(root)
    seen: set[int] = set()
    setattr(builtins, SEEN, seen.add)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import hypothesis

    # No database: a mutant's counterexamples would be tried on the next one.
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    sys.meta_path.insert(0, Served(root / "src" / "foible", texts))
    asked = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow and not browser"]
    scratch = f"--basetemp={tempfile.gettempdir()}/mutants-{os.getppid()}-{os.getpid()}"
    pytest.main([*asked, scratch, "--continue-on-collection-errors", *tests],
                plugins=[_Watch(conn, helpers, seen)])  # fmt: skip
