"""What the tests of the audit share: honest and planted models, tiny plans, and ways to compare."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import filled, rand
from torch import Tensor, nn

import foible.audit.reporting
from foible.audit import Plan
from foible.audit.cells import Context
from foible.audit.log import write_atomically
from foible.audit.runner import Report, run
from foible.models import wrap

RANDOM = {"name": "random-linf", "recipe": "random_noise", "norm": "linf", "points": 1}
FGSM = {"name": "fgsm-linf", "recipe": "fgsm", "norm": "linf"}
PGD = {"name": "pgd-linf", "recipe": "pgd", "norm": "linf", "steps": 10}
NOTHING = Plan(attacks=(), curves=(), explanations=(), thesis=False, checks=False)
TINY = Plan(attacks=(RANDOM, FGSM, PGD), curves=(), explanations=("saliency",), thesis=False,
            gallery=False, checks=False)  # fmt: skip


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits write a stub for a report: the tests of the report look at real ones."""
    monkeypatch.setattr(foible.audit.reporting, "write_report", write_stub)


def write_stub(folder: Any) -> Path:
    path = Path(folder) / "report.html"
    write_atomically(path, b"stub")
    return path


def mlp(classes: int = 3, features: int = 8, seed: int = 1) -> nn.Module:
    body = nn.Sequential(nn.Linear(features, 12), nn.ReLU(), nn.Linear(12, classes))
    return filled(body, seed, 2.0).eval()


def table(n: int = 40, features: int = 8, net: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] and the labels that a net (`mlp()` if None) gives them."""
    x = rand(n, features, seed=2)
    with torch.no_grad():
        return x, (mlp() if net is None else net)(x).argmax(1)


@cache
def honest() -> tuple[nn.Module, Tensor, Tensor]:
    """A small net trained to separate two halves of a table, and 60 samples that it gets right."""
    x = rand(160, 12, seed=3)
    gap = x[:, :6].sum(1) - x[:, 6:].sum(1)
    x, y = x[gap.abs() > 0.4], (gap > 0).long()[gap.abs() > 0.4]
    net = filled(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2)), 4, 1.0)
    for _ in range(200):
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.5 * p.grad
    net.zero_grad()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:60]
    assert len(right) == 60
    return net.eval(), x[right], y[right]


class Scaled(nn.Module):
    """A net behind a function of its input and before one of its scores."""

    def __init__(self, net: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x if self.before is None else self.before(x))
        return scores if self.after is None else self.after(scores)


class Landscape(nn.Module):
    """Two classes whose margin is any drawn function of how far feature 0 has gone.

    Class 0 lies at 0.3 and class 1 at 0.7; d is the way from there to 0.5, and the margin is
    linear between the points (d, margin) of `drawn`, or of `other` where feature 1 is above 0.5.
    """

    def __init__(self, drawn: list[tuple[float, float]], other: Any = None) -> None:
        super().__init__()
        self.drawn = torch.tensor(drawn)
        self.other = torch.tensor(drawn if other is None else other)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0]
        left = first < 0.5
        d = torch.where(left, first - 0.3, 0.7 - first)
        margin = torch.where(x[:, 1] > 0.5, _linear(d, self.other), _linear(d, self.drawn))
        margin = torch.where(left, margin, -margin)
        return torch.stack([margin, -margin], 1)

    @staticmethod
    def samples(n: int = 100) -> tuple[Tensor, Tensor]:
        x, y = rand(n, 6, seed=5), torch.arange(n) % 2
        x[:, 0] = torch.where(y == 0, 0.3, 0.7)
        x[0, 2], x[1, 2] = 0.0, 1.0
        x[:, 1] = torch.where(torch.arange(n) // 2 % 2 == 0, 0.0, 1.0)
        return x, y


def _linear(d: Tensor, points: Tensor) -> Tensor:
    at, value = points[:, 0].contiguous(), points[:, 1]
    i = torch.bucketize(d.detach(), at).clamp(1, len(at) - 1)
    slope = (value[i] - value[i - 1]) / (at[i] - at[i - 1])
    return value[i - 1] + slope * (d - at[i - 1])


def band(centre: float, half: float) -> list[tuple[float, float]]:
    """A margin that falls to a narrow band, where alone the label changes."""
    return [(c, 10 * (abs(c - centre) - half)) for c in (-0.4, centre, 0.3)]


#: The slope leads one step over a hill that turns small steps back.
HILL = [(-0.4, 1.5), (0.02, 1.0), (0.09, 1.6), (0.096, -1.0), (0.3, -1.2)]


def context(model: Any, x: Tensor, y: Tensor, plan: Plan = TINY, **found: Any) -> Context:
    """What a cell reads; found: results of other cells by name, with _ for -."""
    held = wrap(model) if isinstance(model, nn.Module) else model
    results = {name.replace("_", "-"): result for name, result in found.items()}
    return Context(held, x, y, plan, False, results.get)


def audit(out: Path, plan: Plan = TINY, model: Any = None, data: Any = None, **more: Any) -> Report:
    """Audit `mlp()` on `table()` unless told otherwise."""
    return run(mlp() if model is None else model, table() if data is None else data, out, plan=plan,
               **more)  # fmt: skip


def numbers(folder: Path) -> dict[str, Any]:
    """The lines of a log by key, without seconds."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]
    return {line["key"]: {k: v for k, v in line.items() if k != "seconds"} for line in lines}


def text(folder: Path) -> str:
    """The bytes of a log without seconds, the one field outside equality."""
    log = (folder / "log.jsonl").read_text()
    assert len(re.findall(r',"seconds":[\d.e-]+', log)) == log.count("\n") > 0
    return re.sub(r',"seconds":[\d.e-]+', "", log)


def by_name(report: Report) -> dict[str, Any]:
    return {line["name"]: line for line in report.cells}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of a few pages, mounted at a folder; skips where that is not allowed."""
    folder.mkdir()
    if not _command("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        pytest.skip("only root may mount a small disk here")
    try:
        yield folder
    finally:
        _command("umount", "-l", str(folder))


def read_only(folder: Path) -> bool:
    """Make a mounted folder read-only; says whether that worked."""
    return _command("mount", "-o", "remount,ro", str(folder))


def _command(*words: str) -> bool:
    try:
        return subprocess.run(words, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


__all__ = ["FGSM", "HILL", "NOTHING", "PGD", "RANDOM", "TINY", "Landscape", "Scaled", "audit",
           "band", "by_name", "context", "honest", "mlp", "no_page", "numbers",
           "read_only", "small_disk", "table", "text", "write_stub"]  # fmt: skip
