"""Angles of data sets from files: round trip, densities in the units of the columns, refusals, the shell."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from sde_toolkit import cli
from sde_toolkit.config import likelihood_options, override_config
from sde_toolkit.data import Circles, Scaling, open_data, scaling_from_tensors
from sde_toolkit.likelihood import log_likelihood
from sde_toolkit.runs import evaluate_likelihood, open_run

QUICK = [f"--config.likelihood.{w}" for w in ("method=heun", "num_steps=4", "num_diagnostic_samples=0")]
RNG = np.random.default_rng(0)
DEGREES = np.degrees(RNG.vonmises(2.5, 1.2, 300)) % 360
TABLE = np.stack([np.exp(RNG.normal(size=300)), DEGREES, RNG.normal(size=300)], 1)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "wind.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["speed", "direction", "height"])
        rows.writerows(TABLE.tolist())
    return path


@pytest.mark.parametrize("scaling", ["auto", "whiten", "none"])
@pytest.mark.parametrize("bounds", ["", "speed=0:"])
def test_data_come_back_and_densities_are_those_of_the_columns(table, scaling, bounds):
    if scaling == "none" and bounds:
        return
    made = open_data(table, angles="direction=0:360", scaling=scaling, bounds=bounds)
    assert made.event_shape == (4,)
    raw = made.scaling.to_data(made.scaled_train().double())
    rows = {tuple(np.round(row, 4)) for row in TABLE.tolist()}
    assert all(tuple(np.round(row, 4)) in rows for row in raw[:20].tolist())
    law = scaling_from_tensors(made.scaling.tensors())
    assert law == made.scaling
    # log_det is that of the map to model scale, by automatic differentiation, and of the circle
    x = made.scaled_train()[:3].double()
    bare = Scaling(law.scale, law.shift, None, law.support, law.matrix)
    found = law.log_det(x) - law.circles.log_det(bare.from_model(x))
    for row, value in zip(x, found, strict=True):
        w = bare.from_model(row[None])[0]
        there = torch.autograd.functional.jacobian(lambda v: bare.to_model(v[None], torch.float64)[0], w)
        assert float(value) == pytest.approx(float(there.det().abs().log()), abs=1e-9)


def test_the_exact_law_in_model_scale_gives_that_of_the_angle():
    """x is the plane itself here: p(x, y) of a von Mises angle and a log-normal radius."""
    law = Scaling(torch.ones((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64), None, None, None,
                  Circles((0,), (360.0,)))  # fmt: skip
    w = torch.from_numpy(DEGREES[:20, None])
    x = law.to_model(w, torch.float64)
    torch.testing.assert_close(law.from_model(x), w, rtol=1e-9, atol=1e-9)
    radius = x.norm(dim=1).numpy()
    known = stats.vonmises(1.2, loc=2.5)
    plane = known.logpdf(np.radians(DEGREES[:20])) + stats.lognorm(0.2).logpdf(radius) - np.log(radius)
    truth = known.logpdf(np.radians(DEGREES[:20])) + math.log(math.pi / 180)
    np.testing.assert_allclose(plane + law.log_det(x).numpy(), truth, atol=1e-9)


def test_texts_name_columns_and_intervals():
    assert Circles.of_text("b=0:360, 0=-1:1", ("a", "b"), 2) == Circles((1, 0), (360.0, 2.0), (0.0, -1.0))
    assert Circles((0, 1), (1.0, 1.0), 2.0).tensors()["low"].tolist() == [2.0, 2.0]
    for text, said in (
        ("b", "text must name columns and their intervals, as in .*, got 'b'"),
        ("b=360", "text must name columns and their intervals"),
        ("c=0:1", "text must name columns, each once, got 'c' in 'c=0:1'; columns: a, b"),
        ("2=0:1", "each once, got '2'"),
        ("b=0:1,1=0:1", "each once, got '1'"),
        ("b=1:0", "text must hold intervals of finite length"),
        ("b=0:inf", "text must hold intervals of finite length"),
    ):
        with pytest.raises(ValueError, match=said):
            Circles.of_text(text, ("a", "b"), 2)
    for tensors in ({"columns": torch.zeros(1)}, {**Circles((0,), (1.0,)).tensors(), "low": torch.zeros(1)}):
        with pytest.raises(ValueError, match="the circles must have columns, periods and low"):
            Circles.from_tensors(tensors)


def test_what_cannot_be_angles_is_refused(table, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8)))
    for source, options, said in (
        (table, {"angles": "wind=0:360"}, "data.angles: text must name columns"),
        (
            table,
            {"angles": "direction=0:360", "missing": "mask"},
            "data.angles must be .*, got .* and missing entries",
        ),
        (
            table,
            {"angles": "direction=0:360", "bounds": "direction=0:360"},
            "data.bounds must be those of columns",
        ),
        (table, {"angles": "direction=0:360", "bounds": "0:"}, "data.bounds must be those of columns"),
        (tmp_path / "images.npy", {"angles": "0=0:360", "layout": "NHW"}, "got examples with shape"),
    ):
        with pytest.raises(ValueError, match=said):
            open_data(source, **options)
    with pytest.raises(ValueError, match="circles must be None for grey levels"):
        Scaling(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 4, None, None,
                Circles((0,), (1.0,)))  # fmt: skip


@pytest.mark.slow
def test_the_shell_trains_samples_and_gives_likelihoods_of_angles(table, tmp_path, capsys):
    few = ["--config.training.num_steps=3", "--config.training.batch_size=16", "--config.model.width=8",
           "--config.model.depth=1"]  # fmt: skip
    workdir = tmp_path / "run"
    words = [f"--data={table}", "--config.data.angles=direction=0:360", f"--workdir={workdir}", *few]
    assert cli.main(["train", *words]) == 0
    assert cli.main(["sample", f"--workdir={workdir}", "--num_samples=5", "--num_steps=3"]) == 0
    drawn = np.load(next((workdir / "samples").glob("*.npz")))
    assert drawn["x"].shape == (5, 4)
    assert drawn["data"].shape == (5, 3)
    assert bool(((drawn["data"][:, 1] >= 0) & (drawn["data"][:, 1] <= 360)).all())
    capsys.readouterr()
    assert cli.main(["likelihood", f"--workdir={workdir}", "--num_examples=4", *QUICK]) == 0
    assert "bits/dim" in capsys.readouterr().out
    run = open_run(workdir, dict(word.removeprefix("--config.").split("=") for word in QUICK))
    assert run.model.scaling.circles == Circles((1,), (360.0,), (0.0,))
    x = run.dataset().scaled_test()[:4]
    nats = log_likelihood(run.model, x, **likelihood_options(run.config)).nats + run.model.scaling.log_det(x)
    made, _ = evaluate_likelihood(
        replace(run, config=override_config(run.config, {"likelihood.num_examples": 4})), tmp_path
    )
    bits = -nats / (3 * math.log(2))  # per column of the table
    assert made.bits_per_dim == pytest.approx(bits.tolist(), rel=1e-6)
