"""The source of both packages, parsed: what a module imports, exports and calls.

A rule is a function from sources (module name -> text) to complaints; it must find none in the packages,
and one in a source that breaks it.  What depends on one text alone is found once for it.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
Sources = dict[str, str]
Rule = Callable[[Sources], list[str]]


class Import(NamedTuple):
    """An imported module; whether it is imported with its importer, and whether for type checkers alone."""

    name: str
    at_top: bool
    for_typing: bool

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


@functools.cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


@functools.cache
def read_packages() -> Sources:
    found = {}
    for package in ("solvers", "sde_toolkit"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports_of(name: str, sources: Sources) -> list[Import]:
    """All imports of a module, each resolved to the deepest module that it names."""
    found = []
    for level, base, alias, at_top, for_typing in _written(sources[name]):
        if level:
            base = ".".join([*name.split(".")[:-level], *filter(None, [base])])
        deeper = f"{base}.{alias}"
        found.append(Import(deeper if alias and deeper in sources else base, at_top, for_typing))
    return found


Written = tuple[int, str, str, bool, bool]
"""An import as it is written: level, module, name that is taken from it or "", ``at_top``, ``for_typing``."""


@functools.cache
def _written(source: str) -> list[Written]:
    return list(_imports(parse(source).body, True, False))


def _imports(body: list[ast.stmt], at_top: bool, for_typing: bool) -> Iterator[Written]:
    for statement in body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield 0, alias.name, "", at_top, for_typing
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                yield statement.level, statement.module or "", alias.name, at_top, for_typing
        else:
            inner = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            typing = isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
            for block in ("body", "orelse", "finalbody"):
                nested = getattr(statement, block, [])
                yield from _imports(nested, at_top and not inner, for_typing or typing)
            for handler in getattr(statement, "handlers", []):
                yield from _imports(handler.body, at_top, for_typing)


def room_of(name: str) -> str | None:
    """The room of a module, "solvers" for that package; None for the top level of the toolkit."""
    package, _, rest = name.partition(".")
    return package if package == "solvers" else rest.partition(".")[0] or None


@functools.cache
def exported(source: str) -> set[str]:
    """The names in ``__all__``."""
    for node in parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value)) if isinstance(node.value, ast.List) else set()
    return set()


@functools.cache
def calls(source: str) -> set[str]:
    """Dotted names of all calls, and of their keywords as ``name(keyword=value``."""
    found = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found.add(called)
            found |= {f"{called}({keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords}
    return found
