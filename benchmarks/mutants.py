"""How many small errors, planted in core, parts and attacks, the tests notice.

python benchmarks/mutants.py [--seed 0] [--count 240] [--only core/solver.py] [--resume]

Every mutant is one edit by an operator of mutation/operators.py; a seeded sample is spread over
all files. The tests that execute the edited statement (measured once, kept in benchmarks/.mutants)
run on it, the likeliest and quickest first, until one fails. A test that fails counts only if it
passes without the edit right after. Reasons of survivors are kept in mutants_reasons.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
os.environ.setdefault("OMP_NUM_THREADS", "1")

from mutation.judging import Runner, identity  # noqa: E402
from mutation.operators import Mutant, sample, sources  # noqa: E402
from mutation.profiling import KEPT, profile  # noqa: E402
from mutation.reporting import report  # noqa: E402
from mutation.serving import preload  # noqa: E402

HERE = Path(__file__).resolve().parent


def main() -> None:
    args = arguments()
    KEPT.mkdir(exist_ok=True)
    texts = sources(ROOT)
    chosen = [m for m in sample(texts, args.count, args.seed) if args.only in f"{m.key}"]
    ids = {identity(m, texts[m.file]): m for m in chosen}
    preload()
    known = profile(texts)
    if args.list:
        for mark, one in ids.items():
            print(f"{mark} {one.file}:{one.line} [{one.operator}] {one.where}: {one.text}")
        return
    runner = Runner(texts, known, args.cap, args.slow)
    done = judged(args, ids, texts, runner)
    if runner.server is not None:
        runner.server.close()
    if args.only:
        print("a part of the sample: nothing written")
    elif len(done) == len(ids):
        report(args, ids, done, known, runner.unsound, texts)


def judged(
    args: argparse.Namespace, ids: Mapping[str, Mutant], texts: Mapping[str, bytes], runner: Runner
) -> dict[str, dict[str, Any]]:
    """Judge every mutant that is not done; what is done is kept line by line."""
    place = KEPT / "done.jsonl"
    done: dict[str, dict[str, Any]] = {}
    if args.resume and place.is_file():
        for line in place.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            # A kill stays one; a survivor is judged again by a suite that has changed.
            if record["id"] in ids and (
                record["end"] != "passed" or record["suite"] == runner.suite or args.keep
            ):
                done[record["id"]] = record
    elif not args.only:
        place.unlink(missing_ok=True)
    for mark, record in done.items():
        if record["end"] == "failed":
            runner.killers[ids[mark].file, record["by"]] += 1
    start = time.monotonic()
    for i, (mark, one) in enumerate(ids.items()):
        if mark in done:
            continue
        record = runner.judge(one)
        done[mark] = record
        if record["end"] == "failed":
            runner.killers[one.file, record["by"]] += 1
        with place.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        alive = sum(r["end"] == "passed" for r in done.values())
        end = "ALIVE" if record["end"] == "passed" else record["end"]
        place_of = f"{one.file}:{one.line} {one.where} [{one.operator}] {one.text[:100]}"
        by = f"{record['by'].split('::')[-1][:60]} ({record['ran']} tests)"
        clock = f"alive {alive} {time.monotonic() - start:.0f} s"
        print(f"{i + 1}/{len(ids)} {end} {place_of} | {by} {clock}", flush=True)
    return done


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--count", type=int, default=240, help="mutants in the sample")
    parser.add_argument("--only", default="", help="those whose file, place or text holds this")
    parser.add_argument("--resume", action="store_true", help="keep what is done")
    parser.add_argument("--keep", action="store_true", help="with --resume: survivors, too")
    parser.add_argument("--cap", type=float, default=120.0, help="CPU seconds of tests a mutant")
    parser.add_argument("--slow", type=float, default=15.0, help="a test above this is left out")
    parser.add_argument("--list", action="store_true", help="only show the sample")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "mutants.md")
    args = parser.parse_args()
    os.nice(10)
    return args


if __name__ == "__main__":
    main()
