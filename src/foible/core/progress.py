"""Progress without a dependency: the solver ticks, whoever listens draws a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("foible_progress", default=None)


def tick(rows: int) -> None:
    """Say that `rows` more rows are finished."""
    listener = _listener.get()
    if listener is not None:
        listener(rows)


@contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """Call `listener` with the number of rows at every tick inside the block.

    >>> seen = []
    >>> with listening(seen.append):
    ...     tick(3)
    >>> seen
    [3]
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
