"""The command line: `foible`, one verb a file."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Exit codes: 0 done (and, with --fail-under, passed), 1 a threshold failed, 2 something in
    the call cannot be used, 3 an audit is incomplete.
    """
    from foible.cli.verbs import build

    build()(prog_name="foible")
