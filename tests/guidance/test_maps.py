"""Maps without matrices, and gains without large ones: against the matrices on flattened samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import sde_toolkit as sde
from sde_toolkit import guidance
from sde_toolkit.guidance import LinearObservation, Observed
from sde_toolkit.guidance.inverse.gains import Gains
from sde_toolkit.guidance.inverse.maps import LinearMap, MatrixMap, SeparableMap, function_map
from sde_toolkit.models import LowRank, Moments, NetworkModel


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolved(kernel: Tensor, shape: tuple[int, ...]) -> LinearMap:
    """The blur, made a matrix column by column."""
    k = kernel if kernel.ndim == 2 else kernel[None]

    def blurred(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *(shape[-2:] if len(shape) == 3 else (1, shape[0])))
        return F.conv2d(flat, k.flip((0, 1))[None, None], padding=[s // 2 for s in k.shape]).reshape(x.shape)

    return function_map(blurred, shape)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.data())
def test_separable_maps_are_the_matrices_that_they_stand_for(
    seed: int, channels: int, height: int, width: int, data: st.DataObject
) -> None:
    shape: tuple[int, ...] = (channels, height, width)
    sides = [2 * data.draw(st.integers(0, 4)) + 1 for _ in range(2)]
    column, row = normals(seed, sides[0]), normals(seed + 1, sides[1])
    w = normals(seed + 2, channels)
    factors = [normals(seed + k, data.draw(st.integers(1, 7)), side) for k, side in enumerate(shape, 3)]
    pairs: list[tuple[LinearMap, LinearMap]] = [
        (guidance.blur(shape, column[:, None] * row), convolved(column[:, None] * row, shape)),
        (guidance.blur((height,), column), convolved(column, (height,))),
        (guidance.colour_mixing(shape, w), function_map(lambda x: (x * w[:, None, None]).sum(1), shape)),
        (guidance.downsampling((channels, 2 * height, 2 * width), 2),
         function_map(lambda x: F.avg_pool2d(x, 2), (channels, 2 * height, 2 * width))),
        (guidance.downsampling((3 * width,), 3),
         function_map(lambda x: F.avg_pool1d(x[:, None], 3)[:, 0], (3 * width,))),
        (SeparableMap([factors[0], None, factors[2]], shape),
         MatrixMap(torch.kron(factors[0], torch.kron(torch.eye(height).double(), factors[2])), shape)),
    ]  # fmt: skip
    for found, wanted in pairs:
        assert isinstance(found, SeparableMap)
        x, r = normals(seed + 9, 3, *found.event_shape), normals(seed + 10, 3, found.count)
        for got, of in (
            (found.forward(x), wanted.forward(x)),
            (found.backward(r), wanted.backward(r)),
            (found.matrix(), wanted.matrix()),
            (found.turn_back(found.turn(r)), r),
            (found.turn_back(found.spectrum * found.turn(r)), r @ wanted.matrix() @ wanted.matrix().mT),
        ):
            torch.testing.assert_close(got, of, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.data()
)
def test_fourier_coefficients_are_the_matrix_that_they_stand_for(
    seed: int, channels: int, height: int, width: int, line: bool, data: st.DataObject
) -> None:
    shape = (width,) if line else (channels, height, width)
    sides = shape[-2:] if len(shape) == 3 else shape
    count = math.prod(sides)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    mask[data.draw(st.integers(0, count - 1))] = True
    kept, axes = mask.reshape(sides), tuple(range(-len(sides), 0))

    def measured(x: Tensor) -> Tensor:
        found = torch.fft.fftn(x, dim=axes, norm="ortho")[..., kept].flatten(1)
        return torch.cat([found.real, found.imag], 1)

    found, wanted = guidance.fourier_mask(shape, kept), function_map(measured, shape)
    A = wanted.matrix()
    x, r = normals(seed, 5, *shape), normals(seed + 1, 5, len(A))
    for got, of in (
        (found.forward(x), wanted.forward(x)),
        (found.backward(r), wanted.backward(r)),
        (found.matrix(), A),
        (found.turn_back(found.turn(r)), r),
        (found.turn_back(found.spectrum * found.turn(r)), r @ A @ A.mT),
    ):
        torch.testing.assert_close(got, of, rtol=1e-10, atol=1e-10)
    for one in (found.forward(x[2:3]), found.forward(x)[2:3]):
        assert torch.equal(one, found.forward(x[1:4])[1:2])  # bits of a row alone
    assert torch.equal(found.backward(r[2:3]), found.backward(r)[2:3])
    assert found.forward(x.bfloat16()).dtype == torch.bfloat16


def test_a_kernel_that_is_no_product_stays_a_matrix() -> None:
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    found = guidance.blur((2, 4, 5), kernel)
    assert isinstance(found, MatrixMap)
    torch.testing.assert_close(found.matrix(), convolved(kernel, (2, 4, 5)).matrix())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_of_a_map_that_are_not_finite_are_refused(bad: float) -> None:
    for call, words in (
        (lambda: guidance.blur((5,), [1.0, bad, 1.0]), "kernel must be finite"),
        (lambda: guidance.blur((1, 4, 4), [[bad]]), "kernel must be finite"),
        (lambda: guidance.colour_mixing((2, 3, 3), [bad, 1.0]), "weights must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


SHAPE = (2, 4, 4)
MAPS: dict[str, object] = {
    "mask": torch.arange(32).reshape(SHAPE) % 3 > 0,
    "blur": guidance.gaussian_blur(SHAPE, 0.7),
    "coarse": guidance.downsampling(SHAPE, 2),
    "grey": guidance.colour_mixing(SHAPE),
    "fourier": guidance.fourier_mask(SHAPE, torch.arange(16).reshape(4, 4) % 3 > 0),
    "matrix": normals(4, 9, 32),
    "twice": torch.cat([normals(5, 3, 32)] * 2),
}


def textbook(moments: Moments, A: Tensor, std: float, nsr: Tensor, r: Tensor) -> Tensor:
    """V A^T (A V A^T + s^2 I)^+ r, row by row."""
    n2 = nsr.square().expand(len(r))[:, None, None]
    S, eye = moments.covariance, torch.eye(A.shape[1], dtype=torch.float64)
    V = S @ torch.linalg.solve(S + n2 * eye, n2 * eye)
    law = A @ V @ A.mT + std**2 * torch.eye(len(A), dtype=torch.float64)
    inverse = torch.linalg.pinv(0.5 * (law + law.mT), rtol=1e-11, hermitian=True)
    return (V @ A.mT @ inverse @ r[:, :, None]).reshape(len(r), *moments.event_shape)


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("name", MAPS)
def test_narrow_moments_have_the_gains_of_their_matrix(name: str, rank: int, std: float) -> None:
    mean = normals(1, *SHAPE)
    axes = torch.linalg.qr(normals(2, 32, max(rank, 1))).Q
    low = LowRank(axes, torch.tensor([9.0, 4.0, 2.0, 0.5, 0.02], dtype=torch.float64)[: max(rank, 1)], 0.1)
    rest = torch.tensor(0.1, dtype=torch.float64)
    narrow = Moments(mean, low if rank else rest)
    whole = Moments(mean, axes * low.variances @ axes.mT + 0.1 * (torch.eye(32) - axes @ axes.mT) if rank
                    else 0.1 * torch.eye(32).double())  # fmt: skip
    observation = LinearObservation(MAPS[name], std, event_shape=SHAPE)
    y = observation.draw(normals(3, 6, *SHAPE), 1)
    measured = observation.measured(y, normals(0, 1))
    r = measured.residual(normals(7, 6, *SHAPE))
    if name in ("twice", "fourier"):
        r = r - measured.of_gram(lambda e: (e == 0).to(e), r)  # what the map cannot see is no residual
    one, other = Gains(narrow, observation), Gains(whole, observation)
    for nsr in (torch.tensor(0.05), torch.tensor(1.0), torch.tensor(150.0), torch.linspace(0.1, 3, 6)):
        got, wanted = (gains.gain(nsr.double(), r, measured) for gains in (one, other))
        if name in ("twice", "fourier"):  # the matrix has no inverse
            wanted = textbook(whole, observation.A.matrix(), std, nsr.double(), r)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        if nsr.ndim == 0 and (std > 0 or name not in ("twice", "fourier")):
            got, wanted = (gains.log_prob(nsr.double(), r, measured) for gains in (one, other))
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MAPS)
def test_data_on_a_few_axes_are_moved_along_these(name: str) -> None:
    """No variance beside the axes, and no noise: M has the rank of the axes."""
    axes = torch.linalg.qr(normals(2, 32, 3)).Q
    variances = torch.tensor([4.0, 1.0, 0.3], dtype=torch.float64)
    mean = normals(1, *SHAPE)
    narrow = Moments(mean, LowRank(axes, variances, 0.0))
    whole = Moments(mean, axes * variances @ axes.mT)
    observation = LinearObservation(MAPS[name], 0.0, event_shape=SHAPE)
    x0 = (normals(7, 6, 3) @ axes.mT).unflatten(-1, SHAPE)
    r = observation.A.forward(x0)
    measured = observation.measured(observation.A.place(r), r)
    for nsr in (torch.tensor(0.05), torch.tensor(1.0), torch.tensor(150.0), torch.linspace(0.1, 3, 6)):
        got = Gains(narrow, observation).gain(nsr.double(), r, measured)
        wanted = textbook(whole, observation.A.matrix(), 0.0, nsr.double(), r)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_pixels_of_a_mask_may_have_noise_of_their_own_without_a_matrix() -> None:
    mask, std = torch.arange(12) % 3 > 0, 0.1 + normals(1, 12).abs()
    map_, s = LinearObservation(mask, std).scaled
    dense = MatrixMap(map_.matrix(), (12,))
    r = normals(2, 3, map_.count)
    assert s == 1
    torch.testing.assert_close(
        map_.turn_back(map_.spectrum * map_.turn(r)), r @ map_.matrix() @ map_.matrix().mT
    )
    torch.testing.assert_close(map_.spectrum.sort().values, dense.spectrum)
    whole = LinearObservation(
        torch.arange(3 * 64 * 64).reshape(3, 64, 64) % 2 == 0, normals(3, 3, 64, 64).abs()
    )
    assert len(whole.scaled[0].spectrum) == 3 * 64 * 32


def test_large_images_are_restored_without_a_matrix() -> None:
    """Where A has a hundred million entries; half of the features were refused before."""
    shape = (3, 64, 64)
    n = math.prod(shape)
    axes = torch.linalg.qr(normals(1, n, 8)).Q
    moments = Moments(torch.zeros(shape, dtype=torch.float64), LowRank(axes, 4.0 * torch.ones(8), 0.04))

    class Wiener(torch.nn.Module):
        """E[z | x_t] of the Gaussian with these moments, at the level of the time."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.0 * x

    model = NetworkModel(Wiener(), sde.VPSDE(), "residual", shape, moments=moments)
    x = moments.marginal_sample(normals(2, 1, *shape), torch.tensor(1.0), torch.tensor(0.0)).float()
    for A in (
        torch.arange(n).reshape(shape) % 2 == 0,
        guidance.gaussian_blur(shape, 1.5),
        guidance.downsampling(shape, 4),
        guidance.colour_mixing(shape),
        guidance.fourier_mask(shape, torch.arange(64 * 64).reshape(64, 64) % 3 == 0),
    ):
        observation = LinearObservation(A, 0.05)
        y = observation.draw(x, 3)
        found = sde.samplers.dpm_solver_pp(4).sample(model, 2, observation=Observed(observation, y[0])).x
        away = (observation.A.pick(y)[0] - observation.A.forward(found)).std()
        assert float(away) < 0.1
