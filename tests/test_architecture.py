"""What may import what, and other rules about the source, checked on the parsed files of both packages.

Every rule is a function from sources (module name -> text) to complaints; it must find none in the packages,
and one in a source that breaks it.
"""

import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import sde_toolkit

ROOT = Path(__file__).parent.parent
Sources = dict[str, str]

HEAVY = {"diffusers", "matplotlib", "sklearn", "transformers"}
ORDER = ("solvers", *sde_toolkit.ROOMS)
"""Bottom up: each imports from those before it alone."""
SUBROOMS = (
    "samplers.presets",
    "samplers.gaussian",
    "config.configs",
    "data.sources",
    "metrics.errors",
    "lab.page",
    "lab.drawing",
    "cli.showing",
    "training.objective",
    "cli.weights",
    "runs.learning",
    "training.averages",
    "training.watching",
    "models.entries",
    "interop.score_sde",
    "interop.pipelines",
)
WEIGHTS_ONLY = {"sde_toolkit.interop.score_sde.checkpoint"}
"""Modules that read pickles of others by ``torch.load(weights_only=True)``, which runs nothing."""
BLIND = {"samplers", "guidance", "likelihood"}
"""Rooms that take any object with the ScoreModel methods: they import neither networks nor training."""
TALKATIVE = {"sde_toolkit.__main__", "sde_toolkit.cli"}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


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
    return list(_imports(parse(sources[name]).body, name, sources, True, False))


def _imports(
    body: list[ast.stmt], name: str, sources: Sources, at_top: bool, for_typing: bool
) -> Iterator[Import]:
    for statement in body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield Import(alias.name, at_top, for_typing)
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                parent = name.split(".")[: -statement.level]
                base = ".".join([*parent, *filter(None, [base])])
            for alias in statement.names:
                deeper = f"{base}.{alias.name}"
                yield Import(deeper if deeper in sources else base, at_top, for_typing)
        else:
            inner = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            typing = isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
            for block in ("body", "orelse", "finalbody"):
                nested = getattr(statement, block, [])
                yield from _imports(nested, name, sources, at_top and not inner, for_typing or typing)
            for handler in getattr(statement, "handlers", []):
                yield from _imports(handler.body, name, sources, at_top, for_typing)


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


def solvers_stand_alone(sources: Sources) -> list[str]:
    complaints = []
    for name in (n for n in sources if n.partition(".")[0] == "solvers"):
        allowed = {"solvers", "torch", "numpy", *sys.stdlib_module_names}
        if name == "solvers.reference":
            allowed |= {"scipy", "torchsde"}
        for found in imports_of(name, sources):
            if found.root not in allowed or found.name == "solvers.reference":
                complaints.append(f"{name} imports {found.name}")
    return complaints


def rooms_import_from_rooms_before_them(sources: Sources) -> list[str]:
    complaints = []
    for name in sources:
        room = room_of(name)
        if room is None or room == "__main__":
            continue
        for target in {i.name for i in imports_of(name, sources) if i.root in ("solvers", "sde_toolkit")}:
            other = room_of(target)
            known = room in ORDER and other in ORDER
            blind = room in BLIND and other in {"networks", "training"}
            if not known or ORDER.index(other) > ORDER.index(room) or blind:
                complaints.append(f"{name} imports {target}")
    return complaints


def rooms_are_entered_by_the_door(sources: Sources) -> list[str]:
    """From outside only what a room's ``__init__`` exports, names or modules; the same holds for solvers."""
    complaints = []
    for name in sources:
        for target in {i.name for i in imports_of(name, sources)} & set(sources):
            room = room_of(target)
            if room is None or room == room_of(name) or room == "solvers":
                continue
            inside = target.removeprefix(f"sde_toolkit.{room}").lstrip(".")
            if inside and inside not in exported(sources[f"sde_toolkit.{room}"]):
                complaints.append(f"{name} imports {target}, which is private to {room}")
    return complaints


def modules_import_each_other_in_no_circle(sources: Sources) -> list[str]:
    """Imports in functions and for type checkers count."""
    edges = {
        name: {i.name for i in imports_of(name, sources) if i.name in sources} - {name} for name in sources
    }
    edges["sde_toolkit"] = set()  # loads its rooms lazily
    complaints, done, path = [], set(), []

    def visit(name: str) -> None:
        if name in path:
            complaints.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            path.append(name)
            for other in sorted(edges[name]):
                visit(other)
            done.add(path.pop())

    for name in sorted(sources):
        visit(name)
    return complaints


def rooms_hold_three_to_twelve_files(sources: Sources) -> list[str]:
    complaints = []
    for room in (*sde_toolkit.ROOMS, *SUBROOMS):
        files = [
            n for n in sources if n.rpartition(".")[0] == f"sde_toolkit.{room}" or n == f"sde_toolkit.{room}"
        ]
        files = [
            n for n in files if n.removeprefix("sde_toolkit.") not in SUBROOMS or n == f"sde_toolkit.{room}"
        ]
        if not 3 <= len(files) <= 12:
            complaints.append(f"{room} holds {len(files)} files")
    return complaints


def functions_do_not_share_names_with_modules(sources: Sources) -> list[str]:
    """What a package exports is never the name of a module beside it, unless it is that module."""
    complaints = []
    for package in (n for n in sources if any(other.startswith(f"{n}.") for other in sources)):
        modules = {n.removeprefix(f"{package}.") for n in sources if n.startswith(f"{package}.")}
        loaded = {i.name for i in imports_of(package, sources)}
        for name in exported(sources[package]) & modules:
            if f"{package}.{name}" not in loaded:
                complaints.append(f"{package} exports {name} beside a module of that name")
    return complaints


def heavy_packages_load_late(sources: Sources) -> list[str]:
    return [
        f"{name} imports {found.name} at its top"
        for name in sources
        for found in imports_of(name, sources)
        if found.root in HEAVY and found.at_top and not found.for_typing
    ]


def torchsde_has_one_importer(sources: Sources) -> list[str]:
    return [
        f"{name} imports torchsde"
        for name in sources
        if name != "solvers.reference" and any(i.root == "torchsde" for i in imports_of(name, sources))
    ]


def dependencies_are_declared(sources: Sources) -> list[str]:
    """Of the dependencies, or of an extra that serves the library; "dev" and "peers" do not."""
    text = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(
        r"^(?:dependencies|images|mnist|tables|hf|fid|logging|latent|onnx) = \[(.*?)\]$",
        text,
        re.DOTALL | re.MULTILINE,
    )
    assert len(blocks) == 9
    declared = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)', "".join(blocks))}
    known = declared | {"solvers", "sde_toolkit", *sys.stdlib_module_names}
    return [
        f"{name} imports {found.name}"
        for name in sources
        for found in imports_of(name, sources)
        if DISTRIBUTIONS.get(found.root, found.root).replace("-", "_") not in known
    ]


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


def loads_more_than_weights(name: str, source: str) -> bool:
    """Whether a module calls ``torch.load`` otherwise than ``WEIGHTS_ONLY`` may."""
    found = (node for node in ast.walk(parse(source)) if isinstance(node, ast.Call))
    loads = [node for node in found if ast.unparse(node.func) == "torch.load"]
    safe = (
        any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in n.keywords) for n in loads
    )
    return bool(loads) and (name not in WEIGHTS_ONLY or not all(safe))


def nothing_unpickles(sources: Sources) -> list[str]:
    """But for torch's weights-only reader, where a format of others leaves no choice."""
    loaders = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    complaints = []
    for name, source in sources.items():
        complaints += [f"{name} imports {i.name}" for i in imports_of(name, sources) if i.root in loaders]
        unsafe = {"np.load(allow_pickle=True"} & calls(source)
        unsafe |= {"torch.load"} if loads_more_than_weights(name, source) else set()
        complaints += [f"{name} calls {called}" for called in sorted(unsafe)]
    return complaints


def library_code_is_silent_and_leaves_the_global_generators_alone(sources: Sources) -> list[str]:
    loud = {"torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed"}
    return [
        f"{name} calls {called}"
        for name, source in sources.items()
        for called in sorted(
            calls(source) & (loud | (set() if name.startswith(tuple(TALKATIVE)) else {"print"}))
        )
    ]


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    text = function.body[0] if ast.get_docstring(function) else None
    described = 0 if text is None or text.end_lineno is None else text.end_lineno - text.lineno + 1
    return function.end_lineno - function.lineno + 1 - described


def files_and_functions_are_short(sources: Sources) -> list[str]:
    complaints = []
    for name, source in sources.items():
        if source.count("\n") > 450:
            complaints.append(f"{name} is longer than 450 lines")
        for node in ast.walk(parse(source)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and lines_without_docstring(node) > 60
            ):
                complaints.append(f"{name}.{node.name} is longer than 60 lines")
    return complaints


def modules_open_with_a_docstring(sources: Sources) -> list[str]:
    return [
        f"{name} has no docstring" for name, text in sources.items() if not ast.get_docstring(parse(text))
    ]


Rule = Callable[[Sources], list[str]]
RULES: list[Rule] = [
    solvers_stand_alone,
    rooms_import_from_rooms_before_them,
    rooms_are_entered_by_the_door,
    modules_import_each_other_in_no_circle,
    rooms_hold_three_to_twelve_files,
    functions_do_not_share_names_with_modules,
    heavy_packages_load_late,
    torchsde_has_one_importer,
    dependencies_are_declared,
    nothing_unpickles,
    library_code_is_silent_and_leaves_the_global_generators_alone,
    files_and_functions_are_short,
    modules_open_with_a_docstring,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_packages_keep_the_rule(rule: Rule) -> None:
    sources = read_packages()
    assert len(sources) > 20
    assert rule(sources) == []


WRONG: list[tuple[Rule, str, str, str]] = [
    (solvers_stand_alone, "solvers.new", "import sde_toolkit.sde", "solvers.new imports sde_toolkit.sde"),
    (
        solvers_stand_alone,
        "solvers.new",
        "from sde_toolkit import sdes",
        "solvers.new imports sde_toolkit.sdes",
    ),
    (
        solvers_stand_alone,
        "solvers.new",
        "def f():\n    import scipy.linalg",
        "solvers.new imports scipy.linalg",
    ),
    (solvers_stand_alone, "solvers.new", "from . import reference", "solvers.new imports solvers.reference"),
    (
        rooms_import_from_rooms_before_them,
        "sde_toolkit.sdes.new",
        "from sde_toolkit.models import ScoreModel",
        "sde_toolkit.sdes.new imports sde_toolkit.models",
    ),
    (
        rooms_import_from_rooms_before_them,
        "sde_toolkit.samplers.new",
        "def f():\n    from sde_toolkit import networks",
        "sde_toolkit.samplers.new imports sde_toolkit.networks",
    ),
    (
        rooms_are_entered_by_the_door,
        "sde_toolkit.likelihood.new",
        "from sde_toolkit.models.moments import Moments",
        "sde_toolkit.likelihood.new imports sde_toolkit.models.moments, which is private to models",
    ),
    (
        modules_import_each_other_in_no_circle,
        "sde_toolkit.utils.checks",
        "if TYPE_CHECKING:\n    from sde_toolkit.utils.files import atomic_write\n"
        "def integer(): ...\nfrom sde_toolkit.utils.random import Stream",
        "sde_toolkit.utils.checks -> sde_toolkit.utils.random -> sde_toolkit.utils.checks",
    ),
    (
        rooms_hold_three_to_twelve_files,
        "sde_toolkit.likelihood.a",
        "",
        "likelihood holds 13 files",
    ),
    (
        functions_do_not_share_names_with_modules,
        "sde_toolkit.lab.compare",
        "",
        "sde_toolkit.lab exports compare beside a module of that name",
    ),
    (
        heavy_packages_load_late,
        "sde_toolkit.new",
        "import diffusers",
        "sde_toolkit.new imports diffusers at its top",
    ),
    (
        heavy_packages_load_late,
        "sde_toolkit.new",
        "if True:\n    from matplotlib import pyplot",
        "sde_toolkit.new imports matplotlib at its top",
    ),
    (torchsde_has_one_importer, "sde_toolkit.new", "import torchsde", "sde_toolkit.new imports torchsde"),
    (dependencies_are_declared, "sde_toolkit.new", "import pandas", "sde_toolkit.new imports pandas"),
    (nothing_unpickles, "sde_toolkit.new", "import pickle", "sde_toolkit.new imports pickle"),
    (
        nothing_unpickles,
        "sde_toolkit.new",
        "with np.load('f', allow_pickle=True) as x:\n    pass",
        "sde_toolkit.new calls np.load(allow_pickle=True",
    ),
    (nothing_unpickles, "sde_toolkit.new", "x = torch.load('f')", "sde_toolkit.new calls torch.load"),
    (
        nothing_unpickles,
        "sde_toolkit.new",
        "x = torch.load('f', weights_only=True)",
        "sde_toolkit.new calls torch.load",
    ),
    (
        nothing_unpickles,
        "sde_toolkit.interop.score_sde.checkpoint",
        "torch.load('f', weights_only=True)\ntorch.load('f')",
        "sde_toolkit.interop.score_sde.checkpoint calls torch.load",
    ),
    (
        library_code_is_silent_and_leaves_the_global_generators_alone,
        "solvers.new",
        "print(1)",
        "solvers.new calls print",
    ),
    (
        library_code_is_silent_and_leaves_the_global_generators_alone,
        "sde_toolkit.new",
        "torch.manual_seed(0)",
        "sde_toolkit.new calls torch.manual_seed",
    ),
    (files_and_functions_are_short, "solvers.new", "\n" * 451, "solvers.new is longer than 450 lines"),
    (
        files_and_functions_are_short,
        "solvers.new",
        "def f():\n" + "    x = 1\n" * 60,
        "solvers.new.f is longer than 60 lines",
    ),
    (modules_open_with_a_docstring, "solvers.new", "x = 1", "solvers.new has no docstring"),
]


@pytest.mark.parametrize(
    ("rule", "name", "text", "complaint"), WRONG, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_rule_notices_a_source_that_breaks_it(rule: Rule, name: str, text: str, complaint: str) -> None:
    sources = read_packages()
    assert complaint not in rule(sources)
    if rule is rooms_hold_three_to_twelve_files:
        more = {f"{name}{i}": text for i in range(13 - len([n for n in sources if n.startswith(name[:-2])]))}
        assert complaint in rule({**sources, **more})
    else:
        assert complaint in rule({**sources, name: text})


def test_imports_for_type_checkers_and_in_functions_are_told_apart() -> None:
    text = (
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    import c\nclass D:\n    import d"
    )
    found = {i.name: (i.at_top, i.for_typing) for i in imports_of("m", {"m": text})}
    assert found["a"] == (True, True)
    assert found["c"] == (False, False)
    assert found["d"] == (True, False)
