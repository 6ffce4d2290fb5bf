"""Data that end somewhere: maps onto the line, log-determinants, likelihoods in the data's own units."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sde_toolkit.config import load_config
from sde_toolkit.data import Scaling, Support, from_array, open_data, scaling_from_tensors
from sde_toolkit.likelihood import BoundDraws, FlowSolver, continuous_bound, log_likelihood
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.sdes import VPSDE

INF = math.inf
KINDS = {"line": (-INF, INF), "above": (2.0, INF), "below": (-INF, -1.0), "between": (-3.0, 5.0)}


def logits(count: int = 41) -> Tensor:
    return torch.linspace(-12, 12, count, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("ends", KINDS.values(), ids=KINDS)
def test_the_map_is_a_bijection_with_the_slope_that_it_says(ends):
    support, y = Support(*ends), logits()
    w = support.from_line(y)
    assert bool(((w > ends[0]) & (w < ends[1])).all())
    torch.testing.assert_close(support.to_line(w), y, rtol=1e-9, atol=1e-9)
    w = w.requires_grad_()
    (slope,) = torch.autograd.grad(support.to_line(w.clone()).sum(), w)
    torch.testing.assert_close(support.log_slope(y), slope.log(), rtol=1e-8, atol=1e-8)


@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    y=st.floats(-25, 25),
    kind=st.sampled_from(list(KINDS)),
)
def test_any_ends_invert(low: float, width: float, y: float, kind: str):
    ends = {"line": (-INF, INF), "above": (low, INF), "below": (-INF, low), "between": (low, low + width)}[
        kind
    ]
    support = Support(*ends)
    w = support.from_line(torch.tensor([[y]], dtype=torch.float64))
    if not bool(((w > ends[0]) & (w < ends[1])).all()):  # rounded onto an end, which is refused
        with pytest.raises(ValueError, match="must lie between the ends of their support"):
            support.to_line(w)
        return
    back = support.from_line(support.to_line(w))
    torch.testing.assert_close(back, w, rtol=1e-9, atol=1e-9 * (abs(low) + width))


LAWS = {
    "log-normal": (Support(0.0), stats.lognorm(s=0.7, scale=math.exp(0.4))),
    "beta": (Support(0.0, 1.0), stats.beta(2.5, 0.8)),
    "uniform": (Support(-2.0, 3.0), stats.uniform(-2.0, 5.0)),
    "below": (Support(high=1.0), stats.weibull_max(1.7, loc=1.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_density_on_the_line_is_one_on_the_support(name):
    """The law of y by its distribution function and finite differences; log p(w) by the library's map."""
    support, law = LAWS[name]
    scaling = Scaling(
        torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64), None, support
    )
    w = torch.tensor(law.ppf([0.01, 0.2, 0.5, 0.8, 0.99]), dtype=torch.float64)[:, None]
    x, h = scaling.to_model(w, torch.float64), 1e-5
    ends = [law.cdf(scaling.from_model(x + s).numpy()) for s in (-h, h)]
    log_p_x = np.log((ends[1] - ends[0])[:, 0] / (2 * h))
    found = torch.from_numpy(log_p_x) + scaling.log_det(x)
    torch.testing.assert_close(found, torch.from_numpy(law.logpdf(w[:, 0])), rtol=1e-5, atol=1e-5)


def test_the_likelihood_of_log_normal_data_is_in_their_own_units():
    """Two columns, log-normal and normal: exact score of y, flow and bound, against scipy."""
    support = Support(torch.tensor([0.0, -INF]), torch.tensor([INF, INF]))
    scaling = Scaling(
        torch.tensor([1 / 0.7, 0.5], dtype=torch.float64),
        torch.tensor([-0.4 / 0.7, 1.0], dtype=torch.float64),
        support=support,
    )
    first, second = stats.lognorm(s=0.7, scale=math.exp(0.4)), stats.norm(-2.0, 2.0)
    w = torch.tensor(np.stack([first.ppf([0.05, 0.4, 0.97]), second.ppf([0.3, 0.9, 0.01])], 1))
    x = scaling.to_model(w, torch.float64)
    model = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())
    log_det = scaling.log_det(x)
    truth = torch.from_numpy(first.logpdf(w[:, 0]) + second.logpdf(w[:, 1]))
    found = log_likelihood(model, x, log_det_per_dim=log_det / 2, solver=FlowSolver(rtol=1e-8, atol=1e-8))
    torch.testing.assert_close(found.nats + log_det, truth, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.bits_per_dim, -truth / (2 * math.log(2)), rtol=0, atol=1e-5)
    bound = continuous_bound(model, x, log_det_per_dim=log_det / 2, draws=BoundDraws(num_draws=64))
    torch.testing.assert_close(bound.bits_per_dim, -truth / (2 * math.log(2)), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"log_det_per_dim must be one number or one for every sample"):
        log_likelihood(model, x, log_det_per_dim=torch.zeros(2))


def test_data_outside_are_refused_in_a_sentence():
    data = np.array([[0.5, 1.0], [0.0, 2.0], [0.7, -1.0]])
    with pytest.raises(
        ValueError, match=r"got 2 values in coordinate 0, 1 that do not, the first (0|-1) for \(0, inf\)"
    ):
        from_array(data, support=Support(0.0))
    for low, high in ((1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (INF, INF)):
        with pytest.raises(ValueError, match="low must be below high in every coordinate"):
            Support(low, high)
    with pytest.raises(ValueError, match="use log_det"):
        _ = Scaling.standard(torch.rand(9, 2) + 1, support=Support(0.0)).log_det_per_dim
    with pytest.raises(ValueError, match="support must be left out where a scaling is given"):
        from_array(data, Scaling.identity(), support=Support(0.0))


@pytest.mark.parametrize("ends", [KINDS["above"], KINDS["below"], KINDS["between"]])
def test_samples_far_out_stay_inside_after_rounding(ends):
    support = Support(*ends)
    scaling = Scaling(
        torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), support=support
    )
    x = torch.tensor([[-80.0], [-30.0], [0.0], [30.0], [80.0]])
    w = scaling.to_data(x)
    assert w.dtype == torch.float32
    assert bool(((w > ends[0]) & (w < ends[1])).all())
    assert bool(scaling.to_model(w).isfinite().all())


def test_supports_in_text():
    assert Support.of_text("0:1") == Support(0.0, 1.0)
    assert Support.of_text("0:") == Support(0.0)
    three = Support(torch.tensor([0.0, -INF, 0.0]), torch.tensor([INF, INF, 1.0]))
    assert Support.of_text("0:,:, 0:1").ends[0].tolist() == three.ends[0].tolist()
    assert Support.of_text("c=0:1, a=0:", ("a", "b", "c")).ends[1].tolist() == three.ends[1].tolist()
    for text, said in {
        "1": "two ends with a colon",
        "a:b": "two ends",
        "x=0:1": "got 'x' in 'x=0:1'; columns: a",
    }.items():
        with pytest.raises(ValueError, match=said):
            Support.of_text(text, ("a",))


def test_a_table_with_bounds_goes_through_files_and_checkpoints(tmp_path):
    rng = np.random.default_rng(0)
    table = np.stack([rng.beta(2, 3, 400), rng.lognormal(0, 1, 400), rng.normal(5, 2, 400)], 1)
    path = tmp_path / "table.csv"
    np.savetxt(path, table, delimiter=",", header="share,income,height", comments="")
    found = open_data(path, bounds="share=0:1,income=0:")
    x = torch.cat([found.train, found.test])
    assert bool(x.isfinite().all())
    torch.testing.assert_close(found.train.double().std(0), torch.ones(3).double(), rtol=0.02, atol=0)
    raw = found.scaling.to_data(found.test.double())
    assert bool(((raw[:, 0] > 0) & (raw[:, 0] < 1) & (raw[:, 1] > 0)).all())
    assert scaling_from_tensors(found.scaling.tensors()) == found.scaling
    np.save(tmp_path / "table.npy", table)
    mapped = open_data(tmp_path / "table.npy", bounds="0:1,0:,:", scaling="per_coordinate")
    torch.testing.assert_close(mapped.scaling.scale, found.scaling.scale, rtol=0.05, atol=0)
    assert load_config("vectors", {"data.bounds": "0:1"}).data.bounds == "0:1"
    with pytest.raises(
        ValueError, match=r"data.bounds must be one pair of ends, or \(3,\) of them, got \(2,\)"
    ):
        open_data(path, bounds="0:1,0:")
    with pytest.raises(ValueError, match=r"data\.bounds: the text must name columns, .* got 'shar'"):
        open_data(path, bounds="shar=0:1")
    with pytest.raises(ValueError, match=r"data\.scaling=none"):
        open_data(path, bounds="0:1", scaling="none")


@pytest.mark.slow
def test_a_trained_network_knows_bounded_data_in_their_own_units():
    """Beta x log-normal: the mean log-likelihood of held-out data, against the truth, within .02 nats."""
    from sde_toolkit.models import NetworkModel
    from sde_toolkit.networks import MLP
    from sde_toolkit.training import DenoisingLoss, Optimization, TrainState, fit

    first, second = stats.beta(2.0, 3.0), stats.lognorm(s=0.6)
    w = np.stack([law.rvs(60_000, random_state=k) for k, law in enumerate((first, second))], 1)
    support = Support(torch.tensor([0.0, 0.0]), torch.tensor([1.0, INF]))
    dataset = from_array(w, Scaling.standard(torch.from_numpy(w), True, support), test_fraction=0.05)
    model = NetworkModel(MLP((2,), width=96, depth=2, seed=0), VPSDE(), "residual", (2,), dataset.data_std)
    state = TrainState(model, seed=0, optimization=Optimization(learning_rate=2e-3, decay_steps=3000))
    fit(state, dataset, DenoisingLoss(), num_steps=3000, batch_size=256)
    x = dataset.test[:2000]
    log_det = dataset.scaling.log_det(x)
    found = log_likelihood(state.ema, x, solver=FlowSolver(rtol=1e-4, atol=1e-4)).nats + log_det
    raw = dataset.scaling.to_data(x.double()).numpy()
    truth = torch.from_numpy(first.logpdf(raw[:, 0]) + second.logpdf(raw[:, 1]))
    assert abs(float((found - truth).mean())) < 0.02
