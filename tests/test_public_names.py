"""Every public name is one object with one home, documented, and of a type that users' type checkers see.

The public names are those in ``sde_toolkit.__all__`` and in the ``__all__`` of every room.  The stub
``sde_toolkit/__init__.pyi`` says which room each top-level name comes from.
"""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

import sde_toolkit
import solvers
from sde_toolkit import metrics, samplers

ROOT = Path(__file__).parent.parent
STUB = ast.parse((ROOT / "sde_toolkit" / "__init__.pyi").read_text())
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
ROOMS = {name: importlib.import_module(f"sde_toolkit.{name}") for name in sde_toolkit.ROOMS}

BORROWED = {"sde_toolkit.config.Config"}
"""A class of ml_collections under a name of ours."""
REFERENCE = {"SciPy", "TorchSDE"}
"""What the module ``solvers.reference`` adds to the names of ``solvers``."""
OPTION_VALUES = {"none"}
"""Code spans in the README's tables that are values of an option and not names."""


def stub_homes() -> dict[str, str]:
    """Name -> room, from the stub's lines ``from .room import name as name``."""
    homes = {}
    for node in STUB.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name} must be imported as itself"
                assert alias.name not in homes, f"{alias.name} stands twice in the stub"
                homes[alias.name] = node.module
    return homes


def literal(name: str) -> list[str]:
    """The list of strings that the stub assigns to ``name``."""
    for node in STUB.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"the stub assigns no {name}")


def room_sources(room: str) -> dict[str, str]:
    """Name -> module, from the lines ``from module import name`` in the room's ``__init__``."""
    tree = ast.parse(Path(ROOMS[room].__file__ or "").read_text())
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


HOMES = stub_homes()
PUBLIC = [("sde_toolkit", name) for name in sde_toolkit.__all__]
PUBLIC += [(f"sde_toolkit.{room}", name) for room, module in ROOMS.items() for name in module.__all__]
PACKAGES = sorted({package for package, _ in PUBLIC})


def names_of(package: str) -> list[str]:
    return [name for home, name in PUBLIC if home == package]


def looked_up(package: str, name: str) -> object:
    return getattr(importlib.import_module(package), name)


def described(package: str, name: str) -> bool:
    """Whether a name has a docstring of its own: a constant has one below its assignment."""
    value = looked_up(package, name)
    if inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, ModuleType):
        text = value.__doc__ or ""
        return bool(text.strip()) and not text.startswith(f"{name}(")  # what dataclasses make up
    source = home_module(package, name)
    body = ast.parse(Path(source.__file__ or "").read_text()).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) is not None
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    return False


def home_module(package: str, name: str) -> ModuleType:
    """The module that defines a name, followed through the ``__init__`` files that pass it on."""
    if package == "sde_toolkit":
        return home_module(f"sde_toolkit.{HOMES[name]}", name)
    module = importlib.import_module(package)
    value = getattr(module, name)
    if isinstance(value, ModuleType):
        return value
    if not hasattr(module, "__path__"):
        return module
    tree = ast.parse(Path(module.__file__ or "").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            return home_module(str(node.module), name)
    return module


def test_the_stub_lists_the_public_names_once_and_in_order():
    assert literal("__all__") == sorted(HOMES, key=isort_key)
    assert sorted(HOMES) == sde_toolkit.__all__
    rooms = [
        alias.name
        for node in STUB.body
        if isinstance(node, ast.ImportFrom) and node.module is None
        for alias in node.names
    ]
    assert rooms == sorted(sde_toolkit.ROOMS)
    imported = [node.module for node in STUB.body if isinstance(node, ast.ImportFrom) and node.module]
    assert imported == sorted(imported)


def isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each in order, as the formatter sorts ``__all__``."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_a_top_level_name_is_the_object_that_its_room_exports():
    for name in sde_toolkit.__all__:
        room = ROOMS[HOMES[name]]
        assert name in room.__all__
        assert getattr(sde_toolkit, name) is getattr(room, name), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_name_is_the_object_that_its_home_module_defines(package):
    for name in names_of(package):
        value, home = looked_up(package, name), home_module(package, name)
        assert value is (home if value is home else getattr(home, name)), name
        if f"{package}.{name}" not in BORROWED and (inspect.isclass(value) or inspect.isfunction(value)):
            assert value.__module__ == home.__name__, name
            assert value.__qualname__ == name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_name_is_documented_and_has_a_signature(package):
    for name in names_of(package):
        value = looked_up(package, name)
        if f"{package}.{name}" not in BORROWED:
            assert described(package, name), f"{package}.{name} has no docstring"
        is_type = get_origin(value) is not None or (inspect.isclass(value) and issubclass(value, Exception))
        if callable(value) and not is_type:
            assert inspect.signature(value) is not None, name


def test_no_public_name_is_also_a_module_beside_it():
    """``sde_toolkit.NAME`` never turns into a module because somebody imported ``sde_toolkit.NAME``."""
    beside = {path.stem for path in (ROOT / "sde_toolkit").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not beside & set(sde_toolkit.__all__)
    for room, module in ROOMS.items():
        files = {path.stem for path in Path(module.__file__ or "").parent.iterdir()}
        for name in files & set(module.__all__):
            assert isinstance(getattr(module, name), ModuleType), f"{room}.{name}"


@pytest.mark.slow
def test_ddpm_is_the_sampler_in_every_order_of_imports(fresh, tmp_path):
    program = (
        "import sde_toolkit.samplers.presets.one_step, sde_toolkit.samplers, sde_toolkit.sdes\n"
        "from sde_toolkit import ddpm\n"
        "from sde_toolkit.samplers import Sampler, ddpm as same\n"
        "assert ddpm is same and isinstance(ddpm(5), Sampler)"
    )
    assert fresh(tmp_path, program)[0] == 0


def readme_names() -> list[str]:
    """Dotted names of the code spans in the README's tables, without their arguments."""
    rows = [line for line in README.splitlines() if line.startswith("|")]
    spans = [span for row in rows for span in re.findall(r"`([^`]*)`", row)]
    found = (re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", span) for span in spans)
    return sorted({match[1] for match in found if match} - OPTION_VALUES)


def test_a_name_in_a_table_of_the_readme_is_public():
    known = {*sde_toolkit.__all__, *solvers.__all__, *samplers.PRESETS, *metrics.CATALOGUE, *REFERENCE}
    for name in readme_names():
        first, *rest = name.split(".")
        if first == "solvers":
            assert importlib.import_module(name)
        elif rest:
            assert rest[0] in ROOMS[first].__all__, name
        else:
            assert first in known, name


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readme_imports_public_names_alone(block):
    tree = ast.parse(block)
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "sde_toolkit":
            names = {alias.name for alias in node.names}
            assert names <= {*sde_toolkit.__all__, *ROOMS}
            rooms |= names & set(ROOMS)
        elif isinstance(node, ast.ImportFrom) and node.module == "solvers":
            assert {alias.name for alias in node.names} <= set(solvers.__all__)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
            assert node.attr in ROOMS[node.value.id].__all__


CONFIG = """
[mypy]
strict = True

[mypy-readme.*]
disallow_any_expr = True

[mypy-sde_toolkit.*,solvers.*]
follow_imports = silent

[mypy-{untyped}]
follow_imports = skip
ignore_missing_imports = True
"""
UNTYPED_PACKAGES = ("diffusers", "matplotlib", "ml_collections", "safetensors", "scipy", "sklearn")
UNTYPED_PACKAGES += ("torchsde", "tqdm")


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> list[str]:
    """What mypy says, with --strict, of a program that uses all names and of the README's blocks."""
    folder = tmp_path_factory.mktemp("mypy")
    lines = ["import sde_toolkit", *(f"import sde_toolkit.{room}" for room in ROOMS)]
    lines += [f"reveal_type({package}.{name})" for package, name in PUBLIC]
    (folder / "names.py").write_text("\n".join(lines) + "\n")
    (folder / "readme").mkdir()
    programs = {"__init__": "", "wrong": "import json\n\nprint(json.loads('1'))\n"}
    programs |= {f"block_{number}": block for number, block in enumerate(BLOCKS)}
    for name, program in programs.items():
        (folder / "readme" / f"{name}.py").write_text(program)
    config = CONFIG.format(untyped=",".join(f"{name}.*" for name in UNTYPED_PACKAGES))
    (folder / "mypy.ini").write_text(config)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "."],
        cwd=folder, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr  # the wrong program
    return run.stdout.splitlines()


@pytest.mark.slow
def test_type_checkers_see_the_type_of_every_public_name(checked):
    revealed = [line for line in checked if line.startswith("names.py")]
    types = [match[1] for line in revealed if (match := re.search(r'Revealed type is "(.*)"$', line))]
    assert len(types) == len(revealed) == len(PUBLIC), revealed
    unseen = {
        f"{package}.{name}"
        for (package, name), seen in zip(PUBLIC, types, strict=True)
        if seen == "Any" or seen.endswith("-> Any")
    }
    assert unseen == set()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readme_passes_strict_checks_and_no_value_is_of_type_any(checked, number):
    """Except for the arguments of lambdas, which nobody annotates."""
    source = BLOCKS[number].splitlines()
    complaints = []
    for line in checked:
        match = re.match(rf"readme/block_{number}\.py:(\d+): error: (.*)", line)
        if match and 'Expression type contains "Any"' not in match[2]:
            in_lambda = "lambda" in source[int(match[1]) - 1] and match[2].startswith(
                'Expression has type "Any"'
            )
            complaints += [] if in_lambda else [line]
    assert complaints == []


@pytest.mark.slow
def test_the_check_of_the_readme_notices_values_of_type_any(checked):
    assert any(line.startswith('readme/wrong.py:3: error: Expression has type "Any"') for line in checked)
