"""A guarded model behind HTTP: every body gets an answer or a sentence, and the server stays up."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import foible
from foible.detect import Detector, Feature, Largest, Watch, guard
from foible.serve import Service, service
from foible.serve.bodies import Refused, Wanted, checked, from_json, from_picture

SHAPE = (1, 8, 8)


class Mean(Feature):
    def __call__(self, oracle, rows, state, draw, *, create_graph=False) -> Tensor:
        return rows.x.flatten(1).mean(1, keepdim=True)


class Net(nn.Module):
    """Three classes; fails on request, where the first pixel is 0.5, and gives NaN at 0.25."""

    def __init__(self) -> None:
        super().__init__()
        self.nan = float("nan")
        self.head = nn.Linear(64, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3, 64))

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0, 0, 0] == 0.5).any()):
            raise RuntimeError("no more memory")
        broken = x[:, 0, 0, :1] == 0.25
        return self.head(x.flatten(1)).masked_fill(broken, self.nan)


def made() -> Service:
    """A guard that refuses what is brighter than almost all of dark pictures."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(200, *SHAPE, generator=rng) * 0.4
    net = Net().eval()
    y = net(x).argmax(1)
    watch = Detector("bright", Mean(), Largest(normed=False)).fit(net, (x, y))
    return Service(guard(net, watch), SHAPE, ("a", "b", "<c>"))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import uvicorn

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    config = uvicorn.Config(service(made(), 20_000), port=port, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def ask(address: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(address + path, timeout=60) as answer:
        return str(answer.read().decode())


def picture(value: float, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full(size, round(value * 255), np.uint8)).save(out, kind)
    return out.getvalue()


def told(x: Any) -> bytes:
    return json.dumps({"inputs": x}).encode()


def bomb() -> bytes:
    """A picture of ten billion pixels in a hundred bytes."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)), (b"IEND", b"")]
    held = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
            for t, d in parts]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(held)


def deep() -> bytes:
    """Sixteen bits a pixel, which Pillow would cut to white."""
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), 6553, np.uint16)).save(out, "PNG")
    return out.getvalue()


DARK, LIGHT = np.full(SHAPE, 0.1).tolist(), np.full(SHAPE, 0.9).tolist()


def test_it_answers_or_abstains_with_a_reason_and_a_map(address: str) -> None:
    status, content = ask(address, told([DARK, LIGHT]))
    assert status == 200 and content["seconds"] > 0
    dark, light = content["answers"]
    assert dark["label"] in (0, 1, 2) and not dark["abstained"] and 0 < dark["confidence"] <= 1
    assert dark["name"] == ("a", "b", "<c>")[dark["label"]] and "map" not in dark
    assert light["label"] is None and light["abstained"] and "confidence" not in light
    assert light["reasons"][0].startswith("bright: suspicion 0.9 is above its level 0.2")
    assert light["map"].startswith("data:image/png;base64,")
    assert ask(address, told(DARK))[1]["answers"][0]["label"] == dark["label"]


def test_pictures_are_bodies_too(address: str) -> None:
    for kind in ("PNG", "JPEG"):
        status, content = ask(address, picture(0.1, kind=kind), f"image/{kind.lower()}")
        assert status == 200 and not content["answers"][0]["abstained"], content
    assert ask(address, picture(0.95), "image/png")[1]["answers"][0]["abstained"]


BAD = [
    (b"{", "application/json", 400, "no JSON"),
    (b"[" * 5000 + b"]" * 5000, "application/json", 400, "no JSON"),
    (b"\xff\xfe\x00", "application/json", 400, "no JSON"),
    (b"[1]", "application/json", 400, '"inputs"'),
    (told([[1, 2], [3]]), "application/json", 422, "numbers in lists of equal length"),
    (told("x"), "application/json", 422, "numbers"),
    (told({"a": 1}), "application/json", 422, "numbers"),
    (told([]), "application/json", 422, "shape"),
    (told(3), "application/json", 422, "shape"),
    (told(np.zeros((1, 9, 9)).tolist()), "application/json", 422, "shape (1, 9, 9)"),
    (told(np.zeros((257, 1, 8, 8)).astype(int).tolist()), "application/json", 413, "bytes"),
    (told(DARK).replace(b"0.1", b"NaN", 1), "application/json", 422, "NaN"),
    (told(DARK).replace(b"0.1", b"1e999", 1), "application/json", 422, "infinity"),
    (told(DARK).replace(b"0.1", b"7", 1), "application/json", 422, "range is 0 to 1"),
    (told(DARK), "text/html", 415, "text/html"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image/png", 400, "no PNG or JPEG"),
    (picture(0.1, (9, 8)), "image/png", 422, "8 x 9 pixels"),
    (b"", "application/json", 400, "no JSON"),
    (told(DARK).replace(b"0.1", b"0.5", 1), "application/json", 500, "RuntimeError"),
    (told(DARK).replace(b"0.1", b"0.25", 1), "application/json", 500, "NaN"),
    (told(DARK).replace(b"0.1", b'"0.1"', 1), "application/json", 422, "no numbers"),
    (told(DARK).replace(b"0.1", b"null", 1), "application/json", 422, "no numbers"),
    (bomb(), "image/png", 413, "far too many pixels"),
    (deep(), "image/png", 415, "one of 8 bits"),
]


@pytest.mark.parametrize(("body", "kind", "status", "said"), BAD)
def test_a_bad_body_gets_a_sentence_and_harms_nobody(address, body, kind, status, said) -> None:
    got, content = ask(address, body, kind)
    assert got == status and said in content["error"] and "Traceback" not in content["error"]
    assert ask(address, told(DARK))[0] == 200


def test_a_huge_picture_is_not_decoded(address: str, monkeypatch) -> None:
    huge = picture(0.0, (3000, 3000))
    assert len(huge) < 20_000  # 27 kB a file, nine megapixels

    def decoded(*_: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "convert", decoded)
    got, content = ask(address, huge, "image/png")
    assert got == 413 and "3000 x 3000" in content["error"]


def test_a_long_body_is_not_read_to_its_end(address: str) -> None:
    """Without a length: the server answers before all of it was sent, or closes the line."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        chunk = b"4000\r\n" + b"1" * 0x4000 + b"\r\n"
        line.sendall(chunk + chunk)
        answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert ask(address, told(DARK))[0] == 200


def test_health_and_metrics_count(address: str) -> None:
    ask(address, told([DARK, LIGHT]))
    ask(address, b"{")
    health = json.loads(get(address, "/health"))
    assert health["status"] == "ok" and health["shape"] == [1, 8, 8]
    assert health["asked"] >= 2 and health["refused"] >= 1 and "bright" in health["detectors"]
    metrics = get(address, "/metrics")
    numbers = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert float(numbers['foible_requests_total{status="200"}']) >= 1
    assert float(numbers['foible_requests_total{status="400"}']) >= 1
    assert float(numbers['foible_refusals_total{detector="bright"}']) >= 1
    assert float(numbers["foible_seconds_count"]) >= 1


def load(address: str, seconds: float, workers: int = 4) -> tuple[list[int], list[float]]:
    """Mixed good and bad requests from several threads; statuses and seconds of each."""
    wanted = [(told([DARK, LIGHT]), "application/json", 200), (picture(0.2), "image/png", 200)]
    wanted += [(body, kind, status) for body, kind, status, _ in BAD]
    end, lock = time.monotonic() + seconds, threading.Lock()
    statuses: list[int] = []
    times: list[float] = []
    wrong: list[Any] = []

    def work(start: int) -> None:
        place = start
        while time.monotonic() < end:
            body, kind, status = wanted[place // 2 % len(wanted)] if place % 2 else wanted[0]
            place += 1
            began = time.monotonic()
            try:
                got = ask(address, body, kind)[0]
            except OSError as error:
                got = -1
                wrong.append(error)
            with lock:
                statuses.append(got)
                times.append(time.monotonic() - began)
                if got != status:
                    wrong.append((body[:60], got, status))

    threads = [threading.Thread(target=work, args=(7 * i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    return statuses, times


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("seconds", [pytest.param(3.0), pytest.param(60.0, marks=pytest.mark.slow)])
def test_under_a_mixed_load_no_answer_is_lost_and_memory_stays(address: str, seconds) -> None:
    load(address, seconds / 3)
    before = memory()
    statuses, times = load(address, seconds)
    assert len(statuses) > 10 and {200, 400, 413, 422, 500} <= set(statuses)
    assert memory() < before * 1.05 + 8 * 2**20
    assert np.quantile(times, 0.99) < 30
    assert json.loads(get(address, "/health"))["status"] == "ok"


# --- bodies, without a server


def test_bodies_keep_numbers_and_bounds() -> None:
    wanted = Wanted((1, 2, 2), (-1.0, 3.0), 5)
    x = from_json(told([[[0.25, -1], [3, 1e-9]]]), wanted)
    assert x.dtype == torch.float32 and x.tolist() == [[[[0.25, -1.0], [3.0, pytest.approx(1e-9)]]]]
    levels = np.array([[0, 255], [51, 102]], np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    got = from_picture(out.getvalue(), wanted)
    np.testing.assert_allclose(got[0, 0].numpy(), -1 + 4 * (levels / 255), rtol=1e-6)
    with pytest.raises(Refused, match="between 1 and 5"):
        checked(np.zeros((6, 1, 2, 2)), wanted)
    with pytest.raises(Refused, match="no pictures"):
        from_picture(out.getvalue(), Wanted((7,), (0, 1)))


def test_a_table_gets_its_map_in_numbers() -> None:
    rng = torch.Generator().manual_seed(0)
    net = nn.Linear(5, 2)
    x = torch.rand(60, 5, generator=rng) * 0.4
    watch = Detector("bright", Mean(), Largest(normed=False)).fit(net, (x, net(x).argmax(1)))
    content = Service(guard(net, watch), (5,)).answer(told([0.9] * 5), "application/json")
    (one,) = content["answers"]
    assert one["abstained"] and len(one["map"]) == 5


def test_a_suspicion_that_is_no_number_is_refused_and_is_json() -> None:
    """Nothing is known of such an input, which is no reason to let it through."""
    held = made()
    watch = held.guard.watches["bright"]
    blind = Detector("blind", Blind(), Largest(normed=False))
    held.guard = guard(held.guard.model, Watch(blind, watch.state))
    x = torch.full((2, *SHAPE), 0.1)
    x[1] = 0.15
    answer = held.guard(x)
    assert answer.abstained.tolist() == [False, True] and answer.reasons == [[], ["blind"]]
    content = held.answer(told(x.tolist()), "application/json")
    json.dumps(content, allow_nan=False)
    assert content["answers"][1]["suspicion"] == {"blind": None}


class Blind(Mean):
    def __call__(self, oracle, rows, state, draw, *, create_graph=False) -> Tensor:
        found = super().__call__(oracle, rows, state, draw)
        return found.masked_fill(found > 0.12, float("nan"))


def test_a_model_without_a_gradient_refuses_without_a_map() -> None:
    held = made()
    hidden = foible.defend.jpeg(held.guard.model)
    service_ = Service(guard(hidden, held.guard.watches["bright"]), SHAPE)
    (one,) = service_.answer(told(LIGHT), "application/json")["answers"]
    assert one["abstained"] and one["reasons"] and "map" not in one


def test_what_is_missing_says_how_to_get_it(monkeypatch) -> None:
    import sys

    from foible.core.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtra, match=r"pip install 'foible\[serve\]'"):
        service(made())
