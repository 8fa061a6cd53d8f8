"""Running the code of a user: "package.module:name", and only that module."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from foible.core.errors import InputError


@contextmanager
def importable_here() -> Iterator[None]:
    """Let modules of the current directory be imported inside the block, as `python -m` would."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # a module that was written a moment ago is found, too
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def named_thing(source: str, what: str) -> Any:
    """Import "package.module:name" and return what it names; the module's code runs.

    source: as above; dots after the colon reach into objects. what: what the caller wanted, for
    the message. Raises InputError where the module or the name is missing, or the module raises.
    """
    module_name, _, name = source.partition(":")
    if not module_name or not name:
        raise InputError(f'{source!r} is not "package.module:name": {what} is named like that')
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        stem = module_name.removesuffix(".py").strip("./\\")
        dotted = stem.replace("/", ".").replace("\\", ".")
        raise InputError(
            f"{source!r} names a file, and a module is wanted: write {dotted}:{name} and run "
            "foible in the folder that Python would import it from"
        )
    with importable_here():
        thing: Any = _module(module_name, source)
    for piece in name.split("."):
        if not hasattr(thing, piece):
            close = get_close_matches(piece, [n for n in dir(thing) if n[0] != "_"], 3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"{source!r}: {module_name} has nothing called {piece!r}{hint}")
        thing = getattr(thing, piece)
    return thing


def called(thing: Callable[[], Any], source: str, takes: str = "") -> Any:
    """Call a user's function without arguments; its error becomes the cause of a short InputError.

    takes: what to say beside an error, for example how such a function should look.
    """
    with importable_here():
        try:
            return thing()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{source} raised {told(error)}: it is called without arguments{takes}"
            ) from error


def told(error: BaseException) -> str:
    """Return an error in one line, with the last line of the user's code that led to it.

    >>> try:
    ...     int("x")
    ... except ValueError as error:
    ...     told(error).split(":")[0]
    'ValueError'
    """
    lines = [part.strip() for part in str(error).splitlines() if part.strip()]
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    others = (
        f"{os.sep}foible{os.sep}",
        f"{os.sep}site-packages{os.sep}",
        f"{os.sep}lib{os.sep}python",
    )
    outside = [f for f in frames if not any(part in f.filename for part in others)]
    if outside and not outside[-1].filename.startswith("<"):
        said += f" ({os.path.basename(outside[-1].filename)}, line {outside[-1].lineno})"
    return said


def _module(name: str, source: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"{source!r}: there is no module {error.name!r} here or among the installed "
                "packages: run foible in the folder that holds it, or install it"
            ) from error
        raise InputError(
            f"{source!r}: importing {name} failed, it needs {error.name!r}: install that"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{source!r}: importing {name} raised {told(error)}") from error
