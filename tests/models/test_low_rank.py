"""Covariances of low rank beside a multiple of the identity: the rotation, and what runs on them."""

import copy
import pickle

import pytest
import torch

from sde_toolkit.likelihood import Endpoint, Hutchinson, log_likelihood
from sde_toolkit.models import (
    LowRank,
    Moments,
    class_moments_from_tensors,
    class_tensors,
    moments_from_tensors,
)
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.samplers import gaussian_residual
from sde_toolkit.sdes import VPSDE

FLOAT64 = torch.float64
T_MIN = 1e-3


def low_rank(n: int, rank: int, rest: float = 0.1, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=FLOAT64)).Q
    return LowRank(axes, 1 + torch.rand(rank, generator=generator, dtype=FLOAT64), rest)


def dense(covariance: LowRank) -> torch.Tensor:
    n = covariance.shape[0]
    spread = covariance.axes @ (covariance.variances - covariance.rest).diag() @ covariance.axes.mT
    return spread + covariance.rest * torch.eye(n, dtype=FLOAT64)


ALIGNED = LowRank(torch.eye(6)[:, [0, 1, 4]], [3.0, 2.0, 1.0], 0.5)
CASES = [low_rank(1, 1), low_rank(5, 1), low_rank(5, 5), low_rank(64, 8), ALIGNED]


@pytest.mark.parametrize("covariance", CASES, ids=repr)
def test_the_rotation_is_orthogonal_and_diagonalises(covariance: LowRank) -> None:
    n = covariance.shape[0]
    moments = Moments(torch.zeros(n), covariance)
    unit = torch.eye(n, dtype=FLOAT64)
    turned = moments.project(unit)
    torch.testing.assert_close(turned.mT @ turned, unit, rtol=0, atol=1e-13)
    torch.testing.assert_close(moments.embed(turned), unit, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        moments.embed(turned * moments.variances), dense(covariance), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(moments.axes, turned)
    torch.testing.assert_close(moments.diagonal().covariance, dense(covariance).diagonal())
    assert moments.std**2 == pytest.approx(float(dense(covariance).diagonal().mean()), rel=1e-12)


@pytest.mark.parametrize("covariance", CASES, ids=repr)
def test_functions_of_the_covariance_need_no_rotation(covariance: LowRank) -> None:
    n = covariance.shape[0]
    moments, generator = Moments(torch.zeros(n), covariance), torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 5, n, generator=generator, dtype=FLOAT64).unbind()
    f = moments.filter(x)
    gains = f.variances.rsqrt(), (f.variances + torch.arange(5)[:, None]).sqrt()
    wanted = moments.embed(moments.variances.rsqrt() * moments.project(x))
    wanted = wanted + moments.embed(
        (moments.variances + torch.arange(5)[:, None]).sqrt() * moments.project(y)
    )
    torch.testing.assert_close(f((x, gains[0]), (y, gains[1])), wanted, rtol=1e-12, atol=1e-12)


def test_such_functions_round_as_rotations_do() -> None:
    """Axes 1000 times as wide as the rest are whitened in float32 as well as by turning them."""
    given = low_rank(200, 20)
    covariance = LowRank(given.axes, given.variances * 1e6, 1.0)
    moments, generator = Moments(torch.zeros(200), covariance), torch.Generator().manual_seed(3)
    z = torch.randn(64, 200, generator=generator, dtype=FLOAT64)
    x = moments.embed(moments.variances.sqrt() * z)
    wanted = moments.embed(z)
    into, out = moments.rotations(x.float())
    turned = out(moments.variances.rsqrt().float() * into(x.float()))
    f = moments.filter(x.float())
    found = f((x.float(), f.variances.rsqrt()))
    errors = [float((y.double() - wanted).square().mean().sqrt()) for y in (found, turned)]
    assert errors[0] < 2 * errors[1] < 1e-2


def test_the_bits_of_a_filtered_row_do_not_depend_on_the_others() -> None:
    moments = Moments(torch.zeros(2, 50), low_rank(100, 9))
    y = torch.randn(300, 2, 50, generator=torch.Generator().manual_seed(1))
    f = moments.filter(y)
    whole = f((y, f.variances.sqrt()))
    for size in (1, 2, 7, 8, 9, 33, 129, 256):
        assert torch.equal(f((y[-size:].clone(), f.variances.sqrt())), whole[-size:])


def test_moments_keep_their_widest_axes() -> None:
    covariance = low_rank(12, 3)
    full = Moments(torch.zeros(12), dense(covariance))
    for reduced in (full.low_rank(3), Moments(torch.zeros(12), covariance).low_rank(3)):
        torch.testing.assert_close(dense(reduced.covariance), dense(covariance))
    assert full.low_rank(1).std == pytest.approx(full.std, rel=1e-12)  # the trace is kept
    assert full.low_rank().covariance.rank == 11  # .1 of 5.4 is more than 1 %
    with pytest.raises(ValueError, match="rank must be 1 to 11, got 12"):
        full.low_rank(12)


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_the_bits_of_a_row_do_not_depend_on_the_others(dtype: torch.dtype) -> None:
    moments = Moments(torch.zeros(2, 50), low_rank(100, 9))
    y = torch.randn(300, 2, 50, generator=torch.Generator().manual_seed(1), dtype=FLOAT64).to(dtype)
    into, out = moments.rotations(y)
    shift = y[0].flatten()
    for rotate, x in ((into, y), (out, y.flatten(1))):
        for more in ((), (shift,)):
            whole = rotate(x, *more)
            for size in (1, 2, 7, 8, 9, 33, 129, 256):
                assert torch.equal(rotate(x[-size:].clone(), *more), whole[-size:])
        torch.testing.assert_close(rotate(x, shift).flatten(1), rotate(x).flatten(1) + shift)


def test_moments_survive_their_tensors_and_are_equal_by_value() -> None:
    moments = Moments(torch.ones(3, 4), low_rank(12, 3))
    for same in (
        moments_from_tensors(moments.tensors()),
        copy.deepcopy(moments),
        pickle.loads(pickle.dumps(moments)),
    ):
        assert same == moments
        assert hash(same) == hash(moments)
    assert moments != Moments(torch.ones(3, 4), low_rank(12, 3, rest=0.2))
    assert moments.kind == "low_rank"


def test_classes_of_unequal_rank_survive_their_tensors() -> None:
    laws = [Moments(torch.zeros(8), low_rank(8, rank, seed=rank)) for rank in (2, 5)]
    assert class_moments_from_tensors(class_tensors(laws)) == laws


def test_what_is_no_such_covariance_is_refused() -> None:
    axes = torch.eye(4)[:, :2]
    for arguments, message in (
        ((torch.ones(4), [1.0, 1.0], 0.1), r"axes must have shape \(n, r\)"),
        ((axes, [1.0], 0.1), r"variances must have shape \(2,\)"),
        ((axes, [1.0, float("nan")], 0.1), "must be finite"),
        ((axes, [1.0, 1.0], -0.1), "rest must be at least 0"),
        ((2 * axes, [1.0, 1.0], 0.1), "orthonormal"),
    ):
        with pytest.raises(ValueError, match=message):
            LowRank(*arguments)
    with pytest.raises(ValueError, match=r"got shape \(4, 4\)"):
        Moments(torch.zeros(3), LowRank(axes, [1.0, 1.0], 0.1))
    with pytest.raises(ValueError, match="got no rest"):
        moments_from_tensors({"mean": torch.zeros(4), "axes": axes, "variances": torch.ones(2)})


def test_samplers_and_likelihoods_of_such_a_gaussian_are_exact() -> None:
    covariance, mean = low_rank(40, 4), torch.linspace(-1, 1, 40, dtype=FLOAT64)
    data = Gaussian(mean, dense(covariance))
    model, moments = ExactModel(data, VPSDE()), Moments(mean, covariance)
    found = gaussian_residual(model, 3, moments=moments, t_min=T_MIN).sample(model, 8, seed=0).x
    full = gaussian_residual(model, 3, moments=model.moments, t_min=T_MIN).sample(model, 8, seed=0).x
    torch.testing.assert_close(found, full, rtol=0, atol=1e-10)
    x = data.sample(3, seed=1)
    likelihood = log_likelihood(
        model, x, divergence=Hutchinson(1, control=1.0), t_min=T_MIN, endpoint=Endpoint(moments=moments)
    )
    expected = model.log_prob(x, torch.tensor(T_MIN, dtype=FLOAT64))
    torch.testing.assert_close(likelihood.nats, expected, rtol=0, atol=1e-6)
