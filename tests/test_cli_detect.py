"""`foible detect` and `foible serve`: a detector in a file, its worth, a server around both."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch
from command_line import call, environment, refused

import foible
from foible.audit import catalogue
from foible.core.errors import InputError
from foible.detect import load


def test_fit_then_evaluate(tmp_path: Path) -> None:
    path, told = tmp_path / "watch.safetensors", tmp_path / "worth.json"
    text = call("detect", "fit", "squeezed", "--out", path, "--data", "zoo:sample")
    assert "squeezed, fitted to 1000 samples" in text and path.exists()
    net, (x, _) = foible.zoo.load("standard"), foible.zoo.sample()
    assert load(path).score(net, x[:3]).shape == (3,)
    text = call("detect", "evaluate", path, "--samples", "40", "--out", told)
    for part in ("as fitted", "eps 0.025", "FGSM", "DDN, L2", "adaptive", "False alarms on 40"):
        assert part in " ".join(text.split()), part
    worth = json.loads(told.read_text())
    assert worth["ways"][0]["kind"] == "same" and worth["ways"][0]["n"] > 20
    assert worth["ways"][-1]["caught"][0] is not None


def test_what_is_measured_by_default_was_not_fitted_to(tmp_path: Path, monkeypatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def fit(self, model, clean, attack=None, *, seed=0):
        seen["fit"] = clean[0]
        raise InputError("far enough")

    def measured(watch, model, data, threat, *, seed):
        seen["evaluate"] = data[0]
        raise InputError("far enough")

    path = tmp_path / "watch"
    x, y = foible.zoo.sample()
    foible.detect.squeezed((3,)).fit(foible.zoo.load("standard"), (x[:50], y[:50])).save(path)
    monkeypatch.setattr(foible.detect.Detector, "fit", fit)
    monkeypatch.setattr(foible.detect, "evaluate", measured)
    assert "far enough" in refused("detect", "fit", "squeezed", "--out", path)
    assert "far enough" in refused("detect", "evaluate", path, "--samples", 1000, "--seed", 5)
    one, two = seen["fit"], seen["evaluate"]
    assert (len(one), len(two)) == (600, 400)
    assert float(torch.cdist(one.flatten(1), two.flatten(1)).min()) > 0.01


def test_mistakes_are_told(tmp_path: Path) -> None:
    assert "no detector called 'magic'" in refused("detect", "fit", "magic", "--out", "x")
    (tmp_path / "junk").write_bytes(b"junk")
    assert "cannot be read as a detector" in refused("detect", "evaluate", tmp_path / "junk")
    said = refused("detect", "fit", "squeezed", "--out", "x", "--model", "torch.nn:Flatten")
    assert "--data is missing" in said
    assert "--data is missing" in refused("serve", "--model", "torch.nn:Flatten")


def test_detectors_are_listed_with_what_they_need() -> None:
    text = call("list", "detectors")
    for entry in catalogue.entries("detectors"):
        assert f" {entry.name} " in text and entry.access in ("scores", "gradients", "internals")
    assert "squeezed" in text and "N3" in call("show", "squeezed")


def test_serve_answers_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    asked = [sys.executable, "-m", "foible.cli", "serve", "--port", str(port), "--log", "log.jsonl"]
    with subprocess.Popen(
        asked, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as running:  # fmt: skip
        until, answer = time.monotonic() + 120, None
        body = json.dumps({"inputs": torch.zeros(2, 1, 28, 28).tolist()}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"}
        )
        while answer is None and time.monotonic() < until and running.poll() is None:
            try:
                with urllib.request.urlopen(request, timeout=60) as got:
                    answer = json.loads(got.read())
            except OSError:
                time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert answer is not None and len(answer["answers"]) == 2, err
    assert f"http://127.0.0.1:{port}/predict answers; detectors: squeezed" in out
    assert "Traceback" not in err
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
