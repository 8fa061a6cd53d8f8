"""Audits: a plan of independent cells, a log that survives a kill, a report for a person."""

from __future__ import annotations

from typing import Any

from foible.audit.planning import Plan

__all__ = ["Plan", "Report", "run", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the heavy parts on first use."""
    import importlib

    where = {"run": "runner", "Report": "runner", "write_report": "reporting"}
    if name in where:
        return getattr(importlib.import_module(f"foible.audit.{where[name]}"), name)
    raise AttributeError(f"module 'foible.audit' has no attribute {name!r}")
