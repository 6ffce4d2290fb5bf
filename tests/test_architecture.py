"""What may import what, checked on the parsed files of both packages."""

import re
import sys

import pytest
from source_files import ROOT, Rule, Sources, exported, imports_of, read_packages, room_of

import sde_toolkit

HEAVY = {"diffusers", "matplotlib", "sklearn", "transformers"}
ORDER = ("solvers", *sde_toolkit.ROOMS)
"""Bottom up: each imports from those before it alone."""
SUBROOMS = (
    "samplers.presets",
    "samplers.gaussian",
    "guidance.inverse",
    "guidance.inverse.particles",
    "config.configs",
    "data.sources",
    "metrics.errors",
    "lab.page",
    "lab.drawing",
    "cli.showing",
    "cli.tasks",
    "training.objective",
    "cli.weights",
    "runs.learning",
    "training.averages",
    "training.watching",
    "models.entries",
    "interop.score_sde",
    "interop.pipelines",
)
BLIND = {"samplers", "guidance", "likelihood"}
"""Rooms that take any object with the ScoreModel methods: they import neither networks nor training."""
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


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
