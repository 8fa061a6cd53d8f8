"""Reading a run folder: what was planned, what was measured, and the tensors behind it.

A run folder holds `plan.json`, `log.jsonl` (one line for each finished cell) and
`tensors/KEY.safetensors`. Reading never writes. A killed audit leaves a folder that can be read:
what is not there was *not measured*.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foible.core.errors import LogError

SCHEMA = 1
KINDS = ("clean", "attack", "curve", "stability", "thesis", "strips", "explanation", "check")
_AGAIN = (
    "run the audit again with the same arguments: it keeps what is finished and measures the rest"
)
_NAMES = ("key", "kind", "name", "model")


@dataclass(frozen=True)
class Cell:
    """One finished measurement. Numbers that are None were not measured."""

    key: str
    kind: str
    name: str
    model: str
    n: int | None
    value: float | None
    interval: tuple[float, float] | None
    forwards: int | None
    backwards: int | None
    status: str
    detail: dict[str, Any]
    line: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Run:
    """A run folder, read: `cells` by (model, name) in the plan's order, and what is missing."""

    folder: Path
    plan: dict[str, Any]
    cells: dict[tuple[str, str], Cell]
    missing: tuple[tuple[str, str, str], ...] = ()  # (kind, name, model)

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of the plan."""
        return [
            str(m.get("name", f"model {i + 1}"))
            for i, m in enumerate(self.plan.get("models") or [])
        ]

    def cell(self, model: str, name: str) -> Cell | None:
        """The finished cell `name` of `model`, or None if it was not measured."""
        return self.cells.get((model, name))

    def measured(self, model: str, name: str) -> Cell | None:
        """The cell if it has something to show: not one that failed or did not apply."""
        cell = self.cell(model, name)
        return cell if cell is not None and cell.status == "ok" else None

    def of_kind(self, kind: str, model: str | None = None) -> list[Cell]:
        """Finished cells of one kind, of all models or of one, in the order of the plan."""
        return [c for c in self.cells.values() if c.kind == kind and model in (None, c.model)]

    def tensor(self, cell: Cell | None, name: str) -> npt.NDArray[Any] | None:
        """One tensor of a cell as a numpy array, read at each call; None if it was not kept.

        Raises:
            LogError: the file is there and cannot be read.
        """
        if cell is None:
            return None
        path = self.folder / "tensors" / f"{cell.key}.safetensors"
        if not path.is_file():
            return None
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as tensors:
                if name not in tensors.keys():  # noqa: SIM118  (a safetensors handle is not a dict)
                    return None
                return np.asarray(tensors.get_tensor(name))
        except Exception as error:  # safetensors has errors of its own kinds, and so has the disk
            raise LogError(
                f"{path} cannot be read ({error}). Delete this file and the line of "
                f"{cell.name!r} ({cell.model}) from log.jsonl, then {_AGAIN}."
            ) from error


def read_run(folder: str | Path) -> Run:
    """Read a run folder (schema 1).

    Args:
        folder: with `plan.json`; without `log.jsonl` nothing has been measured yet.

    Returns:
        The run. A torn last line of the log, lines of keys that the plan does not name and kinds
        that this version does not know are left out; of two lines with the same key the last one
        counts.

    Raises:
        LogError: no folder, no plan, a file that is damaged, or another schema; the message says
        what to do.
    """
    folder = Path(folder)
    plan = _plan(folder)
    planned = [(str(c["key"]), str(c.get("model")), str(c.get("name"))) for c in plan["cells"]]
    kinds = {str(c["key"]): str(c.get("kind")) for c in plan["cells"]}
    done: dict[str, Cell] = {}
    for number, line in _lines(folder / "log.jsonl"):
        if str(line.get("key")) in kinds and line.get("kind") in KINDS:
            cell = _cell(line, f"{folder / 'log.jsonl'}, line {number}")
            done[cell.key] = cell
    # One key may stand for two cells: the same weights audited under two names.
    cells = {
        (model, name): replace(done[key], model=model, name=name)
        for key, model, name in planned
        if key in done
    }
    missing = tuple((kinds[key], name, model) for key, model, name in planned if key not in done)
    return Run(folder, plan, cells, missing)


def _plan(folder: Path) -> dict[str, Any]:
    path = folder / "plan.json"
    if not folder.is_dir():
        raise LogError(
            f"{folder} is not a folder. Give the folder that `foible audit --out` wrote."
        )
    if not path.is_file():
        raise LogError(
            f"{folder} has no plan.json, so it is no run folder. Give the one that `--out` named."
        )
    try:
        plan = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LogError(
            f"{path} cannot be read ({error}). Restore it, or audit again into a new folder."
        ) from error
    if not isinstance(plan, dict):
        raise LogError(
            f"{path} holds a {type(plan).__name__}, not an object. Audit again into a new folder."
        )
    _same_schema(plan, str(path))
    cells = plan.get("cells")
    if not isinstance(cells, list) or not all(isinstance(c, dict) and "key" in c for c in cells):
        raise LogError(
            f"{path} does not list its cells, each with a key. Audit again into a new folder."
        )
    return plan


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbered lines of the log. Only the last can be torn: each is whole before the next."""
    if not path.is_file():
        return
    try:
        raw = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LogError(
            f"{path} cannot be read ({error}). Check the rights on the folder."
        ) from error
    last = max((i for i, text in enumerate(raw) if text.strip(b" \t\r\0")), default=-1)
    for number, text in enumerate(raw[: last + 1], start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == last + 1:
                return
            raise LogError(
                f"{path}, line {number} is damaged ({error}). Delete that line, then {_AGAIN}."
            ) from error
        if not isinstance(line, dict):
            if number == last + 1:
                return
            raise LogError(
                f"{path}, line {number} is not an object. Delete that line, then {_AGAIN}."
            )
        _same_schema(line, f"{path}, line {number}")
        yield number, line


def _same_schema(thing: dict[str, Any], where: str) -> None:
    if thing.get("schema") != SCHEMA:
        raise LogError(
            f"{where} has schema {thing.get('schema')!r}, and this foible reads schema {SCHEMA}. "
            "Use the version of foible that plan.json names, or audit again into a new folder."
        )


def _cell(line: dict[str, Any], where: str) -> Cell:
    if not all(isinstance(line.get(name), str) for name in _NAMES):
        raise LogError(
            f"{where} lacks one of {', '.join(_NAMES)}. Delete that line, then {_AGAIN}."
        )
    return Cell(
        key=line["key"],
        kind=line["kind"],
        name=line["name"],
        model=line["model"],
        n=whole(line.get("n")),
        value=real(line.get("value")),
        interval=pair(line.get("interval")),
        forwards=whole(line.get("forwards")),
        backwards=whole(line.get("backwards")),
        status=str(line.get("status", "ok")),
        detail=line["detail"] if isinstance(line.get("detail"), dict) else {},
        line=line,
    )


def real(value: object) -> float | None:
    """A finite number as float, and None for anything else: null, NaN, a word.

    >>> real(1), real(None), real(float("nan"))
    (1.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if np.isfinite(value) else None


def whole(value: object) -> int | None:
    """A count as int, and None for anything else."""
    number = real(value)
    return None if number is None else int(number)


def pair(value: object) -> tuple[float, float] | None:
    """An interval [low, high] of two finite numbers, and None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    low, high = real(value[0]), real(value[1])
    return None if low is None or high is None else (low, high)


def reals(value: object) -> list[float | None]:
    """A list of numbers in which None stands where nothing was measured; [] for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [real(v) for v in value]
