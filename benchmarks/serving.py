"""A guarded model behind HTTP under a long mixed load, at its own capacity.

    python benchmarks/serving.py --minutes 30 --workers 4

Starts `foible serve` with the bundled standard model and feature squeezing, and sends it good and
malformed requests on loopback from several threads, each as soon as the one before was answered.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, Section, header, images, write
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BAR = ("what", "measured", "bar", "verdict")


def requests() -> list[tuple[bytes, str, int]]:
    """Bodies, their content types and the status that each must get."""
    x, _ = images(64)
    picture = io.BytesIO()
    Image.fromarray((x[0, 0].numpy() * 255).round().astype(np.uint8)).save(picture, "PNG")

    def told(inputs: Any) -> bytes:
        return json.dumps({"inputs": inputs}).encode()

    one, huge = x[:1].tolist(), io.BytesIO()
    Image.fromarray(np.zeros((3000, 3000), np.uint8)).save(huge, "PNG")
    nan = json.dumps({"inputs": one}).replace("0.0", "NaN", 1).encode()
    return [
        (told(one), "application/json", 200),
        (told(x[:16].tolist()), "application/json", 200),
        (picture.getvalue(), "image/png", 200),
        (told(one), "application/json", 200),
        (b"{", "application/json", 400),
        (told(np.zeros((1, 5, 5)).tolist()), "application/json", 422),
        (nan, "application/json", 422),
        (huge.getvalue(), "image/png", 413),
        (b"1" * 5_000_000, "application/json", 413),
        (told(one), "text/html", 415),
    ]


def resident(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Load:
    """Threads that ask without a pause; every answer is counted."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.end = port, time.monotonic() + seconds
        self.wanted, self.lock = requests(), threading.Lock()
        self.times: list[float] = []
        self.wrong: list[Any] = []
        self.bad = 0

    def work(self, place: int) -> None:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while time.monotonic() < self.end:
            body, kind, status = self.wanted[place % len(self.wanted)]
            place += 1
            start = time.monotonic()
            try:
                line.request("POST", "/predict", body, {"Content-Type": kind})
                answer = line.getresponse()
                content, got = json.loads(answer.read()), answer.status
                fine = "answers" in content if got == 200 else "error" in content
            except (OSError, ValueError, http.client.HTTPException) as error:
                got, fine = -1, False
                line.close()
                with self.lock:
                    self.wrong.append(repr(error))
            with self.lock:
                self.times.append(time.monotonic() - start)
                self.bad += status != 200
                if got != status or not fine:
                    self.wrong.append((got, status, kind))
            if status == 413:  # the server may close a line whose body it has not read
                line.close()

    def run(self, workers: int) -> None:
        threads = [threading.Thread(target=self.work, args=(3 * i,)) for i in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.md")
    args = parser.parse_args()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    asked = [sys.executable, "-m", "foible.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(asked, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until and server.poll() is None:
            try:
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                line.request("GET", "/health")
                if line.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.3)
        Load(port, max(10.0, 6 * args.minutes)).run(args.workers)  # a tenth, to settle
        before = resident(server.pid)
        load = Load(port, 60 * args.minutes)
        load.run(args.workers)
        after, alive = resident(server.pid), server.poll() is None
    finally:
        server.terminate()
        server.wait(60)
    times = np.sort(load.times)
    bars = Section("bars", f"{args.minutes:g} minutes, {args.workers} clients", BAR)
    bars.bar("crashes", "times that the server ended", float(not alive), "<=", 0)
    bars.bar("lost", "answers lost, wrong or without a sentence", float(len(load.wrong)), "<=", 0)
    growth = 100 * (after / before - 1)
    what = f"resident memory, {before:.0f} MiB to {after:.0f} MiB: growth in %"
    bars.bar("memory", what, growth, "<=", 5)
    table = Section("load", "Answers", ("requests", "malformed", "a second", "p50 ms", "p99 ms"))
    p50, p99 = (1000 * float(np.quantile(times, q)) for q in (0.5, 0.99))
    table.add("all", len(times), load.bad, len(times) / (60 * args.minutes), p50, p99)
    head = header("A guarded model behind HTTP", [], "On loopback, one server process.")
    write(args.out, head, [bars, table], ["bars", "load"])
    print(load.wrong[:5])


if __name__ == "__main__":
    main()
