"""A training that is killed, meets a NaN or a full disk, or runs on two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import Stopping, attack, data, net, same

from foible.core.errors import LogError, ModelError
from foible.defend import Batch, Loss, Settings, plain, trades, train
from foible.defend.losses import cross_entropy
from foible.defend.training import checkpoints
from foible.defend.training.devices import Devices
from foible.defend.training.feeding import Loader, Share, Tensors
from foible.defend.training.running import Training

HERE = Path(__file__).resolve().parent


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from training import *
from foible.defend import *
from foible.defend.training.running import Training
out, at = sys.argv[1], int(sys.argv[2])
if at >= 0:
    def dying(self, fed, seed, inner=Training._batch):
        inner(self, fed, seed)
        if self.step == at:
            os.kill(os.getpid(), signal.SIGKILL)
    Training._batch = dying
settings = Settings(batch=16, save_seconds=0.02, patience=9)
train(net(drop=0.3), data(), trades(attack()), 6, out=out, settings=settings)
"""


def killed(folder: Path, at: int) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE), str(HERE.parent / "src")]
    code = KILLED.format(paths=paths)
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(at)], capture_output=True, text=True,
        timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_resumed_after_ten_kills_at_random_steps_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    _ends_alike(tmp_path, 10)


def test_resumed_after_two_kills_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    _ends_alike(tmp_path, 2)


def _ends_alike(tmp_path: Path, kills: int) -> None:
    settings = Settings(batch=16, save_seconds=0.02, patience=9)
    whole = train(net(drop=0.3), data(), trades(attack()), 6, settings=settings)
    steps = torch.randperm(34, generator=torch.Generator().manual_seed(kills))[:kills] + 1
    folder = tmp_path / "run"
    for step in sorted(steps.tolist()):
        assert killed(folder, step).returncode == -signal.SIGKILL
    made = train(net(drop=0.3), data(), trades(attack()), 6, out=folder, settings=settings)
    assert same(whole, made)


@pytest.mark.parametrize("at", [3, 6, 11])
def test_ctrl_c_ends_the_step_and_the_same_call_goes_on_to_the_same_bits(tmp_path, at) -> None:
    """With a batch norm, whose running means a half step would leave moved; 6 steps an epoch."""
    settings = Settings(batch=16, save_seconds=1e9)
    normed = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), net()[1], net()[3])
    through = Interrupted(-1)
    whole = train(normed, data(), through, 2, settings=settings)
    assert len(set(through.drawn)) == 12  # each step has a random state of its own
    with pytest.raises(KeyboardInterrupt):
        train(normed, data(), Interrupted(at), 2, out=tmp_path, settings=settings)
    state = torch.load(tmp_path / checkpoints.NAME, weights_only=True)
    assert state["step"] == at == 6 * state["epoch"] + state["position"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(whole, train(normed, data(), Interrupted(-1), 2, out=tmp_path, settings=settings))


class Interrupted(Loss):
    """Ctrl-C in the middle of a step, after a look at the batch."""

    def __init__(self, at: int) -> None:
        self.at, self.steps, self.drawn = at, 0, list[float]()

    def __repr__(self) -> str:
        return "Interrupted"

    def __call__(self, batch: Batch) -> Tensor:
        batch.scores(batch.x.flip(1))
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        self.drawn.append(float(torch.rand(())))
        known = batch.memory["known"] = batch.memory.get("known", 0) + 1
        return cross_entropy(batch.scores(batch.x), batch.y) * known


def test_half_a_step_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(net(), data(), Stopping(3), 2, out=tmp_path, settings=Settings(batch=16))
    assert not (tmp_path / checkpoints.NAME).exists()


class Noisy(torch.utils.data.Dataset):
    """A data set that augments: it draws from the random state that it finds."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = data()
        return (x[i] + 0.05 * torch.rand(4)).clamp(0, 1), y[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_draws_is_the_same_when_it_goes_on(workers: int) -> None:
    """Whatever was drawn elsewhere, and although the batches before are another process's."""

    def batches(start: int) -> list[Tensor]:
        loader = torch.utils.data.DataLoader(Noisy(), 16, shuffle=True, num_workers=workers)
        found = []
        for fed in Loader(loader).batches(7, Share(), start):
            found.append(fed.x)
            torch.rand(3)  # what a loss may draw between two batches
        return found

    before = torch.random.get_rng_state()
    torch.manual_seed(1)
    whole = batches(0)
    torch.manual_seed(2)
    later = batches(2)
    torch.random.set_rng_state(before)
    assert len(whole) == 6 and len(later) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))
    assert not torch.equal(whole[0].sort(0).values, whole[1].sort(0).values)


def test_a_mask_of_infinities_is_no_reason_not_to_save(tmp_path: Path) -> None:
    masked = net()
    masked.register_buffer("mask", torch.tensor(float("-inf")))
    train(masked, data(), plain(), 1, out=tmp_path)
    assert (tmp_path / checkpoints.NAME).exists()


def test_weights_that_explode_in_the_last_step_are_not_handed_out() -> None:
    def exploding(parameters):
        return torch.optim.SGD(parameters, lr=float("inf"))

    settings = Settings(batch=96, hold_out=0, optimiser=exploding, average=0)
    with pytest.raises(ModelError, match="not finite after the last step, 1"):
        train(net(), data(), plain(), 1, settings=settings)


def test_another_number_of_processes_is_another_training() -> None:
    held = Training(net(), data(), plain(), 1, None, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "__init__", _twofold)
        assert Training(net(), data(), plain(), 1, None, None, None).identity != held.identity


def _twofold(self: Devices, precision: str = "no", real=Devices.__init__) -> None:
    real(self, precision)
    self.world = 2


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path) -> None:
    settings = Settings(batch=16, hold_out=0, save_seconds=0)
    with pytest.raises(ModelError, match=r"nan at step 4 \(epoch 1, batch 5, samples \d+") as told:
        train(net(), data(), Stopping(4, float("nan")), 2, out=tmp_path, settings=settings)
    assert f"checkpoint is in {tmp_path}" in str(told.value)
    state = torch.load(tmp_path / checkpoints.NAME, weights_only=True)
    assert state["step"] == 4 and checkpoints.finite(state["net"])


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path: Path) -> None:
    def exploding(parameters):
        return torch.optim.SGD(parameters, lr=float("inf"))

    settings = Settings(batch=16, hold_out=0, save_seconds=0, optimiser=exploding, average=0)
    with pytest.raises(ModelError, match="none was written yet"):
        train(net(), data(), plain(), 2, out=tmp_path, settings=settings)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch) -> None:
    checkpoints.save(tmp_path, {"identity": "a", "step": 1})
    real = os.fsync

    def full(handle: int) -> None:
        real(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LogError, match="step 2 could not be written.*No space.*before it is whole"):
        checkpoints.save(tmp_path, {"identity": "a", "step": 2})
    held = checkpoints.load(tmp_path, "a")
    assert held is not None and held["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.NAME]


def test_a_disk_that_fills_up_at_the_history_is_told_too(tmp_path: Path, monkeypatch) -> None:
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).suffix == ".csv":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LogError, match="history.csv could not be written.*No space"):
        train(net(), data(), plain(), 1, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.NAME]
    monkeypatch.undo()
    train(net(), data(), plain(), 1, out=tmp_path)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


def test_a_damaged_or_foreign_checkpoint_is_told(tmp_path: Path) -> None:
    train(net(), data(), plain(), 1, out=tmp_path)
    with pytest.raises(LogError, match="of another training"):
        train(net(), data(), plain(), 2, out=tmp_path)
    path = tmp_path / checkpoints.NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LogError, match="cannot be read"):
        train(net(), data(), plain(), 1, out=tmp_path)


# --- two processes

TWIN = """
import sys
sys.path[:0] = {paths!r}
from training import *
from foible.defend import *
settings = Settings(batch=int(sys.argv[2]), hold_out=0, average=0, lr=0.01)
x, y = data()
train(net(torch.float64), (x.double(), y), Written(adversarial(attack(3)), sys.argv[1]), 2,
      settings=settings)
"""


def test_two_processes_give_the_curve_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    """float64, noise keyed by sample: the first ten steps to 1e-5 (and to 1e-9, measured)."""
    script = tmp_path / "twin.py"
    script.write_text(TWIN.format(paths=[str(HERE), str(HERE.parent / "src")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    env |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    alone = [sys.executable, str(script), str(tmp_path / "one"), "16"]
    subprocess.run(alone, check=True, env=env, timeout=120)
    port = str(20000 + os.getpid() % 20000)
    peers = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "two"), "8"],
            env={**env, "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": r, "LOCAL_RANK": r},
        )
        for r in "01"
    ]
    end = time.monotonic() + 120
    assert [p.wait(max(1, end - time.monotonic())) for p in peers] == [0, 0]

    def curve(name: str) -> Tensor:
        return torch.tensor([float(v) for v in (tmp_path / name).read_text().split()],
                            dtype=torch.float64)  # fmt: skip

    one, two = curve("one.0"), (curve("two.0") + curve("two.1")) / 2
    assert len(one) == len(two) == 12 and one[0] != one[-1]
    torch.testing.assert_close(one[:10], two[:10], rtol=0, atol=1e-9)


def test_processes_share_every_batch_without_overlap() -> None:
    x, y = data(35)
    held = Tensors((x, y), 8)
    parts = [list(held.batches(3, Share(r, 2))) for r in (0, 1)]
    assert [len(p) for p in parts] == [held.steps(Share(0, 2))] * 2 == [3, 3]
    for a, b in zip(*parts, strict=True):
        assert not set(a.ids.tolist()) & set(b.ids.tolist())
    seen = torch.cat([fed.ids for part in parts for fed in part]).sort().values
    assert torch.equal(seen, torch.arange(35))
    later = list(held.batches(3, Share(0, 2), start=1))
    assert all(torch.equal(a.x, b.x) for a, b in zip(later, parts[0][1:], strict=True))
    loader = Loader([(x[i : i + 5], y[i : i + 5]) for i in range(0, 35, 5)])
    shared = [[fed.ids.tolist() for fed in loader.batches(0, Share(r, 2))] for r in (0, 1)]
    assert shared[0][0] == [0, 1, 2, 3, 4] and shared[1][2] == [25, 26, 27, 28, 29]
    assert len(shared[0]) == len(shared[1]) == 3
