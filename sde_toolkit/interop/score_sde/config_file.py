"""Configuration files of score_sde, read as data: they are parsed and never run.

Such a file is a Python module with a function ``get_config`` that makes a ConfigDict, or takes it from the
``get_default_configs`` of another file of the same folder ``configs``, and sets its fields:

    config = get_default_configs()            model = config.model
    training = config.training                model.nf = 128
    training.sde = "vesde"                    model.ch_mult = (1, 2, 2, 2)

These statements are followed on the syntax tree: names and fields are read and set, literals and arithmetic
of literals are taken for what they are.  Everything else (a device, a call) becomes a value that is not
known, which matters only where a field that the model needs has it.  Branches and loops that set fields are
refused, because which fields they set cannot be read.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), whose published configurations have this form.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
"""The largest configuration file that is read."""

_WHAT = "a configuration of score_sde, a .py file with a function get_config that sets fields"
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Unknown:
    """A value that only running the file would tell.

    Args:
        text: its expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"what the file computes by {self.text}"


def read_fields(path: Path | str) -> dict[str, Any]:
    """The fields of a configuration file, nested as the file nests them.

    Args:
        path: of the file; its defaults are looked for as ``configs/NAME.py`` beside it and in the folders
            above.

    Raises:
        FileNotFoundError: there is no such file, or none with its defaults.
        ValueError: it is no configuration of score_sde.
    """
    try:
        return _function(Path(path).expanduser(), "get_config", ())
    except RecursionError:
        raise ValueError(f"config must be {_WHAT}, got {path}, which nests too deeply") from None


_Inside = tuple[tuple[Path, str], ...]


def _function(path: Path, name: str, inside: _Inside) -> dict[str, Any]:
    """The fields that a function of a file returns; ``inside`` are those that are being read."""
    here = (path.resolve(), name)
    if here in inside:
        raise ValueError(f"config {path} must not take {name} from itself; give a file that does not")
    tree = _parsed(path)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not functions:
        raise ValueError(f"config must be {_WHAT}, got {path}, which has no function {name}")
    imported = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return _Reading(path, tree, imported, (*inside, here)).run(functions[-1])


def _parsed(path: Path) -> ast.Module:
    if not path.is_file():
        wrong = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"config must be {_WHAT}, got {path}, which is {wrong}; check the path")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"config must be {_WHAT}, got {path}, which is larger than {MAX_BYTES} bytes")
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"config must be {_WHAT}, got {path}, which is no Python: {error}") from None


class _Reading:
    """One function of a file, statement by statement."""

    def __init__(
        self, path: Path, tree: ast.Module, imported: Mapping[str, tuple[str, str]], inside: _Inside
    ) -> None:
        self.path, self.imported, self.inside = path, imported, inside
        self.own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.names: dict[str, Any] = {}

    def run(self, function: ast.FunctionDef) -> dict[str, Any]:
        """What the function returns."""
        for statement in function.body:
            if isinstance(statement, ast.Return):
                made = self._value(statement.value) if statement.value else None
                if not isinstance(made, dict):
                    raise self._refusal(statement, "returns something else than its configuration")
                return made
            self._do(statement)
        raise self._refusal(function, "returns nothing")

    def _do(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            value = self._value(statement.value)
            for target in statement.targets:
                self._set(target, value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._set(statement.target, self._value(statement.value))
        elif not isinstance(statement, (ast.Expr, ast.Import, ast.ImportFrom, ast.Pass)):
            raise self._refusal(statement, "is no plain assignment")

    def _set(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
            return
        home = self._value(target.value) if isinstance(target, ast.Attribute) else None
        if not isinstance(target, ast.Attribute) or not isinstance(home, dict):
            raise self._refusal(target, "sets something else than a name or a field")
        home[target.attr] = value

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, (ast.Tuple, ast.List)):
            return tuple(self._value(element) for element in node.elts)
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.names[node.id]
        if isinstance(node, ast.Attribute):
            return self._field(node)
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, (ast.UnaryOp, ast.BinOp)):
            return self._computed(node)
        return Unknown(ast.unparse(node))

    def _field(self, node: ast.Attribute) -> Any:
        home = self._value(node.value)
        if isinstance(home, dict):
            if node.attr not in home:
                raise self._refusal(node, f"reads the field {node.attr!r}, which was not set")
            return home[node.attr]
        return Unknown(ast.unparse(node))

    def _called(self, node: ast.Call) -> Any:
        """A new ConfigDict, or the defaults of another function."""
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] == "ConfigDict" and not node.args and not node.keywords:
            return {}
        if isinstance(node.func, ast.Name) and not node.args and not node.keywords:
            if name in self.own:
                return _function(self.path, name, self.inside)
            if name in self.imported:
                module, original = self.imported[name]
                return _function(self._defaults(node, module), original, self.inside)
        return Unknown(ast.unparse(node))

    def _defaults(self, node: ast.expr, module: str) -> Path:
        """The file of an imported module, beside this file or in a folder above it."""
        parts = module.split(".")
        for folder in self.path.resolve().parents:
            for relative in (parts, parts[1:] if parts[0] == "configs" else []):
                found = folder.joinpath(*relative).with_suffix(".py") if relative else None
                if found is not None and found.is_file():
                    return found
        raise FileNotFoundError(
            f"config {self.path} takes its defaults from {'/'.join(parts)}.py (line {node.lineno}), which is "
            "neither beside it nor in a folder above; keep the folder configs of score_sde whole, or put "
            f"{parts[-1]}.py beside it"
        )

    def _computed(self, node: ast.UnaryOp | ast.BinOp) -> Any:
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand)
            negative = isinstance(node.op, ast.USub) and type(value) in (int, float)
            return -value if negative else Unknown(ast.unparse(node))
        left, right = self._value(node.left), self._value(node.right)
        work = _ARITHMETIC.get(type(node.op))
        numbers = type(left) in (int, float) and type(right) in (int, float)
        if work is None or not numbers:
            return Unknown(ast.unparse(node))
        try:
            return work(left, right)
        except ArithmeticError:
            return Unknown(ast.unparse(node))

    def _refusal(self, node: ast.expr | ast.stmt, what: str) -> ValueError:
        return ValueError(
            f"config must be {_WHAT}, and is read without being run; line {node.lineno} of {self.path} "
            f"{what}: {ast.unparse(node).splitlines()[0][:80]}; give the fields as a dictionary"
        )
