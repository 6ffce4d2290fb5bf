"""The packages as they are imported: ours, complete, typed, and quick to load."""

from pathlib import Path

import pytest
from forking import Fresh
from test_architecture import HEAVY

import sde_toolkit
import solvers


def test_the_imported_solvers_are_ours() -> None:
    """Another distribution on the index holds a package of the same name."""
    ours = Path(sde_toolkit.__file__).parent.parent
    assert Path(solvers.__file__).parent == ours / "solvers"
    assert {"solve", "DOPRI5", "Normals"} <= set(solvers.__all__)


@pytest.mark.parametrize("package", [solvers, sde_toolkit], ids=lambda package: package.__name__)
def test_packages_export_what_they_promise_and_are_typed(package: object) -> None:
    assert (Path(package.__file__).parent / "py.typed").is_file()  # type: ignore[attr-defined]
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name, None) is not None, name


TIMED_IMPORT = """
import time
import torch
start = time.perf_counter()
import sde_toolkit
print(time.perf_counter() - start)
import sys
print(",".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_importing_the_toolkit_is_cheap(fresh: Fresh, tmp_path: Path) -> None:
    """At most half a second more than importing torch, the best of up to three runs on a busy machine."""
    seconds = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, shown, told = fresh(folder, TIMED_IMPORT)
        assert code == 0, told
        elapsed, loaded = shown.splitlines()
        seconds.append(float(elapsed))
        assert not HEAVY & set(loaded.split(","))
        if seconds[-1] <= 0.5:
            break
    assert min(seconds) <= 0.5


LATE = ("diffusers", "matplotlib", "sklearn", "scipy", "torchsde", "jinja2", "plotly")
"""Slow to load: imported where they are used."""


def test_the_command_loads_what_is_slow_where_it_is_used(fresh: Fresh, tmp_path: Path) -> None:
    """Every verb imports ``sde_toolkit.runs``; an exact problem is sampled without what it does not need."""
    code = (
        "import sys; from sde_toolkit import runs; from sde_toolkit.config import parse_config\n"
        "(p,) = runs.open_problems(parse_config({'comparison': {'problems': 'ring'}}), None)\n"
        "from sde_toolkit.samplers import heun; heun(2).sample(p.model, 1)\n"
        f"print(*(name for name in {LATE} if name in sys.modules))"
    )
    ended, shown, told = fresh(tmp_path, code)
    assert ended == 0, told
    assert shown.split() == []
