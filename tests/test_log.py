"""The log: what is finished survives a torn line, a full disk, a kill; what is damaged is told."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import audit, no_page, numbers, read_only, small_disk

from foible.audit import log as log_module
from foible.audit.log import Log, write_atomically
from foible.core import files as files_module
from foible.core.errors import LogError

__all__ = ["no_page"]  # a fixture


def line(key: str, **more: Any) -> dict[str, Any]:
    return {"schema": 1, "key": key, "kind": "clean", "value": 0.5, "detail": {}, **more}


def written(folder: Path, *keys: str) -> bytes:
    log = Log(folder)
    for key in keys:
        log.append(line(key), {})
    log.close()
    return (folder / "log.jsonl").read_bytes()


# --- lines


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "deep" / "run")
    x = torch.arange(6).reshape(2, 3)
    log.append(line("a", detail={"words": "é\n\u2028", "pair": (1, 2.5), "flag": True}), {})
    log.append(line("b"), {"x": x, "view": x.T})
    held = dict(log.lines)
    log.close()
    again = Log(tmp_path / "deep" / "run")
    assert again.lines == held and not again.dropped
    assert again.lines["a"]["detail"] == {"words": "é\n\u2028", "pair": [1, 2.5], "flag": True}
    assert again.lines["b"]["tensors"] == ["view", "x"] and again.lines["a"]["tensors"] == []
    from safetensors.torch import load_file

    stored = load_file(again.tensors("b"))
    assert torch.equal(stored["x"], x) and torch.equal(stored["view"], x.T)
    assert again.finished("a") and again.finished("b") and not again.finished("c")
    again.close()


def test_the_last_of_two_lines_counts_and_an_error_is_not_finished(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append(line("a", detail={"error": "no"}), {})
    assert not log.finished("a")
    log.append(line("a", value=0.25), {})
    log.close()
    again = Log(tmp_path)
    assert again.finished("a") and again.lines["a"]["value"] == 0.25
    again.close()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = Log(tmp_path)
    nan, inf = float("nan"), float("inf")
    log.append(line("a", value=nan, interval=(inf, 1), detail={"deep": [{"x": -inf}]}), {})
    log.append(line("b", value=torch.tensor(0.25)), {})
    log.close()
    assert b"NaN" not in (tmp_path / "log.jsonl").read_bytes()
    first, second = (json.loads(s) for s in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["value"] is None and first["interval"] == [None, 1]
    assert first["detail"] == {"deep": [{"x": None}]} and second["value"] == 0.25


# --- torn and damaged


@pytest.mark.parametrize("cut", ["1", "half", "character", "newline", "brace"])
def test_a_torn_last_line_is_cut_off_and_all_before_it_kept(tmp_path: Path, cut: str) -> None:
    whole = written(tmp_path, "a", "b")
    last = json.dumps(line("c", detail={"title": "Böses"}), ensure_ascii=False).encode() + b"\n"
    place = {
        "1": 1, "half": len(last) // 2, "character": last.index("ö".encode()) + 1,
        "newline": len(last) - 1, "brace": len(last) - 2,
    }[cut]  # fmt: skip
    (tmp_path / "log.jsonl").write_bytes(whole + last[:place])
    log = Log(tmp_path)
    assert log.dropped and list(log.lines) == ["a", "b"]
    assert (tmp_path / "log.jsonl").read_bytes() == whole
    log.append(line("c"), {})
    log.close()
    again = Log(tmp_path)
    assert list(again.lines) == ["a", "b", "c"] and not again.dropped
    again.close()


def test_a_whole_last_line_of_another_language_is_kept(tmp_path: Path) -> None:
    whole = written(tmp_path, "a")
    last = json.dumps(line("c", detail={"title": "Böses"}), ensure_ascii=False).encode() + b"\n"
    (tmp_path / "log.jsonl").write_bytes(whole + last)
    log = Log(tmp_path)
    assert not log.dropped and log.lines["c"]["detail"]["title"] == "Böses"
    log.close()


@pytest.mark.parametrize(
    "broken", [b'{"key": "b"', b"\xff\xfe\x00", b"[]", b'{"detail": {}}', b"", b"\x00" * 40]
)
def test_damage_before_the_end_is_told_with_its_place(tmp_path: Path, broken: bytes) -> None:
    whole = written(tmp_path, "a", "b")
    first = whole.index(b"\n") + 1
    spoiled = whole[:first] + broken + b"\n" + whole[first:]
    (tmp_path / "log.jsonl").write_bytes(spoiled)
    with pytest.raises(LogError, match=rf"damaged before its end \(byte {first}\).*delete") as held:
        Log(tmp_path)
    assert (tmp_path / "log.jsonl").read_bytes() == spoiled  # nothing is thrown away unasked
    # Even while the error is held, the repaired file can be opened: the lock was released.
    (tmp_path / "log.jsonl").write_bytes(whole)
    log = Log(tmp_path)
    assert list(log.lines) == ["a", "b"] and held.value is not None
    log.close()


def test_an_empty_log_is_a_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"")
    log = Log(tmp_path)
    assert log.lines == {} and not log.dropped
    log.close()


# --- one writer


def test_a_second_audit_on_the_same_folder_is_refused(tmp_path: Path, no_page: None) -> None:
    first = Log(tmp_path)
    first.append(line("a"), {})
    with pytest.raises(LogError, match="another audit is writing.*--out"):
        Log(tmp_path)
    with pytest.raises(LogError, match="another audit is writing"):
        audit(tmp_path)
    assert not (tmp_path / "plan.json").exists()
    first.append(line("b"), {})
    first.close()
    second = Log(tmp_path)
    assert list(second.lines) == ["a", "b"]
    second.close()


def test_an_audit_that_raises_gives_the_lock_back(tmp_path: Path, no_page: None) -> None:
    with pytest.raises(TypeError):
        audit(tmp_path, about={"classes": 3})
    assert audit(tmp_path).complete


# --- order


def test_tensors_are_on_disk_before_the_line(tmp_path: Path, monkeypatch) -> None:
    log, order = Log(tmp_path), []
    real_sync, real_replace = os.fsync, os.replace

    def sync(fd: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        if order[-1] == "log.jsonl":
            assert log.tensors("a").is_file()
        real_sync(fd)

    def move(source: Any, target: Any) -> None:
        order.append("moved")
        assert log.path.read_bytes() == b"" and not log.tensors("a").exists()
        real_replace(source, target)

    monkeypatch.setattr(log_module.os, "fsync", sync)
    monkeypatch.setattr(log_module.os, "replace", move)
    log.append(line("a"), {"x": torch.ones(3)})
    log.close()
    assert order == ["a.tmp", "moved", "tensors", "log.jsonl"]


def test_a_missing_tensors_file_makes_its_cell_run_again(tmp_path: Path, no_page: None) -> None:
    audit(tmp_path)
    before = numbers(tmp_path)
    (lost,) = [k for k, v in before.items() if v["name"] == "fgsm-linf"]
    (tmp_path / "tensors" / f"{lost}.safetensors").unlink()
    log = Log(tmp_path)
    assert not log.finished(lost) and all(log.finished(k) for k in before if k != lost)
    log.close()
    report = audit(tmp_path)
    assert report.notes == [f"resumed: {len(before) - 1} of {len(before)} cells were already done"]
    assert (tmp_path / "tensors" / f"{lost}.safetensors").is_file()
    assert numbers(tmp_path) == before
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(before) + 1


# --- disks


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EACCES, "cannot be written"),
        (errno.EROFS, "cannot be written"),
        (errno.ENOSPC, "full: free some space"),
        (errno.EIO, "cannot be used as a run folder"),
    ],
)
def test_a_folder_that_refuses_is_told(tmp_path: Path, monkeypatch, code: int, said: str) -> None:
    written(tmp_path, "a")

    def refuse(*args: Any, **more: Any) -> Any:
        raise OSError(code, os.strerror(code))

    for module in (log_module, files_module):
        monkeypatch.setattr(module, "open", refuse, raising=False)
    with pytest.raises(LogError, match=said) as error:
        Log(tmp_path)
    assert str(tmp_path) in str(error.value) and " 0 finished" not in str(error.value)
    with pytest.raises(LogError, match=said):
        write_atomically(tmp_path / "plan.json", b"{}")
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "tensors"]
    log = Log(tmp_path)
    assert log.finished("a")
    log.close()


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogError, match="cannot be used as a run folder"):
        Log(tmp_path / "file")


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_line_that_cannot_be_written_leaves_the_log_whole(
    tmp_path: Path, monkeypatch, failing: str
) -> None:
    log = Log(tmp_path)
    log.append(line("a"), {})
    log.append(line("b"), {"x": torch.ones(2)})
    whole = log.path.read_bytes()

    class Full:
        """A file that takes half a line, as a disk that fills up does."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "full")

    def no_sync(fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        if failing == "write":
            log._file = Full(log._file)
        else:
            patched.setattr(log_module.os, "fsync", no_sync)
        with pytest.raises(LogError, match="full: free some space; the 2 finished cells are kept"):
            log.append(line("c"), {})
    assert log.path.read_bytes() == whole and list(log.lines) == ["a", "b"]
    with pytest.raises(LogError, match="another audit"):
        Log(tmp_path)  # the lock is still held
    log.append(line("c"), {})  # and the same log goes on
    log.close()
    again = Log(tmp_path)
    assert list(again.lines) == ["a", "b", "c"] and again.finished("b")
    again.close()


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path: Path, no_page: None) -> None:
    calm = tmp_path / "calm"
    audit(calm)
    wanted = numbers(calm)
    page, reached = os.sysconf("SC_PAGESIZE"), set()
    with small_disk(tmp_path / "disk", "512k") as disk:
        for room in range(1, 30):
            ballast = disk / "ballast"
            ballast.write_bytes(b"")
            run = disk / f"run{room}"
            run.mkdir()
            _fill(disk, ballast, room * page)
            try:
                audit(run)
            except LogError as error:
                assert "is full: free some space" in str(error)
                kept = numbers(run) if (run / "log.jsonl").exists() else {}
                assert all(wanted[key] == value for key, value in kept.items())
                reached.add(len(kept))
                assert "finished cells are kept, and the same command goes on" in str(error)
                assert not list(run.glob("**/*.tmp"))
                ballast.unlink()
                report = audit(run)
                assert report.complete and numbers(run) == wanted
                resumed = f"resumed: {len(kept)} of {len(wanted)}"
                assert (resumed in " ".join(report.notes)) == bool(kept)
                for path in run.glob("**/*.*"):
                    path.unlink()
            else:
                break
        else:
            pytest.fail("the disk never held the whole audit")
    assert reached >= {0, 1, 2, len(wanted)}  # it filled up at many places


def _fill(disk: Path, ballast: Path, leave: int) -> None:
    space = os.statvfs(disk)
    with open(ballast, "wb") as file:
        file.write(b"\0" * max(0, space.f_bavail * space.f_frsize - leave))


def test_a_read_only_disk_is_told_and_keeps_what_is_there(tmp_path: Path, no_page: None) -> None:
    with small_disk(tmp_path / "disk", "512k") as disk:
        audit(disk / "run")
        before = numbers(disk / "run")
        if not read_only(disk):
            pytest.skip("a mounted disk could not be made read-only")
        for out in (disk / "run", disk / "new"):
            with pytest.raises(LogError, match="cannot be written.*choose another --out"):
                audit(out)
        assert numbers(disk / "run") == before and not (disk / "new").exists()
