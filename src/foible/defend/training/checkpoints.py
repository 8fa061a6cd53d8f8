"""A training on disk: one file, whole or not there, read without running code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import LogError
from foible.core.files import replace_file

NAME = "checkpoint.pt"
SCHEMA = 1


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside the last one and put it in its place.

    A kill at any time leaves the last one or this one. Raises LogError where the disk does not take
    it, e.g. because it is full; the last one stays as it was.
    """
    held = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, held)
    path = folder / NAME
    try:
        replace_file(path, held.getbuffer())
    except OSError as error:
        left = "the checkpoint before it is whole" if path.exists() else "there is none before it"
        raise LogError(
            f"the checkpoint of step {state.get('step')} could not be written to {folder} "
            f"({error.strerror or error}); {left}: make room and run the same command again"
        ) from error


def load(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the checkpoint of a folder, or None where there is none.

    identity: what the run is; a checkpoint of another run is refused, as is a damaged file.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found, schema = state["identity"], state["schema"]
    except Exception as error:
        raise LogError(
            f"{path} cannot be read as a checkpoint ({error}): move it away to start again"
        ) from error
    if schema != SCHEMA or found != identity:
        raise LogError(
            f"{path} is of another training (net, data, loss, epochs, settings or the number "
            "of processes differ): give another folder, or move it away to start again"
        )
    return state


def finite(state: dict[str, Any]) -> bool:
    """Say whether all numbers of a state are finite."""
    return all(
        bool(torch.isfinite(value).all())
        for value in state.values()
        if isinstance(value, Tensor) and value.is_floating_point()
    )
