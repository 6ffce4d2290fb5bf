"""The packages as they are imported: ours, complete, typed, and quick to load."""

import subprocess
import sys
from pathlib import Path

import pytest
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


def test_importing_the_toolkit_is_cheap() -> None:
    """At most half a second more than importing torch, the best of up to three runs on a busy machine."""
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", TIMED_IMPORT], capture_output=True, text=True, check=True)
        elapsed, loaded = run.stdout.splitlines()
        seconds.append(float(elapsed))
        assert not HEAVY & set(loaded.split(","))
        if seconds[-1] <= 0.5:
            break
    assert min(seconds) <= 0.5


LATE = ("diffusers", "matplotlib", "sklearn", "scipy", "torchsde", "jinja2", "plotly")
"""Slow to load: imported where they are used."""


def test_the_command_loads_what_is_slow_where_it_is_used() -> None:
    """Every verb imports ``sde_toolkit.runs``; an exact problem is sampled without what it does not need."""
    code = (
        "import sys; from sde_toolkit import runs; from sde_toolkit.config import parse_config\n"
        "(p,) = runs.open_problems(parse_config({'comparison': {'problems': 'ring'}}), None)\n"
        "from sde_toolkit.samplers import heun; heun(2).sample(p.model, 1)\n"
        f"print(*(name for name in {LATE} if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
