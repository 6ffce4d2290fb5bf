"""The photograph benchmark: disjoint patches, a run that is trained once, every part on a tiny network."""

import json
import re

import numpy as np
import pytest

from benchmarks import patches, photographs
from benchmarks.peers import ours
from benchmarks.peers.flow import our_error
from benchmarks.record import RESULTS
from sde_toolkit.likelihood import FlowSolver
from sde_toolkit.models import Moments
from solvers import AB4

TINY = {"model.channels": (8, 8), "model.num_groups": 4, "model.patch_size": 4, "training.batch_size": 4}
SIZE = (192, 224)


def pictures() -> patches.Photographs:
    """Two pictures of smooth stripes and noise."""
    rng = np.random.default_rng(0)
    i, j = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    waves = [120 + 80 * np.sin((a * i + b * j) / 20) for a, b in ((1, 0), (0, 1), (1, 1))]
    noisy = (np.stack(waves, 2) + rng.normal(0, 8, (*SIZE, 3))).clip(0, 255)
    return {"a": noisy.astype(np.uint8), "b": noisy[::-1, ::-1].astype(np.uint8)}


def numbered() -> np.ndarray:
    """A picture whose pixels have their place for values; as integers, which uint8 could not hold."""
    return np.arange(SIZE[0] * SIZE[1]).reshape(*SIZE, 1).repeat(3, 2)


def test_no_pixel_is_in_both_sets() -> None:
    train, test = patches.cut({"numbered": numbered()})
    assert train.shape[1:] == test.shape[1:] == (3, 32, 32)
    assert not np.isin(test, train).any()
    assert len(np.unique(test[:, 0])) == test[:, 0].size  # nor twice in the second


def test_the_photographs_come_with_the_package() -> None:
    pytest.importorskip("skimage")
    found = patches.photographs()
    assert all(photo.dtype == np.uint8 and photo.shape[2] == 3 for photo in found.values())
    train, test = patches.cut(found)
    assert len(train) > 10_000
    assert len(test) > 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    workdir = tmp_path_factory.mktemp("photographs") / "run"
    return patches.trained(workdir, 1e-3, TINY, pictures)


@pytest.mark.slow
def test_a_second_call_takes_what_was_trained(run) -> None:
    assert run.step == patches.CHECKPOINT_EVERY
    again = patches.trained(run.workdir, 1e-3, TINY, pictures)
    assert again.fingerprint == run.fingerprint
    longer = patches.trained(run.workdir, patches.seconds_trained(run.workdir) / 60 + 1e-5, TINY, pictures)
    assert longer.step == run.step + patches.CHECKPOINT_EVERY
    assert run.config.model.predicts == "residual"
    assert run.model.moments.kind == "low_rank"


@pytest.mark.slow
def test_the_flow_of_a_tiny_network(run) -> None:
    other = next(entry for entry in ours.deterministic() if entry.name == "ddim")
    found = photographs.flow(run.model, [("ours", "ddim", our_error, other)], 2, 1, (2, 6), (1e-4, 1e-3))
    assert found["fine"] < 0.01
    low_rank, diagonal = found["errors"]["low rank"], found["errors"]["diagonal"]
    assert low_rank[1] < min(low_rank[0], diagonal[1], found["best"]["ours"][1]["error"])
    assert low_rank[1] < 0.1


@pytest.mark.slow
def test_times_and_likelihoods_of_a_tiny_network(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "FEW", 1)
    monkeypatch.setattr(photographs, "MANY", 2)
    times = photographs.timing(run.model, batch=2, turns=1)
    assert times["network"]["run of 1 over network"] == 1
    dataset = run.dataset()
    x, law = dataset.scaled_test()[:2], run.model.moments
    found = photographs.control(run.model, x, num_probes=4, steps=2)
    names = ("walsh probes, control 0.5", "gaussian probes, control 1")
    for low, whole in ((found[f"low rank, {name}"], found[f"diagonal, {name}"]) for name in names):
        assert 0 < low < whole  # the little trained network is almost that Gaussian
    assert found["low rank, gaussian probes, control 1"] < found["low rank, gaussian probes, control 0"]
    coarse = Moments(law.mean, law.diagonal().covariance)
    brief = {"divergence": 2, "solver": FlowSolver(AB4, num_steps=4)}
    kept: list = []
    log_det = dataset.scaling.log_det_per_dim
    row = photographs.likelihood(run.model, x, log_det, coarse, save=kept.extend, **brief)
    assert 0 < row["bits/dim"] < 10
    assert row == photographs.likelihood(run.model, x, log_det, coarse, kept)
    assert set(row["bits/dim of the budget: correction, size"]) == {
        "solver",
        "probes",
        "truncation",
        "prior",
        "total",
    }


def test_the_unit_is_that_of_eight_bit_levels(run) -> None:
    """The uniform density on [-1, 1]^D has 8 bits/dim."""
    log_det = run.dataset().scaling.log_det_per_dim
    assert -(np.log(0.5) + log_det) / np.log(2) == pytest.approx(8)


def test_the_figures_are_quoted_as_they_were_measured() -> None:
    found = json.loads((RESULTS / "photographs.json").read_text())["results"]
    text = (RESULTS.parent / "README.md").read_text()
    for name in ("low rank", "diagonal"):
        (line,) = re.findall(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE)
        quoted = [float(cell) for cell in line.split("|")]
        assert quoted == pytest.approx(found["flow"]["errors"][name], rel=0.05)
