"""Rules of the house that can be read off the source: one gradient door, no seeds, no pickles."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "foible"
DOOR = SRC / "core" / "oracle.py"
# A step of training: accelerate runs the backward that fills the parameters' `.grad`.
STEP = SRC / "defend" / "training" / "devices.py"
LINES, PARAMETERS = 400, 7
SKIPPED = {".git", ".venv", ".bench-venv", "runs", "dist", "build"}
GLOBAL_SEEDS = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.random.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}
GRADIENTS = (
    "torch.autograd.grad",
    "torch.autograd.backward",
    "torch.autograd.functional.",
    "autograd.grad",
    "autograd.backward",
    "autograd.functional.",
    "torch.func.",
    "functorch.",
)
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@cache
def committed() -> tuple[Path, ...]:
    """The files that git has or would add; every file where there is no git."""
    asked = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        answer = subprocess.run(asked, capture_output=True, check=True, text=True).stdout
        paths = [ROOT / name for name in answer.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for p in ROOT.rglob("*") if not SKIPPED & set(p.relative_to(ROOT).parts)]
    return tuple(sorted(p for p in paths if p.is_file()))


def sources(folder: Path = SRC) -> list[Path]:
    return [p for p in committed() if p.suffix == ".py" and p.is_relative_to(folder)]


def dotted(node: ast.AST) -> str:
    """`torch.autograd.grad` of an attribute chain; "" for what is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := dotted(node.value)):
        return f"{start}.{node.attr}"
    return ""


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def takes_gradient(name: str) -> bool:
    return any(name == g or (g.endswith(".") and name.startswith(g)) for g in GRADIENTS)


def gradients(tree: ast.AST) -> list[int]:
    """Lines that take a gradient: autograd.grad and its kin, or .backward()."""
    found = [line for line, name in imports(tree) if takes_gradient(name)]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr == "backward" or takes_gradient(dotted(node.func)):
            found.append(node.lineno)
    return sorted(found)


def seeds(tree: ast.AST) -> list[int]:
    """Lines that touch the global random state by a seed."""
    used = [(n.lineno, dotted(n)) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    return sorted(line for line, name in [*used, *imports(tree)] if name in GLOBAL_SEEDS)


def pickles(tree: ast.AST) -> list[int]:
    """Lines that could run code from a file: pickles, torch.load and np.load that allow them."""
    found = [line for line, name in imports(tree) if name.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: k.value for k in node.keywords}
        safe = given.get("weights_only")
        if dotted(node.func) == "torch.load" and not (
            isinstance(safe, ast.Constant) and safe.value is True
        ):
            found.append(node.lineno)
        allow = given.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            found.append(node.lineno)
    return sorted(found)


def wide(tree: ast.AST) -> list[str]:
    """Functions with too many parameters; self and cls are not counted."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            names += [x.arg for x in (a.vararg, a.kwarg) if x]
            count = len([n for n in names if n not in ("self", "cls")])
            if count > PARAMETERS:
                found.append(f"{node.name} (line {node.lineno}) has {count} parameters")
    return found


def machine_paths(text: str) -> list[str]:
    """Paths of the machine that a file was written on."""
    places = "|".join(("work", "root", "home", "Users"))
    return re.findall(rf"(?<![\w.-])/(?:{places})/[^\s\"'`]*", text)


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, lines: list[int]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}" for line in lines]


# --- the rules


def test_there_is_something_to_read() -> None:
    assert len(sources()) > 5 and DOOR in sources()


def test_the_oracle_is_the_only_gradient_door() -> None:
    assert [
        w for p in sources() if p not in (DOOR, STEP) for w in where(p, gradients(parsed(p)))
    ] == []
    assert len(gradients(parsed(STEP))) == 1
    assert gradients(parsed(DOOR)), "the door itself takes no gradient: is it still the oracle?"


def test_nothing_seeds_globally() -> None:
    assert [w for p in sources() for w in where(p, seeds(parsed(p)))] == []


def test_nothing_reads_pickles() -> None:
    assert [w for p in sources() for w in where(p, pickles(parsed(p)))] == []


def test_no_file_is_too_long() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sources(ROOT)}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > LINES} == {}


def test_no_function_has_too_many_parameters() -> None:
    body = [p for p in sources() if "cli" not in p.relative_to(SRC).parts]
    found = {str(p.relative_to(ROOT)): wide(parsed(p)) for p in body}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_nothing_imports_torchvision() -> None:
    found = []
    for path in sources(ROOT):
        lines = [n for n, name in imports(parsed(path)) if name.split(".")[0] == "torchvision"]
        found += where(path, lines)
    assert found == []


def test_no_committed_file_names_a_machine() -> None:
    found = {}
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__).resolve() and (names := machine_paths(text)):
            found[str(path.relative_to(ROOT))] = names
    assert found == {}


# --- the rules can fail


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (gradients, "torch.autograd.grad(a, b)"),
        (gradients, "from torch.autograd import grad"),
        (gradients, "from torch.func import vjp"),
        (gradients, "loss(x).sum().backward()"),
        (gradients, "torch.func.vjp(f, x)"),
        (gradients, "torch.autograd.functional.jacobian(f, x)"),
        (seeds, "torch.manual_seed(0)"),
        (seeds, "from torch import manual_seed"),
        (seeds, "np.random.seed(0)"),
        (pickles, "import pickle"),
        (pickles, "from joblib import load"),
        (pickles, "torch.load(path)"),
        (pickles, "torch.load(path, weights_only=False)"),
        (pickles, "np.load(path, allow_pickle=True)"),
        (wide, "def f(a, b, c, d, /, e, *f, g, h): ..."),
        (wide, "def f(self, a, b, c, d, e, f, g, *, h): ..."),
    ],
)
def test_what_breaks_a_rule_is_found(check, bad: str) -> None:
    assert len(check(ast.parse(bad))) == 1


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (gradients, "class F(torch.autograd.Function):\n    def backward(ctx, g): return g"),
        (gradients, "'''autograd.grad lives in the oracle'''\noracle.grad(f, x)"),
        (gradients, "with torch.autograd.graph.save_on_cpu(), torch.autograd.grad_mode.x(): ..."),
        (seeds, "torch.Generator().manual_seed(0)"),
        (pickles, "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)"),
        (wide, "def f(self, a, b, c, d, e, f, g): ..."),
    ],
)
def test_what_keeps_a_rule_is_fine(check, good: str) -> None:
    assert check(ast.parse(good)) == []


def test_a_machine_path_is_found_and_an_address_is_not() -> None:
    assert machine_paths("see /" + "home/me/x.py") == ["/" + "home/me/x.py"]
    assert machine_paths("https://example.org/home/x and a/work/b and ~/.cache") == []
