"""Any argument of any public function: taken, or refused with a sentence that names it.

Every recipe is called with one argument replaced.  Whatever comes must be a result, a warning, or TypeError,
ValueError or OSError whose text has the argument's name in it, or the failure of a run (SolverError,
NonFiniteError).
"""

import inspect
import math
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import MODEL, NORMAL, POINTS, VP, Recipe, network_model, recipes

from sde_toolkit import samplers
from sde_toolkit.training import NonFiniteError
from solvers import SolverError

NOT_CALLED = {"open_run"}
"""Needs a trained run: its arguments are replaced all the same."""
ALIASES = {
    "overrides": "config",
    "path": "model file",
    "network": "workdir",
    "y0": "state",
    "labels": "condition",
}
"""Other names of arguments in sentences."""
SECONDS = 20.0
"""Longest time of a call."""


OWN_ERRORS = {
    ("bootstrap", "distance"),
    ("classify", "log_likelihood"),
    ("likelihood.observed_log_likelihood", "log_likelihood"),
    ("compare", "on_records"),
    ("compare", "on_samples"),
    ("discrete_bound", "variance"),
    ("fit", "loss"),
    ("lab.Experiment.run", "on_records"),
    ("lab.Experiment.run", "on_samples"),
    ("solve with noise", "after_step"),
    ("solve", "after_step"),
    ("training.held_out_loss", "loss"),
    ("training.train_step", "loss"),
}
"""Functions that are called: what they raise themselves is theirs, and passes through."""


class Broken:
    """An object whose every use fails."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def values() -> dict[str, Any]:
    """What arguments are replaced by, by name."""
    plain = [None, True, 0, -1, 3, 10**400, 2**63, 0.5, -0.5, math.nan, math.inf, 1e300, 1e-320, "", "abc",
             "3", b"x", 1j, [], [1], [[1.0], [1.0, 2.0]], (), (0, 0), {}, {"a": 1}]  # fmt: skip
    made: dict[str, Any] = {repr(value)[:30]: value for value in plain}
    made |= {
        "object": object(), "broken": Broken(), "type": int, "module": math, "lambda": lambda *_, **__: None,
        "array": np.zeros(3), "array of states": np.zeros((6, 2)), "array of text": np.array(["a"]),
        "numpy integer": np.int64(2), "numpy float": np.float64(0.5), "scalar": torch.tensor(3.0),
        "vector": torch.zeros(3), "nan": torch.full((6, 2), math.nan, dtype=torch.float64),
        "float32": torch.zeros(6, 2), "integers": torch.zeros(6, 2, dtype=torch.int64),
        "complex": torch.zeros(6, 2, dtype=torch.complex64), "empty": torch.zeros(0, 2, dtype=torch.float64),
        "unsigned": torch.zeros(6, 2, dtype=torch.uint16), "bool": torch.zeros(6, 2, dtype=torch.bool),
        "meta": torch.zeros(6, 2, device="meta", dtype=torch.float64), "sampler": samplers.ddim(2),
        "model": MODEL, "process": VP, "law": NORMAL, "grid": samplers.grids.karras, "data": POINTS,
        "network": network_model(), "path": Path("nowhere"),
    }  # fmt: skip
    return made


VALUES = values()


def parameters(recipe: Recipe) -> list[str]:
    """The names of the arguments."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(recipe.call).parameters.values()
    return [p.name for p in found if p.kind in kinds and p.name != "self"]


def complaint(recipe: Recipe, name: str, value: Any) -> str | None:
    """What is wrong with the outcome of a call; None if nothing is."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe.call(**{**recipe.arguments(), name: value})
    except (TypeError, ValueError, OSError, SolverError, NonFiniteError) as error:
        text = str(error)
        names = "|".join(re.escape(part) for part in (name, ALIASES.get(name, name)))
        known = isinstance(error, (SolverError, NonFiniteError)) or re.search(rf"\b({names})\b", text)
        if not known:
            return f"{type(error).__name__} does not name {name}: {text[:200]}"
        if len(text) > 1000:
            return f"the sentence has {len(text)} characters: {text[:200]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.perf_counter() - start
    return f"took {seconds:.1f} s" if seconds > SECONDS else None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Recipe]]:
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield recipes(folder)


def cases(made: dict[str, Recipe]) -> Iterator[tuple[str, str, str]]:
    """(recipe, argument, value) of every case."""
    for name, recipe in made.items():
        for argument in parameters(recipe):
            for value in VALUES:
                own = (name, argument) in OWN_ERRORS and callable(VALUES[value])
                if not own and argument != "plan":  # which only a method makes
                    yield name, argument, value


def test_recipes_work(made) -> None:
    for name in set(made) - NOT_CALLED:
        made[name].call(**made[name].arguments())


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_argument_is_taken_or_named(made, data) -> None:
    name, argument, value = data.draw(st.sampled_from(list(cases(made))), label="case")
    assert complaint(made[name], argument, VALUES[value]) is None


@pytest.mark.slow
def test_every_argument_is_taken_or_named(made) -> None:
    found = [(case, complaint(made[case[0]], case[1], VALUES[case[2]])) for case in cases(made)]
    wrong = [f"{case}: {text}" for case, text in found if text]
    assert len(found) > 10_000
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong[:60])
