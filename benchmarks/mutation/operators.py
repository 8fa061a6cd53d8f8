"""Mutants of a Python source: operators on its syntax tree, and a seeded sample over all files.

Left alone, because nothing that a test could see depends on it, or because a crash is certain:
docstrings, annotations, decorators, imports, `if TYPE_CHECKING`, `__all__`, raise and assert
statements, texts, arguments named device, dtype or strict, moves to another device or dtype,
detach, constants beside torch.finfo, and calls of constructors and conversions.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS = (
    "drop a call",
    "flip a sign",
    "flip a comparison",
    "shift a constant",
    "return earlier",
)
FOLDERS = ("core", "parts", "attacks")

# Conversions, and what would only crash without its call.
_KEPT = {
    "int", "float", "bool", "str", "list", "tuple", "dict", "set", "range", "zip", "enumerate",
    "isinstance", "issubclass", "len", "getattr", "hasattr", "type", "super", "map", "print",
    "to", "cpu", "detach", "contiguous", "items", "keys", "values", "join", "format", "tolist",
    "item", "field", "partial", "cast", "iter", "next", "callable", "vars", "id", "repr",
}  # fmt: skip
_QUIET = {"device", "dtype", "strict"}
_SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}  # fmt: skip
_BITS: dict[type[ast.operator], type[ast.operator]] = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_PAIRS = [
    ("any", "all"), ("amax", "amin"), ("argmax", "argmin"), ("maximum", "minimum"), ("max", "min"),
    ("clamp_max", "clamp_min"), ("floor", "ceil"),
]  # fmt: skip
_OTHER = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class Mutant:
    """One edit of one file.

    file: below src/foible. line: of the edit. where: the qualified name of what it lies in. was,
    new: the source before and after; start, end: its bytes. statement: the line whose execution
    executes it, None outside of functions; scope: first and last line of the function or class
    whose execution shows it. kind: "body", "default" (of an argument) or "outside". text: the
    whole statement, or the head of a compound one, after the edit.
    """

    file: str
    line: int
    operator: str
    where: str
    was: str
    new: str
    start: int
    end: int
    statement: int | None
    scope: tuple[int, int]
    kind: str
    text: str = ""

    def apply(self, source: bytes) -> bytes:
        """Return the mutated source."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def key(self) -> str:
        """What the mutant is, wherever its line has moved: file, place and mutated text."""
        return f"{self.file}::{self.where}::{self.text}"


@dataclass(frozen=True)
class _Place:
    """Where the walk is: names above, the outermost function, the statement, the kind."""

    names: tuple[str, ...] = ()
    function: ast.FunctionDef | None = None
    statement: ast.stmt | None = None
    scope: tuple[int, int] = (1, 10**6)
    kind: str = "outside"

    def at(self, **changes: object) -> _Place:
        return _Place(**{**self.__dict__, **changes})  # type: ignore[arg-type]


def candidates(file: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a file, each edit once, in the order of the source."""
    tree = ast.parse(source)
    starts = [0]
    for text in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(text))
    found: dict[tuple[int, int, str], Mutant] = {}
    for node, operator, new, place in _edits(tree, _Place()):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        was = source[start:end].decode()
        text = new if isinstance(new, str) else _fresh(new)
        if " ".join(text.split()) == " ".join(was.split()):
            continue
        one = Mutant(
            file, node.lineno, operator, ".".join(place.names) or "module", was, text, start, end,
            None if place.statement is None else place.statement.lineno, place.scope, place.kind,
        )  # fmt: skip
        shown = _shown(one, source, place.statement or node, starts)
        found.setdefault((start, end, text), Mutant(**{**one.__dict__, "text": shown}))
    return sorted(found.values(), key=lambda m: (m.start, m.end, m.new))


def sample(sources: dict[str, bytes], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants: every file its share of them, at least one, and no two alike.

    Within a file the operator is drawn first, so that no operator crowds the others out.
    """
    every = {file: candidates(file, text) for file, text in sorted(sources.items())}
    every = {file: found for file, found in every.items() if found}
    total = sum(map(len, every.values()))
    spare = max(0, count - len(every))
    exact = {file: 1 + spare * len(found) / total for file, found in every.items()}
    share = {file: min(int(exact[file]), len(every[file])) for file in every}
    by_rest = sorted(every, key=lambda file: int(exact[file]) - exact[file])
    for file in by_rest[: max(0, count - sum(share.values()))]:
        share[file] = min(share[file] + 1, len(every[file]))
    chosen = []
    for file, found in every.items():
        draw = random.Random(f"{seed}:{file}")
        left = {name: [m for m in found if m.operator == name] for name in OPERATORS}
        trees = {ast.dump(ast.parse(sources[file]))}
        while share[file] and any(left.values()):
            name = draw.choice([name for name in OPERATORS if left[name]])
            one = left[name].pop(draw.randrange(len(left[name])))
            if (tree := _tree(one, sources[file])) is not None and tree not in trees:
                trees.add(tree)
                chosen.append(one)
                share[file] -= 1
    return chosen


def sources(root: Path) -> dict[str, bytes]:
    """Return the files of the folders that are mutated, by their path below src/foible."""
    base = root / "src" / "foible"
    files = (path for folder in FOLDERS for path in sorted((base / folder).rglob("*.py")))
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files}


def _tree(one: Mutant, source: bytes) -> str | None:
    try:
        return ast.dump(ast.parse(one.apply(source)))
    except SyntaxError:
        return None


def _fresh(node: ast.AST) -> str:
    text = ast.unparse(node)
    plain = ast.Name | ast.Constant | ast.Attribute | ast.Call | ast.Subscript | ast.Pass
    return text if isinstance(node, plain) else f"({text})"


def _shown(one: Mutant, source: bytes, node: ast.AST, starts: list[int]) -> str:
    """Return the mutated statement on one line; of a compound one its head."""
    last = node.end_lineno
    if getattr(node, "body", None) and not isinstance(node, ast.Lambda | ast.IfExp):
        last = node.body[0].lineno - 1
        last = max(last, node.lineno)
    first, end = starts[node.lineno - 1], starts[last]
    if not first <= one.start <= one.end <= end:  # a decorator's or a default's own lines
        first, end = starts[one.line - 1], max(starts[one.line], one.end)
    text = source[first : one.start] + one.new.encode() + source[one.end : end]
    return " ".join(text.decode().split())


def _edits(node: ast.AST, at: _Place) -> Iterator[tuple[ast.AST, str, ast.AST | str, _Place]]:
    """Yield (what is replaced, operator, by what, place) for a node and all below it."""
    if isinstance(node, ast.stmt) and at.kind == "body":
        at = at.at(statement=node)
    if _skipped(node):
        return
    if isinstance(node, ast.FunctionDef):
        inner = at.at(names=(*at.names, node.name), scope=(node.lineno, node.end_lineno))
        if at.function is None:
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if default is not None:
                    yield from _edits(default, inner.at(kind="default", function=node))
        outer = at.function or node
        for part in node.body:
            yield from _edits(part, inner.at(kind="body", function=outer))
        return
    if isinstance(node, ast.ClassDef):
        inner = at.at(names=(*at.names, node.name), scope=(node.lineno, node.end_lineno))
        for part in node.body:
            yield from _edits(part, inner)
        return
    for operator, new in _changes(node, at):
        yield node, operator, new, at
    if isinstance(node, ast.If | ast.IfExp | ast.While) and isinstance(
        node.test, ast.Name | ast.Attribute | ast.Call
    ):
        yield node.test, "flip a comparison", ast.UnaryOp(ast.Not(), node.test), at
    for part in _parts(node):
        yield from _edits(part, at)


def _skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        alias = isinstance(node.value, ast.Subscript) and "[[" in ast.unparse(node.value)
        return alias or any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    return isinstance(node, ast.keyword) and node.arg in _QUIET


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children that may be mutated."""
    if isinstance(node, ast.AnnAssign):
        yield from [] if node.value is None else [node.value]
    elif isinstance(node, ast.Assign):
        yield from [t for t in node.targets if isinstance(t, ast.Subscript)]
        yield node.value
    elif isinstance(node, ast.With):
        for item in node.items:  # a context cannot be dropped, its arguments may change
            yield from ast.iter_child_nodes(item.context_expr)
        yield from node.body
    elif isinstance(node, ast.Call) and _name(node) in ("isinstance", "getattr", "hasattr"):
        yield from [node.args[0], *node.args[2:]] if _name(node) != "isinstance" else node.args[:1]
    elif isinstance(node, ast.BinOp) and "finfo" in ast.unparse(node):
        yield from [p for p in (node.left, node.right) if not isinstance(p, ast.Constant)]
    else:
        yield from ast.iter_child_nodes(node)


def _changes(node: ast.AST, at: _Place) -> Iterator[tuple[str, ast.AST | str]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "drop a call", "pass"
    elif isinstance(node, ast.Call):
        yield from (("drop a call", new) for new in _dropped(node))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _OTHER:
            func = ast.Attribute(node.func.value, _OTHER[node.func.attr], node.func.ctx)
            yield "flip a comparison", ast.Call(func, node.args, node.keywords)
        elif isinstance(node.func, ast.Name) and node.func.id in _OTHER:
            func = ast.Name(_OTHER[node.func.id])
            yield "flip a comparison", ast.Call(func, node.args, node.keywords)
    elif isinstance(node, ast.BinOp):
        texts = (ast.List, ast.Tuple, ast.JoinedStr, ast.Dict, ast.ListComp)
        sides = (node.left, node.right)
        plain = not any(
            isinstance(s, texts) or (isinstance(s, ast.Constant) and isinstance(s.value, str))
            for s in sides
        )
        for table, name in ((_SIGNS, "flip a sign"), (_BITS, "flip a comparison")):
            if plain and type(node.op) in table:
                yield name, ast.BinOp(node.left, table[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign):
        for table, name in ((_SIGNS, "flip a sign"), (_BITS, "flip a comparison")):
            if type(node.op) in table:
                new = ast.AugAssign(node.target, table[type(node.op)](), node.value)
                yield name, ast.unparse(new)
    elif isinstance(node, ast.UnaryOp):
        flips = "flip a sign" if isinstance(node.op, ast.USub) else "flip a comparison"
        yield flips, node.operand
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = [*node.ops[:i], _FLIPPED[type(op)](), *node.ops[i + 1 :]]
            yield "flip a comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BoolOp):
        other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "flip a comparison", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.Constant):
        yield from (("shift a constant", ast.Constant(v)) for v in _shifted(node.value))
    elif isinstance(node, ast.Return) and node.value is not None and at.function is not None:
        names = _earlier(at.function, node)
        yield from (("return earlier", f"return {new}") for new in _returned(node.value, names))


def _name(call: ast.Call) -> str:
    func = call.func
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _dropped(call: ast.Call) -> Iterator[ast.AST]:
    """Yield what stands in a call's place: its first argument, or the object of its method."""
    name = _name(call)
    if name in _KEPT or name[:1].isupper() or not name:
        return
    args = [a for a in call.args if not isinstance(a, ast.Starred)]
    libraries = ("torch", "F", "math", "np", "torch.linalg")
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) not in libraries:
        yield call.func.value
        return
    if not args:
        return
    if name in ("where", "min", "max"):
        yield from args[1:] if name == "where" else args
    elif isinstance(args[0], ast.List | ast.Tuple) and args[0].elts:
        yield args[0].elts[0]
    elif not isinstance(args[0], ast.Constant | ast.GeneratorExp | ast.Lambda):
        yield args[0]


def _shifted(value: object) -> Iterator[object]:
    """Yield another constant: the next whole number, twice a number, a million tolerances."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        if value > 1:
            yield value - 1
    elif isinstance(value, float):
        yield value * 1e6 if 0 < value < 1e-3 else 2 * value if value else 1.0


def _earlier(function: ast.FunctionDef, end: ast.Return) -> list[str]:
    """Return the names bound before a line, the latest first; arguments last."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    bound = {a.arg: 0 for a in reversed(arguments) if a.arg not in ("self", "cls")}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For):
            if node.lineno >= end.lineno or (isinstance(node, ast.AnnAssign) and not node.value):
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                for part in parts:
                    if isinstance(part, ast.Name) and part.id != "_":
                        bound[part.id] = max(bound.get(part.id, 0), node.lineno)
    return sorted(bound, key=lambda name: -bound[name])


def _returned(value: ast.expr, names: list[str]) -> Iterator[str]:
    """Yield expressions with an earlier variable in the place of the value or of a part of it."""
    if isinstance(value, ast.Tuple):
        for i, part in enumerate(value.elts):
            for new in _returned(part, names):
                yield ", ".join(new if k == i else ast.unparse(e) for k, e in enumerate(value.elts))
    elif isinstance(value, ast.Call) and _name(value)[:1].isupper():
        for i, part in enumerate(value.args):
            for new in _returned(part, names):
                args: list[ast.expr] = list(value.args)
                args[i] = ast.Name(new) if new.isidentifier() else ast.parse(new).body[0].value
                yield ast.unparse(ast.Call(value.func, args, value.keywords))
    elif isinstance(value, ast.Name):
        yield from [name for name in names if name != value.id][:2]
    elif not isinstance(value, ast.Constant | ast.Attribute):
        inner = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
        yield from [name for name in names if name in inner]
