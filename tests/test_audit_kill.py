"""A killed or interrupted audit goes on where it stopped and ends with the same numbers."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from audit_helpers import TINY, Scaled, audit, by_name, mlp, no_page, text
from command_line import python
from torch import Tensor, nn

from foible.audit.reading import read_run
from foible.audit.runner import plan_cells

__all__ = ["no_page"]  # a fixture
VICTIM = Path(__file__).with_name("audit_victim.py")


def struck(folder: Path, kills: int, number: int, pages: str) -> list[dict[str, int]]:
    done = python(str(VICTIM), str(folder), str(kills), str(number), pages)
    assert done.returncode == 0, done.stderr
    told: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == kills
    wanted = text(folder / "calm")
    for i, one in enumerate(told):
        ended = number if number == signal.SIGKILL else 3 << 8
        assert one["first"] == ended and one["second"] == 0, one
        assert text(folder / str(i)) == wanted
        assert (folder / str(i) / "report.html").is_file()
        keys = {
            line["key"] for line in json.loads((folder / "calm/plan.json").read_text())["cells"]
        }
        left = {path.stem for path in (folder / str(i) / "tensors").iterdir()}
        assert left <= keys
    return told


def test_kill_9_and_run_again(tmp_path: Path) -> None:
    struck(tmp_path, 3, signal.SIGKILL, "none")


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(tmp_path: Path) -> None:
    told = struck(tmp_path, 20, signal.SIGKILL, "pages")
    assert len({one["finished"] for one in told}) > 4  # they were spread over the audit


@pytest.mark.slow
def test_interrupts_at_random_moments(tmp_path: Path) -> None:
    struck(tmp_path, 8, signal.SIGINT, "none")


class Stop(nn.Module):
    """Raises Ctrl-C at one of its calls, through the real signal."""

    calls = 0
    at = -1

    def forward(self, scores: Tensor) -> Tensor:
        Stop.calls += 1
        if Stop.calls == Stop.at:
            signal.raise_signal(signal.SIGINT)
        return scores


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, no_page: None, monkeypatch, share) -> None:
    net = Scaled(mlp(), after=Stop())
    monkeypatch.setattr(Stop, "calls", 0)
    audit(tmp_path / "calm", model=net)
    monkeypatch.setattr(Stop, "at", int(share * Stop.calls))
    Stop.calls = 0
    report = audit(tmp_path / "a", model=net, fail_under=True)
    assert not report.complete and report.exit_code == 3 and not report.passed
    assert len(report.cells) < 6 and text(tmp_path / "calm").startswith(
        text(tmp_path / "a") if report.cells else ""
    )
    missing = {name for _, name, _ in read_run(tmp_path / "a").missing}
    assert missing == {c.name for c in plan_cells(TINY)} - set(by_name(report))
    Stop.at = -1
    again = audit(tmp_path / "a", model=net)
    assert again.complete and again.exit_code == 0
    assert text(tmp_path / "a") == text(tmp_path / "calm")
