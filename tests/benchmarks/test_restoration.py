"""The benchmark of restoration: colour digits, tasks and rows."""

import numpy as np
import pytest
import torch

from benchmarks.restoration import CONTRAST, coloured, measured, sheet, tasks
from sde_toolkit import guidance
from sde_toolkit.data import digits
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.runs import open_shipped
from sde_toolkit.sdes import VPSDE


def test_colour_digits_have_two_colours_that_differ_in_grey():
    ink = digits().test[:20].numpy() / 16
    found = coloured(ink, 3)
    assert (found == coloured(ink, 3)).all()
    for grey, image in zip(ink, found.astype(float), strict=True):
        ground, front = (image[:, (grey[0] == v)].mean(1) for v in (0, 1))
        assert abs(ground.mean() - front.mean()) / 255 > CONTRAST - 0.01
        wanted = ground[:, None, None] + grey * (front - ground)[:, None, None]
        assert np.abs(image - wanted).max() <= 1.5


@pytest.mark.parametrize("name", ["digits", "colour"])
def test_what_is_hidden_is_not_observed(name):
    shape = (3, 8, 8) if name == "colour" else (1, 8, 8)
    for task in tasks(name, shape, 16.0).values():
        free = torch.zeros(1, *shape, dtype=torch.float64)
        free[:, task.hidden & (task.observation.std == 0)] = 1
        assert float(task.observation.A.forward(free).abs().sum()) == 0


def test_exact_draws_cover_as_often_as_they_say():
    n = 16
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 4
    data = Gaussian(torch.zeros(n), root @ root.mT + 0.01 * torch.eye(n, dtype=torch.float64))
    model, task = ExactModel(data, VPSDE()), tasks("digits", (1, 4, 4), 1.0)["random"]
    task = task._replace(
        observation=guidance.LinearObservation(task.observation.A.matrix(), 0.1, event_shape=(n,)),
        hidden=task.hidden.flatten(),
    )
    row, _, _ = measured(model, task, guidance.GaussianInformed(), data.sample(60, 1), 1.0)
    assert abs(row["coverage"] - 0.9) < 5 * row["coverage error"]


def test_sheets_are_pictures():
    run = open_shipped("digits")
    images, task = run.dataset().test[:6].double(), tasks("digits", (1, 8, 8), 16.0)["box"]
    y = task.observation.draw(images, 0)
    found = guidance.restore(run.model, task.observation, y, num_draws=4, seed=0)
    assert sheet(images, y, found, 16.0).startswith(b"\x89PNG")
