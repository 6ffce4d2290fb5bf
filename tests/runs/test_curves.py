"""Held-out losses in the report: read, drawn, and the known minimum against an independent value."""

import pytest
import torch

from sde_toolkit import cli
from sde_toolkit.data import ring
from sde_toolkit.lab import figures
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.runs import open_run
from sde_toolkit.runs.learning import least_by_level, read_held_out
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import loss_by_level


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = ["--config=ring", "--config.model.width=8", "--config.model.depth=1",
             "--config.data.num_train=64",
             "--config.data.num_test=300", "--config.training.batch_size=16",
             "--config.training.num_steps=4", "--config.training.log_every=1",
             "--config.training.evaluate_every=2", "--config.training.evaluate_bins=4"]  # fmt: skip
    assert cli.main(["train", f"--workdir={folder}", *words]) == 0
    return folder


def test_the_file_is_read_and_the_minimum_is_that_of_its_draws(workdir):
    curves = read_held_out(workdir)
    assert [step for step, _ in curves.losses] == [2, 4]
    assert (curves.first[0], curves.last[0], len(curves.levels)) == (2, 4, 4)
    assert curves.levels == sorted(curves.levels)
    run = open_run(workdir)
    least = least_by_level(run, curves.levels)
    for mine, exact in zip(curves.last[1], least, strict=True):
        assert mine > 0.999 * exact
    assert curves.last[1][1] > 1.2 * least[1]  # four steps are not enough at middle levels
    assert least_by_level(run, [level + 1 for level in curves.levels]) is None
    assert least_by_level(run, []) is None
    with open(workdir / "held_out.csv", "a") as file:
        file.write("6,")  # a kill in the middle of a row
    assert read_held_out(workdir).last[0] == 4
    assert read_held_out(workdir / "checkpoints") is None


def test_the_error_of_an_exact_model_is_the_conditional_variance():
    """Var[z | x_t] = d^2 / (d^2 + n^2) for data N(0, d^2 I), n the noise-to-signal ratio."""
    law = Gaussian([0.0, 0.0], torch.full((2,), 0.25, dtype=torch.float64))
    data = ring(num_train=4, num_test=4000)
    data = type(data)("normal", data.train, law.sample(4000, seed=0).float())
    for level in loss_by_level(ExactModel(law, VPSDE(), torch.float32), data, 6):
        u = torch.linspace(level.low, level.high, 1001, dtype=torch.float64)
        expected = (0.25 / (0.25 + (-u).exp())).mean()
        assert abs(level.mean - float(expected)) < 5 * level.standard_error + 1e-9


def test_curves_are_drawn():
    figure = figures.level_figure([-2.0, 0.0, 2.0], {"step 1": [0.1, 0.5, 0.9]}, [0.1, 0.4, 0.8], "t")
    lines = figure.axes[0].lines
    assert [list(line.get_ydata()) for line in lines[:2]] == [[0.1, 0.5, 0.9], [0.1, 0.4, 0.8]]
    both = figures.loss_figure([1, 2], [1.0, 0.5], "t", [(1, 0.9), (2, 0.6)])
    assert list(both.axes[0].lines[2].get_ydata()) == [0.9, 0.6]


@pytest.mark.slow
def test_the_report_shows_them(workdir):
    brief = ["--samplers=ddim", "--num_steps=2", "--num_samples=20"]
    assert cli.main(["compare", f"--workdir={workdir}", *brief]) == 0
    assert (workdir / "figures" / "levels.png").is_file()
    assert "the dashed line is the exact score" in (workdir / "report.html").read_text()
