"""The Python of README.md and of docs/ runs as it stands, each file one session from top to bottom.

A fence of ```python runs; ```python slow runs with the slow tests only; ```python sketch is never
run (docs only); a block with prompts (>>>) is a doctest, its output compared.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [p for p in (README, *sorted((ROOT / "docs").glob("*.md"))) if p.exists()]
FENCE = re.compile(r"^```python(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """(line, info, code) of each Python fence."""
    return [
        (text.count("\n", 0, m.start()) + 2, m["info"].strip(), m["code"])
        for m in FENCE.finditer(text)
    ]


def run(page: str, found: list[tuple[int, str, str]]) -> None:
    session: dict[str, object] = {"__name__": "page"}
    for line, _, code in found:
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, session, page, None, line - 1)
            runner = doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            runner.run(test, clear_globs=False)
            session.update(test.globs)
        else:
            exec(compile("\n" * (line - 1) + code, page, "exec", dont_inherit=True), session)


def of(page: Path) -> list[tuple[int, str, str]]:
    return blocks(page.read_text(encoding="utf-8"))


@pytest.mark.skipif(not README.exists(), reason="README.md is missing")
def test_the_readme_shows_python_that_runs_at_once() -> None:
    assert [info for _, info, _ in of(README) if info == ""]
    assert {info for _, info, _ in of(README)} <= {"", "slow"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_python_blocks_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {info for _, info, _ in of(page)} <= {"", "slow", "sketch"}
    run(page.name, [b for b in of(page) if not b[1]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b[1] == "slow" for b in of(p))], ids=lambda p: p.name
)
def test_the_slow_blocks_run_too(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page.name, [b for b in of(page) if b[1] != "sketch"])


def test_a_block_that_is_wrong_fails() -> None:
    assert blocks("a\n```python\nx = 1\n```\n") == [(3, "", "x = 1\n")]
    with pytest.raises(ZeroDivisionError):
        run("p", [(1, "", "1 / 0")])
    with pytest.raises(doctest.DocTestFailure):
        run("p", [(1, "", "x = 1\n"), (3, "", ">>> x\n2\n")])
