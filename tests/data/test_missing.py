"""Missing entries: moments by EM, draws of what is missing, the loss, doors and their sentences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sde_toolkit.cli import main
from sde_toolkit.config import build_loss, build_model, load_config
from sde_toolkit.data import from_array, open_data
from sde_toolkit.likelihood import FlowSolver, log_likelihood, observed_log_likelihood
from sde_toolkit.models import GivenEntries, Moments, NetworkModel, draw_missing, gaussian_moments
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, IncompleteLoss, Optimization, Parallel, TrainState, fit

NAN = math.nan
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, -0.3], [0.6, 2.0, 0.4], [-0.3, 0.4, 0.8]], dtype=torch.float64)
LAW = Moments(MEAN, COVARIANCE)


def gaussian_rows(count: int, seed: int = 0) -> Tensor:
    z = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return MEAN + z @ torch.linalg.cholesky(COVARIANCE).mT


def untrained(moments: Moments = LAW, width: int = 8) -> NetworkModel:
    network = MLP((3,), width=width, depth=1, condition_shape=(3,)).double()
    return NetworkModel(network, VPSDE(), "residual", (3,), moments.std, moments)


def test_the_conditional_gaussian_is_that_of_the_textbook():
    x = torch.tensor([[0.3, NAN, 1.2], [NAN, NAN, 0.1], [0.1, 0.2, 0.3]], dtype=torch.float64)
    known = GivenEntries.of(LAW, x)
    inside = COVARIANCE[[0, 2]][:, [0, 2]]
    gain = COVARIANCE[1, [0, 2]] @ inside.inverse()
    mean = MEAN[1] + gain @ (x[0, [0, 2]] - MEAN[[0, 2]])
    torch.testing.assert_close(known.mean[0, 1], mean, rtol=0, atol=2e-6)
    variance = COVARIANCE[1, 1] - gain @ COVARIANCE[[0, 2], 1]
    torch.testing.assert_close(known.factor[0, 1, 1].square(), variance, rtol=0, atol=1e-5)
    r = torch.randn(3, 3, dtype=torch.float64)
    whole = known.unwhiten(r)
    torch.testing.assert_close(known.whiten(whole), torch.where(known.given, 0.0, r))
    assert torch.equal(whole[known.given], x[known.given])
    assert float(known.log_scale[2]) == 0


def test_em_reaches_the_stationary_point_and_corrects_what_depends_on_the_observed():
    x = gaussian_rows(4000)
    hidden = x.clone()
    hidden[x[:, 0] > 1.2, 1] = NAN  # column 1 is missing where column 0, always observed, is large
    found = gaussian_moments(hidden)
    assert abs(float(hidden[:, 1].nanmean() - MEAN[1])) > 0.2
    torch.testing.assert_close(found.mean, x.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(found.covariance, torch.cov(x.T), rtol=0, atol=0.15)
    # closed form for one incomplete column: the regression of it on the others, over the complete rows
    rows, rest = ~hidden[:, 1].isnan(), [0, 2]
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x[:, rest]], 1)
    slopes = torch.linalg.lstsq(design[rows], x[rows, 1][:, None]).solution[:, 0]
    torch.testing.assert_close(found.mean[1], (design @ slopes).mean(), rtol=0, atol=1e-4)
    complete = gaussian_moments(x)
    torch.testing.assert_close(complete.covariance, torch.cov(x.T, correction=0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_untrained_network_draws_from_the_gaussian_and_knows_every_marginal():
    model, x = untrained(), gaussian_rows(6)
    x[0, 1] = x[1, 0] = x[1, 2] = x[2, 2] = x[3, 0] = NAN
    found = observed_log_likelihood(
        model, x, 2, log_likelihood=lambda m, w: log_likelihood(m, w, solver=FlowSolver(rtol=1e-8, atol=1e-8))
    )
    truth = []
    for row in x.numpy():
        seen = ~np.isnan(row)
        law = stats.multivariate_normal(MEAN.numpy()[seen], COVARIANCE.numpy()[np.ix_(seen, seen)])
        truth.append(law.logpdf(row[seen]))
    torch.testing.assert_close(found.nats, torch.tensor(truth), rtol=0, atol=1e-5)
    assert float(found.spread.max()) < 1e-5
    drawn = draw_missing(model, x, torch.zeros_like(x), 4)
    torch.testing.assert_close(drawn, GivenEntries.of(LAW, x).mean, rtol=0, atol=1e-9)


def test_the_loss_of_complete_rows_is_that_of_denoising_and_no_gradient_enters_the_draws():
    model, x = untrained().float(), gaussian_rows(8).float()
    loss = IncompleteLoss(DenoisingLoss("residual"))
    generator = torch.Generator().manual_seed(3)
    torch.randn(x.shape, generator=generator)
    plain = DenoisingLoss("residual")(model, x, generator)
    assert torch.equal(loss(model, x, torch.Generator().manual_seed(3)), plain)
    x[::2, 1] = NAN
    found = loss(model, x, torch.Generator().manual_seed(3))
    assert found.shape == (8,)
    assert bool(found.isfinite().all())
    assert int((found != plain).sum()) > 3
    found.mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_tables_with_gaps_go_through_files_and_batches(tmp_path):
    path = tmp_path / "gaps.csv"
    lines = [
        f"{k % 7 + 0.5},{'' if k % 3 == 0 else k % 5 + 1},{'NA' if k % 4 == 1 else k % 11}" for k in range(60)
    ]
    path.write_text("a,b,c\n" + "\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"line 2, column 'b', .* data\.missing=mask takes it for a missing"):
        open_data(path)
    found = open_data(path, missing="mask", bounds="a=0:", held_out=0.2)
    assert found.missing
    assert int(found.train.isnan().sum() + found.test.isnan().sum()) == 20 + 15
    batch = found.batch(3, 16, 5)
    assert batch.shape == (16, 3)
    assert bool(batch.isnan().any())
    torch.testing.assert_close(found.train.double().nanmean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    assert found.moments.kind == "full"
    assert math.isfinite(found.data_std)
    raw = found.scaling.to_data(found.test.double())
    assert torch.equal(raw.isnan(), found.test.isnan())
    config = load_config("vectors", {"data.missing": "mask", "data.source": str(path)})
    model = build_model(config, (3,), found.data_std, found.moments)
    assert model.condition_shape == (3,)
    assert isinstance(build_loss(config), IncompleteLoss)
    np.save(tmp_path / "gaps.npy", np.array([[1.0, NAN], [2.0, 3.0], [NAN, 5.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"data\.missing=mask takes nan"):
        open_data(tmp_path / "gaps.npy")
    assert open_data(tmp_path / "gaps.npy", missing="mask", held_out=0.25).missing


def test_gaps_that_nothing_can_be_learnt_from_are_refused():
    x = gaussian_rows(20)
    for at, said in (
        ((slice(None), 1), "an observed entry in every column, got none in column 1"),
        ((4, slice(None)), "an observed entry in every row, got 1 rows"),
    ):
        bad = x.clone()
        bad[at] = NAN
        with pytest.raises(ValueError, match=said):
            from_array(bad, missing="mask")
    bad = x.clone()
    bad[3, 1] = math.inf
    with pytest.raises(ValueError, match="got 1 infinite values"):
        from_array(bad, missing="mask")
    bad[3, 1] = NAN
    with pytest.raises(ValueError, match='missing="mask" takes NaN'):
        from_array(bad)
    with pytest.raises(ValueError, match="missing must be one of raise, mask"):
        from_array(bad, missing="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must vary in every column .* column 0, 1, 2"):
        from_array(torch.where(x.isnan(), x, 1.0), missing="mask")
    data = from_array(bad, missing="mask", dtype=torch.float64)
    state = TrainState(untrained(data.moments))
    with pytest.raises(ValueError, match="DenoisingLoss cannot see"):
        fit(state, data, DenoisingLoss(), 1, 4)
    plain = NetworkModel(MLP((3,), width=4, depth=1).double(), VPSDE(), "noise", (3,))
    with pytest.raises(ValueError, match=r"condition_shape \(3,\)"):
        fit(TrainState(plain), data, IncompleteLoss(), 1, 4)
    with pytest.raises(ValueError, match="a known entry in every row"):
        draw_missing(untrained(), torch.full((1, 3), NAN).double(), torch.zeros(1, 3).double())


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=12, max_size=12),
    constant=st.booleans(),
)
def test_any_mask_is_trained_on_or_refused_in_a_sentence(mask: list[list[bool]], constant: bool):
    x = gaussian_rows(12)
    if constant:
        x[:, 2] = 4.0
    x[torch.tensor(mask)] = NAN
    empty = x.isnan().all(1).any() or x.isnan().all(0).any()
    try:
        data = from_array(x, missing="mask", test_fraction=0.1)
    except ValueError as error:
        sentence = str(error)
        data = None
    if data is None:
        assert "must have an observed entry" in sentence or "must vary in every column" in sentence
        return
    assert not bool(empty)
    model = untrained(data.moments).float()
    losses = IncompleteLoss(draw_steps=2)(model, data.batch(0, 8, 0), torch.Generator().manual_seed(0))
    assert bool(losses.isfinite().all())


def test_a_run_with_gaps_is_a_function_of_its_seed_and_resumes():
    x = gaussian_rows(64)
    x[::3, 1] = NAN
    data = from_array(x, missing="mask")
    ends = []
    for stops in ((4,), (2, 4)):
        state = TrainState(untrained(data.moments).float(), seed=1, optimization=Optimization())
        for stop in stops:
            fit(state, data, IncompleteLoss(draw_steps=3), stop, 16)
        ends.append([p.detach().clone() for p in state.ema.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_run_on_a_table_with_gaps_from_the_command_line(tmp_path, capsys):
    rows = gaussian_rows(60)
    rows[::4, 2] = NAN
    path = tmp_path / "gaps.csv"
    np.savetxt(path, rows.numpy(), delimiter=",", header="a,b,c", comments="")
    small = ["--config.data.missing=mask", "--config.model.width=8", "--config.model.depth=1"]
    short = ["--config.training.num_steps=4", "--config.training.batch_size=8"]
    watch = ["--config.training.evaluate_every=2", "--config.data.held_out=0.3"]
    words = [f"--data={path}", f"--workdir={tmp_path / 'run'}", *small, *short, *watch]
    assert main(["train", *words]) == 0
    assert main(["likelihood", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "bits/dim (18 examples" in capsys.readouterr().out
    assert main(["sample", f"--workdir={tmp_path / 'run'}", "--config.sampling.num_samples=4"]) == 0


def test_a_batch_in_parts_is_the_same_batch():
    x = gaussian_rows(64)
    x[::3, 1] = x[1::4, 0] = NAN
    data, ends = from_array(x, missing="mask", dtype=torch.float64), []
    for parallel in (Parallel(), Parallel(accumulate=3)):
        state = TrainState(untrained(data.moments), seed=1, parallel=parallel)
        infos = fit(state, data, IncompleteLoss(draw_steps=3), 3, 16)
        ends.append(torch.tensor([info.loss for info in infos]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
