"""How tests call the command line, and the code of a user that it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from foible.cli.verbs import build

SRC = Path(__file__).resolve().parents[1] / "src"
MODULE = """
import torch
from torch import nn

def make():
    torch.random.default_generator.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 3))

def raises():
    raise RuntimeError("no GPU here")

def nan():
    net = make()
    nn.init.constant_(net[2].weight, float("nan"))
    return net

def data():
    x = torch.linspace(0, 1, 240).reshape(40, 6).roll(7, 0)
    return x, make().eval()(x).argmax(1)

def rgb():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))

def colours():
    return torch.rand(9, 3, 8, 8), torch.arange(9) % 3
"""


def call(*args: Any, code: int = 0) -> str:
    """Run the command line; returns all it printed, stdout and stderr."""
    result = CliRunner().invoke(build(), [str(a) for a in args], prog_name="foible")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return str(result.output)


def refused(*args: Any) -> str:
    """Run what must be a mistake; returns what it was told."""
    text = call(*args, code=2)
    assert text.startswith("foible: ") and "\n" not in text.strip()
    return text


def environment() -> dict[str, str]:
    """The environment of a process that finds foible, installed or not."""
    paths = [str(SRC), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def python(*code: str, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
