"""The data's covariance from examples: of low rank in two passes, shrunk where they are few."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from sde_toolkit.data import Dataset, Scaling, estimate_moments
from sde_toolkit.data.estimation import low_rank
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.samplers import gaussian_residual
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.conditioning import class_moments
from sde_toolkit.utils import Stream
from solvers import Normals

FLOAT64 = torch.float64


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


def narrow(count: int, n: int, rank: int) -> torch.Tensor:
    """Examples with ``rank`` wide axes and a little isotropic noise."""
    stds = torch.linspace(3, 1, rank, dtype=FLOAT64)
    axes = torch.linalg.qr(normals(n, rank, seed=1)).Q
    return (normals(count, rank, seed=2) * stds) @ axes.mT + 0.02 * normals(count, n, seed=3)


@pytest.mark.parametrize("count", [2, 10, 50, 159])
def test_few_examples_are_shrunk_as_scikit_learn_does_it(count: int) -> None:
    x = normals(count, 16) @ normals(16, 16, seed=1) + 3
    covariance = estimate_moments(x).covariance
    expected = torch.from_numpy(ledoit_wolf(x.numpy())[0])
    torch.testing.assert_close(covariance, expected, rtol=1e-10, atol=1e-12)


def test_many_examples_are_not_shrunk() -> None:
    x = normals(160, 16) @ normals(16, 16, seed=1)
    torch.testing.assert_close(estimate_moments(x).covariance, torch.cov(x.mT, correction=0))


def test_grey_levels_are_shrunk_without_the_noise_of_their_bins() -> None:
    x = torch.randint(0, 4, (20, 4, 2), generator=torch.Generator().manual_seed(0))
    dataset = Dataset("levels", x, x[:1], Scaling.grey(4))
    scale = float(dataset.scaling.scale)
    expected = torch.from_numpy(ledoit_wolf(x.flatten(1).double().numpy())[0]) + torch.eye(8) / 12
    torch.testing.assert_close(dataset.moments.covariance, expected * scale**2)


def test_equal_examples_along_all_axes_are_left_alone() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=FLOAT64)
    torch.testing.assert_close(estimate_moments(x).covariance, torch.eye(2, dtype=FLOAT64) / 2)


def test_many_features_have_moments_of_low_rank() -> None:
    x = narrow(400, 1100, 20)
    moments = estimate_moments(x)
    exact = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)
    rank = moments.covariance.rank
    assert moments.kind == "low_rank"
    assert rank == int((exact.cumsum(0) < 0.99 * exact.sum()).sum()) + 1 <= 20
    torch.testing.assert_close(moments.variances[:rank], exact[:rank], rtol=1e-6, atol=0)
    assert float(moments.variances[-1]) == pytest.approx(float(exact[rank:].sum()) / (1100 - rank), rel=0.05)
    assert float(moments.variances.sum()) == pytest.approx(float(exact.sum()), rel=1e-12)
    assert moments == estimate_moments(x.clone())  # no draw of its own


def test_few_examples_have_few_axes() -> None:
    moments = estimate_moments(narrow(24, 1100, 20))
    assert moments.covariance.rank == 6
    assert float(moments.variances[-1]) > 0.02**2
    assert estimate_moments(normals(3, 1100)).kind == "diagonal"  # not one axis


def test_features_of_unequal_width_stay_diagonal() -> None:
    x = normals(400, 1100) * torch.logspace(-3, 0, 1100, dtype=FLOAT64)
    moments = estimate_moments(x)
    torch.testing.assert_close(moments.covariance, x.var(0, correction=0))


def test_the_noise_of_the_bins_widens_every_axis() -> None:
    x = narrow(60, 1100, 5).mul(3).round().long().clamp(-20, 20) + 20
    dataset = Dataset("levels", x, x[:1], Scaling.grey(41))
    moments = dataset.moments
    assert moments.kind == "low_rank"
    assert float(moments.variances.sum()) == pytest.approx(float(dataset.variance.sum()), rel=1e-10)
    torch.testing.assert_close(moments.mean, dataset.mean)


def test_classes_have_moments_of_low_rank_that_share_the_room() -> None:
    x, labels = narrow(120, 600, 4), torch.arange(120) % 3
    dataset = Dataset("classes", x, x[:1], labels_train=labels, labels_test=labels[:1])
    laws = class_moments(dataset, 3)
    assert {law.kind for law in laws} == {"low_rank"}
    for label, law in enumerate(laws):
        assert law == Dataset("one", x[labels == label], x[:1]).moments_within(1024**2 // 3)


def test_nothing_is_found_of_no_variance() -> None:
    x = torch.ones(8, 5, dtype=FLOAT64)
    assert low_rank(lambda: [0 * x], torch.zeros(5, dtype=FLOAT64), 8) is None


@pytest.mark.slow
def test_many_features_are_sampled_with_few_evaluations() -> None:
    axes = torch.linalg.qr(normals(1056, 4, seed=1)).Q
    covariance = axes @ axes.mT + 0.01 * torch.eye(1056, dtype=FLOAT64)
    data = Gaussian(torch.zeros(1056, dtype=FLOAT64), covariance)
    model, x = ExactModel(data, VPSDE()), data.sample(400, seed=0)
    start = torch.tensor(1.0, dtype=FLOAT64), torch.tensor(1e-3, dtype=FLOAT64)

    def error(moments) -> float:
        found = gaussian_residual(model, 5, moments=moments).sample(model, 16, seed=1, start="prior").x
        x_T = model.sde.prior_sample(Normals(1, 16, (1056,)).draw(0, Stream.PRIOR))
        exact = model.flow(x_T, *start)
        return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    moments = estimate_moments(x)
    assert error(moments) < 0.25 * error(moments.diagonal())


def test_arrays_and_integers_are_taken() -> None:
    x = np.array([[0, 1], [1, 0], [2, 2], [5, 1]])
    assert estimate_moments(x).mean.tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match=r"\(N, \*\)"):
        estimate_moments(np.ones(3))
