"""A process that audits and is killed: `python tests/audit_victim.py FOLDER KILLS SIGNAL PAGES`.

Each audit runs in a child of its own, forked after the slow imports. FOLDER/calm is left alone;
FOLDER/0, FOLDER/1, ... are each struck once at a random moment and then run again to the end.
Prints one JSON line: for each folder how many cells were finished when the signal came, how the
first child ended, and how the second one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from audit_helpers import FGSM, PGD, RANDOM, TINY, audit, write_stub

import foible.audit.reporting

PLAN = replace(TINY, attacks=(RANDOM, FGSM, {**PGD, "steps": 60}), curves=("linf",),
               explanations=("saliency",), checks=True)  # fmt: skip


def work(folder: Path, strike: tuple[int, float] | None = None) -> int:
    """Audit in a child; returns its wait status."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 70
        try:
            report = audit(folder, PLAN)
            code = report.exit_code
            if report.complete != (code != 3):
                code = 71
        except KeyboardInterrupt:
            code = 3  # before or after the cells, as the command line does
        finally:
            os._exit(code)
    if strike is not None:
        time.sleep(strike[1])
        os.kill(child, strike[0])
    return os.waitpid(child, 0)[1]


def finished(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def main(folder: Path, kills: int, number: int, pages: bool) -> None:
    torch.set_num_threads(1)
    if pages:
        import matplotlib.figure  # noqa: F401  # once, before the forks
    else:
        foible.audit.reporting.write_report = write_stub
    begun = time.monotonic()
    if work(folder / "calm") != 0:
        sys.exit("the calm audit failed")
    last, chance, told = time.monotonic() - begun, random.Random(0), []
    while len(told) < kills:
        out = folder / str(len(told))
        status = work(out, (number, chance.uniform(0, last)))
        done: dict[str, Any] = {"finished": finished(out), "first": status}
        done["second"] = work(out)
        if status != 0:  # else it was faster than the signal: run that folder again
            told.append(done)
            continue
        last *= 0.8
        for path in sorted(out.glob("**/*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "pages")
