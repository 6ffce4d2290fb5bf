"""The table of Wasserstein errors on Gaussian data: production samplers against formulas, and published
digits."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import gaussian_table as table
from benchmarks.record import RESULTS
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import Stream
from solvers.brownian import STEPS


def recursion(name: str, data: np.ndarray, num_points: int, t_min: float, start: str) -> np.ndarray:
    """Output variances by the papers' formulas, in numpy, for beta = 0.1 + 19.9 t."""
    ts = np.linspace(1.0, t_min, num_points)

    def beta(t):
        return 0.1 + 19.9 * t

    def integral(t):
        return 0.1 * t + 9.95 * t**2

    def total(t):  # variance of x_t
        return 1 + (data - 1) * math.exp(-integral(t))

    def flow(t):  # dx/dt = flow x on the probability flow
        return 0.5 * beta(t) * (1 / total(t) - 1)

    out = total(1.0) if start == "p_T" else np.ones_like(data)
    for t, s in itertools.pairwise(ts):
        h, growth = s - t, math.exp(0.5 * (integral(t) - integral(s)))
        m = 0.5 * (t + s)
        noise = 0.0
        if name == "euler_maruyama":
            factor, noise = 1 + h * beta(t) * (1 / total(t) - 0.5), -h * beta(t)
        elif name == "exponential_integrator":
            factor, noise = growth - 2 * (growth - 1) / total(t), growth**2 - 1
        elif name == "ddpm_rate":
            noise = -h * beta(t)
            factor = (1 - noise / total(t)) / math.sqrt(1 - noise)
        elif name == "ancestral":
            sigma2_t, sigma2_s = -math.expm1(-integral(t)), -math.expm1(-integral(s))
            q2 = sigma2_t - sigma2_s / growth**2
            x0_hat = (1 - sigma2_t / total(t)) / math.exp(-0.5 * integral(t))
            factor = sigma2_s / sigma2_t / growth + math.exp(-0.5 * integral(s)) * q2 / sigma2_t * x0_hat
            noise = sigma2_s * q2 / sigma2_t
        elif name == "euler":
            factor = 1 + h * flow(t)
        elif name == "heun":
            factor = 1 + h / 2 * (flow(t) + flow(s) * (1 + h * flow(t)))
        else:
            k1 = flow(t)
            k2 = flow(m) * (1 + h / 2 * k1)
            k3 = flow(m) * (1 + h / 2 * k2)
            k4 = flow(s) * (1 + h * k3)
            factor = 1 + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        out = factor**2 * out + noise
    return out


class Impulses:
    """Row 0 is the response to x_T, row 1 + k to draw k."""

    def __init__(self, num_draws: int, num_features: int) -> None:
        self.shape = (1 + num_draws, num_features)

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        z = torch.zeros(self.shape, dtype=torch.float64)
        z[0 if stream == Stream.PRIOR else 1 + index] = 1
        return z


@pytest.mark.parametrize(("t_min", "start"), [(0.0, "N(0, I)"), (1e-3, "N(0, I)"), (1e-4, "p_T")])
@pytest.mark.parametrize("name", list(table.samplers(2, 0.5)))
def test_cells_on_the_digits_equal_an_independent_recursion(name, t_min, start):
    eigenvalues = table.digits_eigenvalues()
    sampler = table.samplers(50, t_min)[name]
    if t_min == 0 and name in ("heun", "rk4"):
        assert table.error(sampler, eigenvalues) == math.inf
        with pytest.raises(ValueError, match=r"evaluates the (score at t_min|model where sigma = 0)"):
            table.output_variances(sampler, eigenvalues)
        return
    expected = recursion(name, eigenvalues.numpy(), 50, t_min, start)
    np.testing.assert_allclose(table.output_variances(sampler, eigenvalues, start), expected, rtol=1e-9)
    w2 = math.sqrt(((np.sqrt(expected) - eigenvalues.sqrt().numpy()) ** 2).sum())
    assert table.error(sampler, eigenvalues, start) == pytest.approx(w2, rel=1e-9)


@pytest.mark.parametrize("name", ["euler_maruyama", "ancestral", "ddpm_rate", "exponential_integrator"])
def test_three_orthogonal_rows_give_what_a_unit_impulse_per_draw_gives(name):
    eigenvalues = torch.tensor([0.0, 1e-3, 0.4, 30.0], dtype=torch.float64)
    sampler = table.samplers(40, 0.0)[name]
    model = ExactModel(Gaussian(torch.zeros_like(eigenvalues), eigenvalues), VPSDE())
    response = sampler.sample(model, 40, noise=Impulses(39, 4)).x
    variances = table.output_variances(sampler, eigenvalues)
    assert torch.allclose(variances, response.square().sum(0), rtol=1e-10, atol=1e-14)


def test_printed_digits_are_rounded_ones():
    assert table.agrees(4.7751, "4.78")
    assert table.agrees(0.655, ".66")
    assert not table.agrees(0.6549, ".66")
    assert table.agrees(math.inf, "-")
    assert table.agrees("infinite", "-")
    assert not table.agrees("infinite", ".66")
    assert not table.agrees(23.42, "-")


def test_the_published_table_has_192_cells():
    assert set(table.PUBLISHED) == {
        (name, t_min, start)
        for name in ("euler_maruyama", "exponential_integrator", "ddpm_rate", "euler", "heun", "rk4")
        for t_min in table.T_MINS
        for start in table.STARTS
    }
    assert {len(cells) for cells in table.PUBLISHED.values()} == {len(table.COLUMNS)}
    assert table.PUBLISHED["rk4", 1e-4, "p_T"] == ("14.35", "0.93", "0.29", "0.07")
    assert table.PUBLISHED["rk4", 1e-4, "N(0, I)"] == ("14.35", "0.93", "0.29", "0.10")


@pytest.mark.skipif(table.VARIABLE not in os.environ, reason=f"{table.VARIABLE} names no published spectrum")
def test_published_cells_come_out_to_their_printed_digits():
    eigenvalues = table.load(os.environ[table.VARIABLE])
    rows = table.measure(eigenvalues, table.COLUMNS[:1])
    assert len(rows) == 56
    assert table.disagreements(rows) == []


def test_the_committed_table_has_the_published_digits():
    record = json.loads((RESULTS / "gaussian_table.json").read_text())
    assert record["settings"]["eigenvalues"] == 3072
    assert len(record["results"]) == 56
    keys = {(row["sampler"], row["t_min"], row["start"]) for row in record["results"]}
    assert keys > set(table.PUBLISHED)
    assert {len(row["w2"]) for row in record["results"]} == {len(table.COLUMNS)}
    assert table.disagreements(record["results"]) == []
    changed = [
        row | {"w2": [w if isinstance(w, str) else 1.2 * w for w in row["w2"]]} for row in record["results"]
    ]
    finite = sum(cell != "-" for cells in table.PUBLISHED.values() for cell in cells)
    assert len(table.disagreements(changed)) == finite == 176
    infinite = [row | {"w2": ["infinite"] * 4} for row in record["results"]]
    assert len(table.disagreements(infinite)) == 176


def test_the_spectrum_is_read_from_a_file(tmp_path: Path, monkeypatch, capsys):
    path = tmp_path / "l.npy"
    np.save(path, np.array([0.5, 2.0], dtype=np.float32))
    assert table.load(path).tolist() == [0.5, 2.0]
    written = {}
    monkeypatch.setattr(table, "COLUMNS", (24,))
    monkeypatch.setattr(table, "write_result", lambda name, settings, rows: written.update({name: rows}))
    with pytest.raises(SystemExit, match=r"published 4\.78"):
        table.main(["--eigenvalues", str(path)])
    assert {name: len(rows) for name, rows in written.items()} == {
        "gaussian_table_digits": 56,
        "gaussian_table": 56,
    }
    assert written["gaussian_table"][-8]["w2"] == ["infinite"]
    assert "infinite" in capsys.readouterr().out
