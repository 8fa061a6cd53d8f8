"""`import foible` brings torch and numpy and little else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "jinja2", "typer", "rich", "safetensors", "scipy")
CODE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import foible
for room in sys.argv[1:]:
    getattr(foible, room).__all__
seconds = time.perf_counter() - start
new = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"seconds": seconds, "new": new}))
"""


def report(*rooms: str) -> dict:
    """What is new after `import foible` and the use of some of its rooms, and the seconds."""
    command = [sys.executable, "-c", CODE, *rooms]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "rooms", [(), ("attacks", "explain", "models", "zoo")], ids=["bare", "used"]
)
def test_import_foible_leaves_the_heavy_packages_out(rooms: tuple[str, ...], capsys) -> None:
    found = report(*rooms)
    with capsys.disabled():
        print(f"\nimport foible {' '.join(rooms)} over import torch: {found['seconds']:.3f} s")
    assert "foible" in found["new"]
    assert [name for name in HEAVY if name in found["new"]] == []


def test_what_is_new_is_the_standard_library_and_foible() -> None:
    new = report("attacks", "explain", "models")["new"]
    strange = [n for n in new if n not in sys.stdlib_module_names and not n.startswith("_")]
    assert set(strange) <= {"foible", "torch", "numpy"}
