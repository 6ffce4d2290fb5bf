"""Arguments of every sampler: taken, or refused with a sentence that names the argument."""

import functools
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit import samplers
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.samplers import PRESETS, Sampler, grids
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import checked
from solvers import DOPRI5, SRA1

MODEL = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.ddim(20, grid="karras"), "a Grid, got 'karras'; .* grid=grids.karras"),
        (lambda: samplers.ddim("20"), "num_steps must be an integer, got '20'; .* num_steps=20"),
        (lambda: samplers.ddim(20.0), "num_steps must be an integer, got 20.0; give 20"),
        (lambda: samplers.ddim(True), "num_steps must be an integer, got True"),
        (lambda: samplers.ddim(), r"ddim\(\) takes num_steps, eta, .*missing.*'num_steps'"),
        (lambda: samplers.ddim(20, etaa=0.5), r"ddim\(\) takes .*unexpected.*'etaa'"),
        (lambda: samplers.predictor_corrector(50), "predictor must be a Sampler, got 50; .*diffusion"),
        (lambda: samplers.predictor_corrector(samplers.ddim(5), 0.1), "corrector must be a Corrector"),
        (lambda: samplers.restarting(samplers.ddim(5), 3), "restarts must be a Restart, got 3"),
        (lambda: samplers.adaptive("dopri5"), "method must be a Method .*method=solvers.DOPRI5"),
        (lambda: samplers.adaptive_sde(method="SRA1"), "method must be a Method, got 'SRA1'"),
        (lambda: samplers.deis(5, clock="nsr"), "clock must be a function, got 'nsr'; .*in_nsr"),
        (lambda: samplers.dopri5(rtol="1e-3"), "rtol must be a number, got '1e-3'; .*rtol=1e-3"),
        (lambda: samplers.dopri5(rtol=math.nan), "rtol must be a number, got nan"),
        (lambda: samplers.dopri5(rtol=-1.0), "rtol and atol must be finite"),
        (lambda: samplers.ddim(5, denoise="no"), "denoise must be True or False, got 'no'"),
        (lambda: samplers.edm(5, t_min=None), "t_min must be a number, got None"),
        (lambda: samplers.default(3), "model must be a ScoreModel, got 3"),
        (lambda: samplers.ddim(5, eta=np.zeros(2)), r"eta must be a number, got a ndarray of float64 with"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_numbers_of_numpy_become_pythons():
    sampler = samplers.ddim(np.int64(7), eta=np.float32(0.5), denoise=np.bool_(True))
    assert (type(sampler.num_steps), type(sampler.settings["eta"]), sampler.denoise) == (int, float, True)


def test_what_holds_the_wanted_object_is_told_apart():
    class Run:
        def __init__(self) -> None:
            self.ema = MODEL

    with pytest.raises(TypeError, match=r"model must be a ScoreModel, got a Run; give its \.ema"):
        samplers.default(Run())


def test_a_checked_function_keeps_its_signature():
    @checked
    def f(a: int, *rest: float, b: str = "x", **more: object) -> tuple:
        return a, rest, b, more

    assert list(inspect.signature(f).parameters) == ["a", "rest", "b", "more"]
    assert f(1, 2, 3.0, b="y", c=None) == (1, (2, 3.0), "y", {"c": None})
    with pytest.raises(TypeError, match="rest must be a number, got 'z'"):
        f(1, "z")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.just(10**400), st.floats(), st.text(max_size=8),
    st.binary(max_size=3), st.complex_numbers(), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.sampled_from(
        [grids.karras, grids.uniform, DOPRI5, SRA1, Sampler, object(), torch.tensor(3), torch.ones(2),
         np.float64(0.5), np.arange(3), samplers.ddim(5), samplers.Langevin(), samplers.in_lam, MODEL]
    ),
)  # fmt: skip


def refusals(preset, values: dict[str, object]) -> None:
    """Make the sampler: it is made, or the refusal names an argument that was given."""
    first = {"fixed": {"num_steps": 5}, "model": {"model": MODEL, "num_steps": 5}, "adaptive": {}}[
        preset.kind
    ]
    given_values = first | values
    try:
        sampler, message = preset.function(**given_values), None
    except (TypeError, ValueError) as error:
        sampler, message = None, str(error)
    if message is None:
        assert isinstance(sampler, Sampler)
    else:
        assert any(name in message for name in values), (preset.name, values, message)
        assert len(message) < 800


@functools.cache
def presets() -> list:
    return [PRESETS[name] for name in PRESETS]


def any_argument(data) -> None:
    preset = data.draw(st.sampled_from(presets()), label="preset")
    names = data.draw(st.lists(st.sampled_from(preset.parameters), min_size=1, max_size=2, unique=True))
    refusals(preset, {name: data.draw(VALUES, label=name) for name in names})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_argument_is_taken_or_named(data):
    any_argument(data)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_any_argument_is_taken_or_named_in_many_cases(data):
    any_argument(data)
