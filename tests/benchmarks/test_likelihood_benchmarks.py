"""The programs about likelihoods of the digits: what they compare is what they say."""

import math

import pytest
import torch

from benchmarks import likelihood_table, likelihood_training
from sde_toolkit.config.loading import load_config
from sde_toolkit.data.toy import digits
from sde_toolkit.likelihood import UniformDequantizer
from sde_toolkit.sdes import VPSDE
from solvers import Normals


def test_the_arms_differ_in_the_loss_alone():
    noise, likelihood = (
        load_config(likelihood_training.CONFIG, overrides).to_dict()
        for overrides in likelihood_training.ARMS.values()
    )
    assert {name for name in noise if noise[name] != likelihood[name]} == {"loss"}
    assert noise["loss"]["weighting"] == "noise"
    assert likelihood["loss"]["weighting"] == "likelihood"


def test_an_estimate_is_a_mean_and_its_standard_error():
    found = likelihood_training.estimate(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64))
    assert found["mean"] == 3.0
    assert found["standard_error"] == pytest.approx(math.sqrt(14 / 3) / 2, rel=1e-3)


def test_uniform_dequantisation_turns_a_flat_density_into_equal_levels():
    dataset, sde = digits(), VPSDE()
    dequantizer = UniformDequantizer(dataset.scaling, sde)
    x, log_q = dequantizer.draw(dataset.test, Normals(0, len(dataset.test), dataset.event_shape))
    log_q = log_q + 64 * math.log(dequantizer.alpha)
    flat = torch.full((len(x),), 64 * math.log(0.5), dtype=torch.float64)  # uniform on [-1, 1]
    cell = likelihood_table.cell((flat, torch.full_like(flat, 0.64)), log_q, 64)
    assert cell["bits_per_dim"] == pytest.approx(math.log2(17), rel=1e-3)
    assert cell["standard_error"] == pytest.approx(0, abs=1e-9)
    assert cell["draws"] == pytest.approx(0.01 / math.log(2) / math.sqrt(len(x)), rel=1e-3)
