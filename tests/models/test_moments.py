"""Mean and covariance of the data: the eigenbasis, its coarser forms, and the way through a checkpoint."""

import pytest
import torch
from problems import DIAGONAL, GAUSSIAN, MIXTURE

from sde_toolkit.data.dataset import Dataset, from_array
from sde_toolkit.data.toy import ring
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.moments import Moments, isotropic, moments_from_tensors
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def full(moments: Moments) -> torch.Tensor:
    """U diag(l) U^T by way of project and embed."""
    n = moments.mean.numel()
    unit = torch.eye(n, dtype=torch.float64).unflatten(-1, moments.event_shape)
    return moments.embed(moments.project(unit) * moments.variances).flatten(1)


def test_project_and_embed_diagonalise_the_covariance() -> None:
    moments = Moments(GAUSSIAN.mean, GAUSSIAN.covariance)
    close(full(moments), GAUSSIAN.covariance)
    y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(moments.embed(moments.project(y)), y)
    assert moments.kind == "full"
    assert moments.largest_std == pytest.approx(float(torch.linalg.eigvalsh(GAUSSIAN.covariance)[-1].sqrt()))
    assert moments.project(y.float()).dtype == torch.float32


def test_coarser_moments_keep_what_they_can() -> None:
    moments = Moments(GAUSSIAN.mean, GAUSSIAN.covariance)
    close(full(moments.diagonal()), GAUSSIAN.covariance.diagonal().diag())
    close(full(moments.scalar()), GAUSSIAN.std**2 * torch.eye(3, dtype=torch.float64))
    assert [m.kind for m in (moments.diagonal(), moments.scalar())] == ["diagonal", "scalar"]
    assert moments.std == pytest.approx(moments.scalar().std, rel=1e-12)
    close(isotropic((1, 2, 2), 0.5).diagonal().covariance, torch.full((1, 2, 2), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda m: m, Moments.diagonal, Moments.scalar])
def test_moments_survive_their_tensors(make) -> None:
    moments = make(Moments(GAUSSIAN.mean, GAUSSIAN.covariance))
    restored = moments_from_tensors(moments.tensors())
    close(full(restored), full(moments))
    close(restored.mean, moments.mean)


def test_exact_models_know_their_moments() -> None:
    for data, kind in ((GAUSSIAN, "full"), (DIAGONAL, "diagonal"), (MIXTURE, "full")):
        moments = ExactModel(data, VPSDE()).moments
        close(full(moments), data.covariance)
        close(moments.mean, data.mean)
        assert moments.kind == kind


def test_data_sets_give_full_moments_up_to_a_size() -> None:
    small: Dataset = ring(num_train=64, num_test=8)
    close(full(small.moments), small.covariance)
    big = from_array(torch.randn(4, 1025, generator=torch.Generator().manual_seed(0)))
    close(big.moments.covariance, big.variance)


def test_what_is_no_covariance_is_refused() -> None:
    mean = torch.zeros(2)
    with pytest.raises(ValueError, match=r"full \(2, 2\), diagonal \(2,\) or a number"):
        Moments(mean, torch.ones(3))
    with pytest.raises(ValueError, match="symmetric"):
        Moments(mean, [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="positive semi-definite"):
        Moments(mean, [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="not zero"):
        Moments(mean, 0.0)
    with pytest.raises(ValueError, match="finite"):
        Moments(mean, float("nan"))
    with pytest.raises(ValueError, match=r"moments must have the event shape \(2,\), got \(3,\)"):
        NetworkModel(MLP((2,), width=4, depth=1), VPSDE(), "noise", (2,), moments=isotropic((3,)))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_of_a_rotated_row_do_not_depend_on_the_others(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    moments = Moments(torch.zeros(n), root @ root.mT + torch.eye(n, dtype=torch.float64))
    y = torch.randn(300, n, generator=generator, dtype=torch.float64).to(dtype)
    shift = y[0].clone()
    for rotate in moments.rotations(y):
        for more in ((), (shift,)):
            whole = rotate(y, *more)
            for size in (1, 2, 7, 8, 9, 16, 33, 64, 100, 129, 256):
                assert torch.equal(rotate(y[-size:].clone(), *more), whole[-size:])
        torch.testing.assert_close(rotate(y, shift), rotate(y) + shift)
