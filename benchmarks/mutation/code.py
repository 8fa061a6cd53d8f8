"""The code of a changed foible: served to imports, marked, or put into the functions there are."""

from __future__ import annotations

import ast
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SEEN = "__mutants_seen__"  # a builtin that the marks call


def module_of(file: str) -> str:
    parts = file.removesuffix(".py").split("/")
    return ".".join(["foible", *(parts[:-1] if parts[-1] == "__init__" else parts)])


class Served(importlib.abc.MetaPathFinder):
    """Gives some modules of foible another source; all else about them stays as it is."""

    def __init__(self, base: Path, texts: Mapping[str, bytes | ast.Module]) -> None:
        self.files = {module_of(file): (base / file, text) for file, text in texts.items()}

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.files:
            return None
        place, text = self.files[name]

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> types.CodeType:
                return compile(text, str(place), "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(name, place, loader=Loader(name, str(place)))


# ---------------------------------------------------------------- which lines run


class _Marks(ast.NodeTransformer):
    """Puts a mark before every statement of every function."""

    def __init__(self, file: str, table: list[tuple[str, int]]) -> None:
        self.file, self.table, self.inside = file, table, False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        was, self.inside = self.inside, True
        self.generic_visit(node)
        self.inside = was
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody") if self.inside else ():
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, list(self._marked(block)))
        return node

    def _marked(self, block: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
        for part in block:
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                yield part
                continue
            self.table.append((self.file, part.lineno))
            mark = ast.Call(ast.Name(SEEN, ast.Load()), [ast.Constant(len(self.table) - 1)], [])
            yield ast.copy_location(ast.Expr(mark), part)
            yield part


def marked(texts: Mapping[str, bytes]) -> tuple[dict[str, ast.Module], list[tuple[str, int]]]:
    """Return sources with a mark before every statement, and what each mark stands for."""
    table: list[tuple[str, int]] = []
    trees = {
        file: ast.fix_missing_locations(_Marks(file, table).visit(ast.parse(text)))
        for file, text in texts.items()
    }
    return trees, table


# ---------------------------------------------------------------- other code in the same objects


def _outermost(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the functions of a module or of a class body, in the order of the source."""
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            if part.co_flags & inspect.CO_OPTIMIZED:
                yield part
            else:
                yield from _outermost(part)


def swap(path: Path, old: bytes, new: bytes, default_of: int | None) -> bool:
    """Give every function of a file the code of another source; say whether that worked.

    default_of: the line of the function whose defaults have changed.
    """
    before = list(_outermost(compile(old, str(path), "exec", dont_inherit=True)))
    after = list(_outermost(compile(new, str(path), "exec", dont_inherit=True)))
    if len(before) != len(after):
        return False
    codes = {(b.co_qualname, b.co_firstlineno): a for b, a in zip(before, after, strict=True)}
    changed = None
    if default_of is not None:
        functions = (n for n in ast.walk(ast.parse(new)) if isinstance(n, ast.FunctionDef))
        changed = next(n for n in functions if n.lineno == default_of)
    for function in [f for f in gc.get_objects() if type(f) is types.FunctionType]:
        own = function.__code__
        code = codes.get((own.co_qualname, own.co_firstlineno))
        if own.co_filename != str(path) or code is None:
            continue
        if own.co_freevars != code.co_freevars:
            return False
        function.__code__ = code
        if changed is not None and own.co_name == changed.name:
            lines = [d.lineno for d in changed.decorator_list] + [changed.lineno]
            if own.co_firstlineno == min(lines):
                _set_defaults(function, changed.args)
    return True


def _set_defaults(function: types.FunctionType, args: ast.arguments) -> None:
    def value(node: ast.expr) -> object:
        return eval(compile(ast.Expression(node), "default", "eval"), function.__globals__)

    function.__defaults__ = tuple(map(value, args.defaults)) or None
    pairs = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    function.__kwdefaults__ = {a.arg: value(d) for a, d in pairs if d is not None} or None
