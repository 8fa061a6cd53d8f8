"""The append-only log: one fsynced line a finished cell, its tensors on disk before it.

A line exists only if its cell is finished; a torn last line (a kill, a full disk) is dropped.
Identity, not existence, decides what is already done: the key of a cell is a hash of
everything that its numbers depend on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from foible.core.errors import LogError
from foible.core.files import replace_file

SCHEMA = 1


class Log:
    """The log of one run folder, open for appending and locked against a second audit.

    lines: the finished cells by key. dropped: True if a torn last line was cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "log.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        self.dropped = False
        try:
            (folder / "tensors").mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")  # noqa: SIM115  # held open for the whole audit
        except OSError as error:
            raise _explain(error, folder) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self.close()
            raise LogError(
                f"another audit is writing to {folder}: wait for it, or choose another --out"
            ) from error
        except OSError as error:
            self.close()
            raise _explain(error, folder) from error
        except LogError:
            self.close()  # a damaged log is not held against the one who repairs it
            raise

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        good = 0
        for raw in data.splitlines(keepends=True):
            line = _parse(raw)
            if line is None:
                # Only the last line can be torn; a broken one before it is another's work.
                if good + len(raw) < len(data):
                    raise LogError(
                        f"{self.path} is damaged before its end (byte {good}): move the file away, "
                        "or delete the broken line by hand, and run again"
                    )
                break
            self.lines[line["key"]] = line
            good += len(raw)
        if good < len(data):
            self.dropped = True
            self._truncate(good)

    def tensors(self, key: str) -> Path:
        """Return where a cell's tensors lie."""
        return self.folder / "tensors" / f"{key}.safetensors"

    def finished(self, key: str) -> bool:
        """Return whether a cell is done: a line, not of an error, and its tensors still there."""
        line = self.lines.get(key)
        if line is None or "error" in line["detail"]:
            return False
        return not line.get("tensors") or self.tensors(key).exists()

    def append(self, line: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write tensors, then the line, each to disk before the next step.

        Raises LogError for a full or read-only disk; what was finished before stays whole.
        """
        line = {**line, "tensors": sorted(tensors)}
        end = self._file.seek(0, os.SEEK_END)
        try:
            if tensors:
                self._save(line["key"], tensors)
            text = json.dumps(_plain(line), allow_nan=False, separators=(",", ":"))
            self._file.write(text.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._recover(end)
            raise _explain(error, self.folder, len(self.lines)) from error
        self.lines[line["key"]] = json.loads(text)

    def close(self) -> None:
        """Release the lock."""
        if not self._file.closed:
            self._file.close()

    def _save(self, key: str, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        path = self.tensors(key)
        replace_file(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _recover(self, end: int) -> None:
        """Cut off a half-written line. A buffer that cannot be flushed is thrown away."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._file = open(self.path, "ab+")  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._truncate(end)

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._file.fileno(), size)
        os.fsync(self._file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step, so that a kill leaves the old or the new one, never half."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise _explain(error, path.parent) from error


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    good = isinstance(line, dict) and "key" in line and "detail" in line
    return line if good else None


def _plain(value: Any) -> Any:
    """Make data JSON-able: what is not finite was not measured, and becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _explain(error: OSError, folder: Path, finished: int | None = None) -> LogError:
    count = "" if finished is None else f"{finished} "
    kept = f"; the {count}finished cells are kept, and the same command goes on from there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LogError(f"the disk of {folder} is full: free some space{kept}")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return LogError(f"{folder} cannot be written ({error.strerror}): choose another --out")
    return LogError(f"{folder} cannot be used as a run folder: {error}")
