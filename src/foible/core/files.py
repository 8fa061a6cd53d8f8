"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file beside the one that is there and put it in its place: a kill leaves either.

    Raises OSError where the disk does not take it; the old file stays, and no draft is left.
    """
    draft = path.with_suffix(".tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
