"""Densities given a condition: every row has its own, whatever the batch, the solver and the process."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from problems import MIXTURE

from sde_toolkit.data import Scaling
from sde_toolkit.likelihood import (
    BoundDraws,
    Endpoint,
    FlowSolver,
    Hutchinson,
    UniformDequantizer,
    continuous_bound,
    decode,
    differentiable_log_likelihood,
    discrete_bound,
    discrete_log_likelihood,
    encode,
    log_likelihood,
)
from sde_toolkit.models import ExactModel
from sde_toolkit.sdes import VESDE, VPSDE, SubVPSDE
from solvers import AB4, RK4

COUNT = 8
MODEL = ExactModel(MIXTURE, VPSDE())
LABELS = torch.arange(COUNT) * 3 % 5
X = MIXTURE.sample(COUNT, seed=4)
LOOSE = {"num_diagnostic_samples": 0, "solver": FlowSolver(rtol=0.001, atol=0.001)}
GRID = {"num_diagnostic_samples": 0, "solver": FlowSolver(method=AB4, num_steps=12)}

DENSITIES = {
    "adaptive, exact": partial(log_likelihood, **LOOSE),
    "adaptive, probes": partial(log_likelihood, divergence=Hutchinson(2), **LOOSE),
    "fixed grid": partial(log_likelihood, divergence=Hutchinson(2, orthogonal=True), **GRID),
    "tweedie": partial(log_likelihood, endpoint=Endpoint(correction="tweedie"), **GRID),
    "reconstruction": partial(log_likelihood, endpoint=Endpoint(correction="reconstruction"), **GRID),
    "continuous bound": partial(continuous_bound, draws=BoundDraws(num_draws=8)),
    "chain, all terms": lambda model, x, **more: discrete_bound(model, x, model.sde.discretize(20), **more),
    "chain, some terms": lambda model, x, **more: discrete_bound(
        model, x, model.sde.discretize(50), draws=BoundDraws(num_draws=8), **more
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSITIES)
def test_labels_follow_their_rows_whatever_the_batch(name: str) -> None:
    density = DENSITIES[name]
    whole = density(MODEL, X, condition=LABELS)
    for batch_size in (1, 7, COUNT):
        parts = density(MODEL, X, condition=LABELS, batch_size=batch_size)
        assert torch.equal(parts.nats, whole.nats)
        assert torch.equal(parts.nfe, whole.nfe)
    for i in range(COUNT):
        alone = density(MODEL, X[i : i + 1], condition=int(LABELS[i]), first_sample=i)
        assert torch.equal(alone.nats[0], whole.nats[i])


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "sub-vp", "ve"])
def test_values_are_the_densities_of_the_components(sde) -> None:
    model = ExactModel(MIXTURE, sde)
    found = log_likelihood(model, X, condition=LABELS, solver=FlowSolver(rtol=1e-07, atol=1e-07))
    exact = model.log_prob(X, torch.tensor(1e-5, dtype=torch.float64), LABELS)
    each = torch.stack(
        [MIXTURE.component(int(k)).log_prob(x[None])[0] for k, x in zip(LABELS, X, strict=True)]
    )
    torch.testing.assert_close(exact, each, rtol=5e-3, atol=5e-3)
    # the prior is the Gaussian with the moments of all components, and the budget says how far that is off
    assert found.budget is not None
    corrected = found.nats + found.budget["prior"].shift
    error = (corrected - exact).abs()
    assert bool((error < 6 * found.budget["prior"].error + 1e-3).all())


@pytest.mark.slow
def test_adaptive_rows_that_end_at_different_times_keep_their_labels() -> None:
    """Each equals the run of its own component, in the same coordinates."""
    found = log_likelihood(
        MODEL, X, condition=LABELS, num_diagnostic_samples=0, solver=FlowSolver(rtol=1e-06, atol=1e-06)
    )
    assert found.nfe.unique().numel() > 1
    for k in range(5):
        mine = k == LABELS
        one = log_likelihood(
            MODEL.given(k),
            X[mine],
            num_diagnostic_samples=0,
            solver=FlowSolver(rtol=1e-06, atol=1e-06),
            endpoint=Endpoint(moments=MODEL.moments),
        )
        torch.testing.assert_close(found.nats[mine], one.nats, rtol=1e-4, atol=1e-4)


LATENT_SOLVERS = {"adaptive": FlowSolver(rtol=1e-6, atol=1e-6), "fixed grid": FlowSolver(AB4, num_steps=20)}


@pytest.mark.slow
@pytest.mark.parametrize("solver", LATENT_SOLVERS.values(), ids=LATENT_SOLVERS)
def test_latents_go_to_and_fro_given_their_labels(solver: FlowSolver) -> None:
    whole = encode(MODEL, X, condition=LABELS, solver=solver)
    back = decode(MODEL, whole.z, condition=LABELS, solver=solver)
    if solver.num_steps is None:
        assert float(whole.round_trip.max()) < 1e-4
        torch.testing.assert_close(back, X, rtol=1e-3, atol=1e-3)
    for batch_size in (1, 7, COUNT):
        parts = encode(MODEL, X, condition=LABELS, solver=solver, batch_size=batch_size)
        assert torch.equal(parts.z, whole.z)
        assert torch.equal(parts.nfe, whole.nfe)
        assert torch.equal(parts.round_trip, whole.round_trip)
        again = decode(MODEL, whole.z, condition=LABELS, solver=solver, batch_size=batch_size)
        assert torch.equal(again, back)
    for i in range(COUNT):
        mine, label = slice(i, i + 1), int(LABELS[i])
        assert torch.equal(encode(MODEL, X[mine], condition=label, solver=solver).z, whole.z[mine])
        assert torch.equal(decode(MODEL, whole.z[mine], condition=label, solver=solver), back[mine])


@pytest.mark.slow
def test_gradients_given_labels_are_the_conditional_scores() -> None:
    x = X.clone().requires_grad_()
    values = differentiable_log_likelihood(MODEL, x, condition=LABELS, solver=FlowSolver(RK4, num_steps=48))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    exact = MODEL.score(X, torch.tensor(1e-5, dtype=torch.float64), LABELS)
    assert float((gradient - exact).abs().max() / exact.abs().max()) < 0.05


def test_grey_levels_given_labels() -> None:
    scaling, values = Scaling.grey(16), torch.arange(COUNT * 8).reshape(COUNT, 8) % 16
    uniform = UniformDequantizer(scaling, MODEL.sde)
    flow = partial(log_likelihood, **GRID)
    found = discrete_log_likelihood(MODEL, values, uniform, condition=LABELS, log_likelihood=flow)
    for i in (0, 3):
        alone = discrete_log_likelihood(
            MODEL, values[i : i + 1], uniform, condition=int(LABELS[i]), first_sample=i, log_likelihood=flow
        )
        assert torch.equal(alone.nats[0], found.nats[i])


@pytest.mark.parametrize("density", [DENSITIES["adaptive, exact"], DENSITIES["continuous bound"]])
def test_conditions_that_do_not_fit_are_refused(density) -> None:
    with pytest.raises(ValueError, match=r"shape \(8,\), one per sample, got \(3,\)"):
        density(MODEL, X, condition=LABELS[:3])
    with pytest.raises(ValueError, match="left out for a model without conditions"):
        density(MODEL.given(0), X, condition=LABELS)


def test_a_learned_variance_is_handed_the_conditions_of_its_rows() -> None:
    chain = MODEL.sde.discretize(6)

    def learned(x_i: torch.Tensor, i: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return condition.double() / 5

    def fixed(label: int):
        return lambda x_i, i, condition: torch.full_like(x_i, label / 5)

    whole = discrete_bound(MODEL, X, chain, condition=LABELS, variance=learned).nats
    parts = discrete_bound(MODEL, X, chain, condition=LABELS, variance=learned, batch_size=3).nats
    assert torch.equal(parts, whole)
    for i in range(COUNT):
        label = int(LABELS[i])
        alone = discrete_bound(
            MODEL, X[i : i + 1], chain, condition=label, variance=fixed(label), first_sample=i
        )
        torch.testing.assert_close(alone.nats[0], whole[i], rtol=1e-12, atol=0)


def test_the_budget_of_a_row_is_that_of_the_row_alone() -> None:
    solver = FlowSolver(rtol=1e-3, atol=1e-3)
    whole = log_likelihood(MODEL, X[:3], condition=LABELS[:3], divergence=2, solver=solver).budget
    for i in range(3):
        alone = log_likelihood(
            MODEL, X[i : i + 1], condition=int(LABELS[i]), divergence=2, solver=solver, first_sample=i
        ).budget
        for name in whole:
            torch.testing.assert_close(alone[name].shift[0], whole[name].shift[i], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(alone[name].error[0], whole[name].error[i], rtol=1e-9, atol=1e-9)


SCRIPT = """
import functools, sys, torch
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import importlib.util
spec = importlib.util.spec_from_file_location("conditions", {root!r} + "/tests/likelihood/test_conditions.py")
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
from sde_toolkit.utils import launched

torch.set_num_threads(1)
with launched() as processes:
    assert processes.count == 2
    for name in ("adaptive, exact", "fixed grid", "continuous bound", "chain, some terms"):
        density = functools.partial(tests.DENSITIES[name], tests.MODEL, tests.X, condition=tests.LABELS)
        alone = density().nats
        for batch_size in (1, 7, tests.COUNT):
            assert torch.equal(density(batch_size=batch_size, processes=processes).nats, alone), name
    for solver in tests.LATENT_SOLVERS.values():
        code = functools.partial(tests.encode, tests.MODEL, tests.X, condition=tests.LABELS, solver=solver)
        alone = code()
        for batch_size in (1, 7, tests.COUNT):
            found = code(batch_size=batch_size, processes=processes)
            assert torch.equal(found.z, alone.z)
            assert torch.equal(found.round_trip, alone.round_trip)
    print("equal", flush=True)
"""


@pytest.mark.slow
def test_two_processes_give_the_values_of_one(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
