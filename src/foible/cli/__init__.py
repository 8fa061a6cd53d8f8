"""The command line: `foible`, one verb a file."""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Exit codes: 0 done (and, with --fail-under, passed), 1 a threshold failed, 2 something in
    the call cannot be used, 3 an audit is incomplete.
    """
    # Threads that spin while they wait cost up to twenty times where other programs run. It is
    # read when torch is loaded, so it comes first; a setting of the user's own stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from foible.cli.verbs import build

    build()(prog_name="foible")
