import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sde_toolkit import data
from sde_toolkit.data.dataset import MAX_COVARIANCE_DIM, Dataset, from_array
from sde_toolkit.data.scaling import Scaling

# False-alarm rate of every statistical test in this file.
ALPHA = 1e-5

TOYS = [data.ring, data.moons, data.checkerboard, data.swissroll]


def grey_dataset(levels=5, count=11, shape=(1, 2, 3)):
    v = np.random.Generator(np.random.Philox(0)).integers(levels, size=(count, *shape), dtype=np.uint8)
    return from_array(v, Scaling.grey(levels))


# Scaling


@settings(deadline=None)
@given(levels=st.sampled_from([2, 17, 256]), u=st.floats(5e-4, 0.9995))
def test_grey_levels_fill_the_unit_box_and_come_back(levels, u):
    scaling = Scaling.grey(levels)
    v = torch.arange(levels)
    x = scaling.dequantize(v, torch.full(v.shape, u, dtype=torch.float64), torch.float64)
    assert x.min() >= -1
    assert x.max() < 1
    assert torch.equal(scaling.to_levels(x), v)
    assert torch.equal(scaling.to_levels(x.to(torch.float32)), v)
    torch.testing.assert_close(x, 2 * (v.double() + u) / levels - 1)


def test_levels_are_clipped():
    x = torch.tensor([[-7.0, -1.0, 1.0, 7.0]])
    assert Scaling.grey(17).to_levels(x).tolist() == [[0, 0, 16, 16]]


def test_log_determinant_is_that_of_the_jacobian():
    w = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
    for scaling in (Scaling.grey(17), Scaling.standard(w), Scaling.standard(w, per_coordinate=True)):
        jacobian = torch.autograd.functional.jacobian(lambda w: scaling.to_model(w, torch.float64), w[0])  # noqa: B023
        log_det = torch.linalg.slogdet(jacobian.reshape(6, 6)).logabsdet
        assert scaling.log_det_per_dim == pytest.approx(float(log_det) / 6, abs=1e-12)
    assert Scaling.grey(17).log_det_per_dim == pytest.approx(math.log(2 / 17))
    assert Scaling.identity().log_det_per_dim == 0


def test_standard_scaling_gives_unit_moments_and_inverts():
    w = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = w * torch.tensor([1.0, 10.0, 100.0]) + 5
    common, each = Scaling.standard(w), Scaling.standard(w, per_coordinate=True)
    for scaling in (common, each):
        x = scaling.to_model(w, torch.float64)
        assert x.mean(0).abs().max() < 1e-12
        assert float(x.var(0, correction=0).mean()) == pytest.approx(1)
        torch.testing.assert_close(scaling.from_model(x), w)
    assert common.scale.shape == ()
    torch.testing.assert_close(each.to_model(w, torch.float64).var(0, correction=0), torch.ones(3).double())


def test_scaling_refuses_constant_data_and_continuous_levels():
    with pytest.raises(ValueError, match=r"scale must be positive and finite, got .*constant"):
        Scaling.standard(torch.ones(4, 2))
    with pytest.raises(ValueError, match="scaling must have grey levels"):
        Scaling.identity().to_levels(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="scaling must have grey levels"):
        Scaling.identity().dequantize(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="levels must be an integer >= 2, got 1"):
        Scaling.grey(1)


# Batches and splits in model scale


def test_batches_are_dequantised_examples_and_repeat_exactly():
    dataset = grey_dataset()
    seen = torch.cat([dataset.batch(step, 4, seed=3) for step in range(5)])
    again = torch.cat([dataset.batch(step, 4, seed=3) for step in range(5)])
    assert torch.equal(seen, again)
    assert seen.dtype == dataset.dtype == torch.float32
    index = torch.cat([data.batch_indices(len(dataset.train), 4, step, 3) for step in range(5)])
    assert torch.equal(dataset.scaling.to_levels(seen), dataset.train[index].long())
    assert not torch.equal(dataset.batch(0, 4, seed=3), dataset.batch(0, 4, seed=4))


def test_dequantisation_noise_is_fresh_and_uniform():
    dataset = Dataset(
        "zeros",
        torch.zeros(1, 2000, dtype=torch.uint8),
        torch.zeros(1, 2000, dtype=torch.uint8),
        Scaling.grey(2),
    )
    u = [
        dataset.scaling.from_model(dataset.batch(step, 1, 0)).flatten().double().numpy() for step in range(2)
    ]
    for noise in u:
        assert stats.kstest(noise, "uniform").pvalue > ALPHA
    assert abs(np.corrcoef(u)[0, 1]) * math.sqrt(2000) < stats.norm.isf(ALPHA / 2)


def test_scaled_splits():
    dataset = grey_dataset()
    for scaled, raw in ((dataset.scaled_train, dataset.train), (dataset.scaled_test, dataset.test)):
        assert torch.equal(dataset.scaling.to_levels(scaled(seed=1)), raw.long())
        assert torch.equal(scaled(seed=1), scaled(seed=1))
        assert not torch.equal(scaled(seed=1), scaled(seed=2))
    toy = data.ring(20, 10)
    assert torch.equal(toy.scaled_train(), toy.train)
    assert torch.equal(toy.scaled_test(seed=9), toy.test)


# Moments


def test_moments_equal_those_of_many_dequantised_copies():
    dataset = grey_dataset(levels=3, count=9, shape=(4,))
    # The mean over u in exact form: the nodes -+1/sqrt(12) around 1/2 have the first two moments of U[0, 1).
    nodes = torch.tensor([0.5 - 12**-0.5, 0.5 + 12**-0.5], dtype=torch.float64)
    u = torch.cartesian_prod(*[nodes] * 4)
    x = dataset.scaling.dequantize(dataset.train[:, None], u, torch.float64).flatten(0, 1)
    torch.testing.assert_close(dataset.mean, x.mean(0))
    torch.testing.assert_close(dataset.variance, x.var(0, correction=0))
    torch.testing.assert_close(dataset.covariance, torch.cov(x.T, correction=0))
    assert dataset.data_std == pytest.approx(float(x.var(0, correction=0).mean().sqrt()))


def test_moments_of_continuous_data_are_those_of_the_training_part():
    w = torch.randn(9000, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(2) + 3
    dataset = from_array(w, dtype=torch.float64)
    assert dataset.dtype == torch.float64
    assert dataset.mean.abs().max() < 1e-12
    assert dataset.data_std == pytest.approx(1)
    torch.testing.assert_close(dataset.covariance, torch.cov(dataset.train.flatten(1).T, correction=0))
    torch.testing.assert_close(dataset.covariance.diagonal(), dataset.variance.flatten())


def test_covariance_of_large_events_is_refused():
    x = torch.randn(3, MAX_COVARIANCE_DIM + 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="covariance needs at most 4096 dimensions, got 4097; use variance"):
        _ = Dataset("large", x, x).covariance


# The sets


def test_digits():
    dataset = data.digits()
    assert dataset.train.shape == (1500, 1, 8, 8)
    assert dataset.test.shape == (297, 1, 8, 8)
    assert dataset.event_shape == (1, 8, 8)
    assert dataset.levels == 17
    assert int(dataset.train.max()) == 16
    assert set(dataset.labels_train.tolist()) == set(dataset.labels_test.tolist()) == set(range(10))
    assert torch.equal(dataset.train, data.digits().train)
    assert repr(dataset).startswith("Dataset('digits', 1,500 training and 297 test examples")
    batch = dataset.batch(0, 64, 0)
    assert batch.min() >= -1
    assert batch.max() <= 1
    # Every image of the original stands in one of the parts, once.
    images = torch.cat([dataset.train, dataset.test]).flatten(1).tolist()
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, images)) == sorted(map(tuple, load_digits().data.astype(int).tolist()))


@pytest.mark.parametrize("make", TOYS)
def test_toy_sets_are_reproducible_and_normalised(make):
    dataset = make(num_train=20000, num_test=100, seed=1)
    assert dataset.name == make.__name__
    assert dataset.event_shape == (2,)
    assert dataset.levels is None
    assert torch.equal(dataset.train, make(20000, 50, seed=1).train)
    assert torch.equal(dataset.test, make(10, 100, seed=1).test)
    assert not torch.equal(dataset.train, make(20000, 50, seed=2).train)
    assert not torch.equal(dataset.train[:100], dataset.test)
    x = dataset.train.double()
    for values, expected in ((x[:, 0], 0), (x[:, 1], 0), (x.square().mean(1), 1)):
        error = (values.mean() - expected) / (values.std() / math.sqrt(len(values)))
        assert abs(float(error)) < stats.norm.isf(ALPHA / 2)


def test_ring_has_eight_equal_gaussians_where_it_says():
    means, std = data.ring_components()
    dataset = data.ring(8000, 10)
    component = torch.cdist(dataset.train.double(), means).argmin(1)
    assert torch.equal(component, dataset.labels_train)
    assert stats.chisquare(component.bincount(minlength=8).numpy()).pvalue > ALPHA
    residual = ((dataset.train.double() - means[component]) / std).flatten().numpy()
    assert stats.kstest(residual, "norm").pvalue > ALPHA


def test_checkerboard_is_uniform_on_the_dark_squares():
    x = data.checkerboard(8000, 10).train.double().numpy() / (math.sqrt(3) / 2) + 2
    square = np.floor(x).astype(int)
    assert (square.sum(1) % 2 == 0).all()
    counts = np.bincount(4 * square[:, 0] + square[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    assert stats.chisquare(counts[counts > 0]).pvalue > ALPHA
    assert stats.kstest((x - square).flatten(), "uniform").pvalue > ALPHA


def test_moons_and_swissroll_lie_on_their_curves():
    moons = data.moons(500, 10, noise=0.0)
    std = math.sqrt((1.3125 - 1 / math.pi) / 2)
    w = moons.train.double() * std + torch.tensor([0.5, 0.25])
    centre = torch.tensor([[0.0, 0.0], [1.0, 0.5]]).double()[moons.labels_train]
    torch.testing.assert_close((w - centre).norm(dim=1), torch.ones(500).double(), rtol=0, atol=1e-6)
    roll = data.swissroll(500, 10, noise=0.0).train.double()
    mean = torch.tensor([2.0, 2 / (3 * math.pi)]).double()
    std = math.sqrt((9.75 * math.pi**2 - float(mean @ mean)) / 2)
    w = roll * std + mean
    radius, angle = w.norm(dim=1), torch.atan2(w[:, 1], w[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-5)


def test_gaussian_mixture_moments_and_weights():
    means = torch.tensor([[0.0, 0.0, 3.0], [1.0, -1.0, 0.0]])
    dataset = data.gaussian_mixture(means, 0.5, weights=[1, 3], num_train=4000, num_test=10)
    assert dataset.event_shape == (3,)
    assert stats.binomtest(int(dataset.labels_train.sum()), 4000, 0.75).pvalue > ALPHA
    residual = (dataset.train - means[dataset.labels_train]).double().flatten().numpy() / 0.5
    assert stats.kstest(residual, "norm").pvalue > ALPHA


# Data of the user's own


def test_from_array_holds_out_a_part_and_keeps_labels():
    x = np.arange(40, dtype=np.float64).reshape(20, 2)
    dataset = from_array(x, labels=np.arange(20), test_fraction=0.25, seed=1)
    assert (len(dataset.train), len(dataset.test)) == (15, 5)
    assert dataset.dtype == torch.float32
    for part, labels in ((dataset.train, dataset.labels_train), (dataset.test, dataset.labels_test)):
        torch.testing.assert_close(
            dataset.scaling.from_model(part.double()), torch.from_numpy(x)[labels], rtol=0, atol=1e-5
        )
    assert sorted(torch.cat([dataset.labels_train, dataset.labels_test]).tolist()) == list(range(20))
    assert not torch.equal(from_array(x, labels=np.arange(20), seed=2).labels_test, dataset.labels_test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((0, 2))}, "x must have shape"),
        ({"x": np.zeros(5)}, r"x must have shape .* got \(5,\); give scalars the shape"),
        ({"x": np.zeros((5, 0))}, "x must have shape"),
        ({"x": np.zeros((5, 2), dtype=int)}, "x must be floating point, got torch.int64; integers need"),
        ({"x": np.array([[0.0], [np.nan]])}, "x must be finite, got 1 NaN or infinite"),
        (
            {"x": np.zeros((5, 2)), "scaling": Scaling.grey(17)},
            "x must hold integer grey levels, got torch.float64",
        ),
        (
            {"x": np.full((5, 2), 17), "scaling": Scaling.grey(17)},
            "grey levels 0, ..., 16, got values from 17 to 17",
        ),
        ({"x": np.full((5, 2), -1), "scaling": Scaling.grey(17)}, "got values from -1 to -1"),
        ({"x": np.eye(3), "test_fraction": 0.0}, r"test_fraction must be in \(0, 1\)"),
        ({"x": np.eye(1)}, "hold at least 2 examples"),
        ({"x": np.eye(3), "labels": [1, 2]}, r"labels must have shape \(3,\), one per example, got \(2,\)"),
        ({"x": np.eye(3), "seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_from_array_refuses_bad_data(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_array(**arguments)


@settings(deadline=None)
@given(
    x=hnp.arrays(np.float32, (6, 2), elements=st.floats(-10, 10, width=32)),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    place=st.tuples(st.integers(0, 5), st.integers(0, 1)),
)
def test_any_non_finite_value_is_refused(x, bad, place):
    x[place] = bad
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN or infinite values"):
        from_array(x)


def test_dataset_refuses_parts_that_do_not_match():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"test must have the event shape and dtype of train, \(2,\)"):
        Dataset("mine", x, x[:, :1])
    with pytest.raises(ValueError, match=r"test must have the event shape and dtype of train"):
        Dataset("mine", x, x.double())
    with pytest.raises(ValueError, match=r"labels_test must have shape \(5,\), got \(4,\)"):
        Dataset("mine", x, x, labels_train=torch.arange(5), labels_test=torch.arange(4))


def test_gaussian_mixture_and_toys_refuse_bad_arguments():
    with pytest.raises(ValueError, match="means must be finite with shape"):
        data.gaussian_mixture(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="std must be positive and finite, got 0"):
        data.gaussian_mixture(np.zeros((1, 3)), 0.0)
    with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
        data.gaussian_mixture(np.zeros((2, 3)), 1.0, weights=[1.0, -1.0])
    with pytest.raises(ValueError, match="num_train must be an integer >= 1, got 0"):
        data.ring(0)


# Labels and places in the bins


def test_labels_ride_with_the_batch():
    dataset = data.gaussian_mixture([[-9.0], [0.0], [9.0]], 0.1, num_train=50, num_test=5)
    for step in (0, 3, 17):
        x, labels = dataset.batch(step, 16, seed=4), dataset.batch_labels(step, 16, seed=4)
        assert labels.dtype == torch.int64
        assert torch.equal((x[:, 0] / 9).round().long() + 1, labels)
    with pytest.raises(ValueError, match="must have labels_train"):
        data.checkerboard(num_train=5, num_test=5).batch_labels(0, 4, 0)


def test_training_on_the_centres_of_the_bins():
    uniform, centres = grey_dataset(), replace(grey_dataset(), training="centres")
    x = centres.batch(2, 6, seed=1)
    levels = uniform.scaling.to_levels(uniform.batch(2, 6, seed=1))
    torch.testing.assert_close(x, centres.scaling.dequantize(levels, torch.full((), 0.5)), rtol=0, atol=0)
    # what is evaluated stays dequantised
    assert torch.equal(centres.scaled_test(), uniform.scaled_test())
    torch.testing.assert_close(centres.mean, uniform.mean)
    torch.testing.assert_close(
        uniform.variance - centres.variance, torch.full((1, 2, 3), 0.4**2 / 12).double()
    )
    torch.testing.assert_close(
        uniform.covariance - centres.covariance, torch.eye(6, dtype=torch.float64) * 0.4**2 / 12
    )
    assert torch.equal(data.digits(training="centres").train, data.digits().train)
    with pytest.raises(ValueError, match="training must be one of uniform, centres, got 'none'"):
        replace(uniform, training="none")
