"""A module as a user might write one, good and bad, and a folder to run it in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

MODULE = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

opened = []

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def picture_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))

class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[1][0])

ready = make()
number = 3

def raises():
    raise RuntimeError("no GPU here\\nand a second line")

def weights_only():
    return make().state_dict()

def leaves():
    raise SystemExit("bye")

def wrapped():
    import foible
    return foible.wrap(make(), bounds=(-1, 1))

def xy():
    x = torch.linspace(0, 1, 48).reshape(4, 12)
    return x, torch.tensor([0, 1, 2, 0])

tensors = TensorDataset(torch.rand(40, 2), torch.arange(40) % 4)

class Slow(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, i):
        opened.append(i)
        return torch.full((3,), i / 400), i % 2

class Told(Slow):
    targets = [i % 2 for i in range(400)]

class Ragged(Slow):
    def __getitem__(self, i):
        return torch.zeros(2 + i % 2), i % 2

class Broken(Slow):
    def __getitem__(self, i):
        raise KeyError("lost")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A current directory with a module `usercode`, and what it must not leave behind."""
    (tmp_path / "usercode.py").write_text(MODULE)
    (tmp_path / "needy.py").write_text("import surely_not_installed")
    (tmp_path / "hasty.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("usercode", "needy", "hasty"):
        sys.modules.pop(name, None)
