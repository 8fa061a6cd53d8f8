"""Specs: parts as plain data, so that a plan can be stored, hashed and rebuilt."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import fields, is_dataclass
from typing import Any

from foible.core.errors import InputError, KindError


def spec(part: Any) -> Any:
    """Turn a part (a frozen dataclass of parts and plain values) into JSON-able data.

    Raises KindError for anything without an identity, lambdas and closures first of all.

    >>> from foible.parts.threats import Linf
    >>> spec(Linf(0.1))["part"]
    'foible.parts.threats.balls:Linf'
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, tuple | list):
        return [spec(item) for item in part]
    if isinstance(part, dict):
        return {str(key): spec(value) for key, value in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        named = {f.name: spec(getattr(part, f.name)) for f in fields(part) if f.init}
        return {"part": _path(type(part)), **named}
    if callable(part) and "<" not in getattr(part, "__qualname__", "<"):
        return {"function": _path(part)}
    raise KindError(
        f"{part!r} has no identity that a plan can store: lambdas, closures and live objects "
        "cannot be rebuilt. Define a function at the top level of a module, or a frozen "
        "dataclass, and pass that."
    )


def build(data: Any) -> Any:
    """Rebuild a part from its spec; the inverse of `spec` for parts of foible."""
    if isinstance(data, list):
        return tuple(build(item) for item in data)
    if isinstance(data, dict):
        if "part" in data:
            kind = _resolve(data["part"])
            if not (isinstance(kind, type) and is_dataclass(kind)):
                raise InputError(f"the spec names {data['part']!r} as a part, which it is not")
            given = {key: build(value) for key, value in data.items() if key != "part"}
            try:
                return kind(**given)
            except TypeError as error:
                raise InputError(f"the spec does not fit {data['part']!r}: {error}") from error
        if "function" in data:
            return _resolve(data["function"])
        return {key: build(value) for key, value in data.items()}
    return data


def digest(data: Any, length: int = 16) -> str:
    """Hash JSON-able data to a short hexadecimal identity."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _path(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _resolve(path: Any) -> Any:
    module, _, name = str(path).partition(":")
    if not module.startswith("foible."):
        raise InputError(
            f"the spec names {path!r}, which is not a part of foible; "
            "code is run only from a module that you name yourself"
        )
    try:
        thing: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the spec names {path!r}, which this version of foible does not have: {error}"
        ) from error
    # What a module merely imported is not its part: a stored plan must not reach the library.
    if getattr(thing, "__module__", None) != module:
        raise InputError(f"the spec names {path!r}, which is not a part of foible")
    return thing
