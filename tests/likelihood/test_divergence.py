"""Traces of Jacobians: unbiased, exact where they say so, with honest standard errors."""

import math

import pytest
import torch
from problems import ALPHA
from scipy import stats

from sde_toolkit.likelihood import ExactDivergence, Hutchinson, HutchPlusPlus, values_only
from sde_toolkit.likelihood.divergence import JacobianProducts
from sde_toolkit.models import ExactModel, GaussianMixture
from sde_toolkit.sdes import VPSDE
from solvers import Normals

COUNT, N = 4000, 6
GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randn(N, N, generator=GENERATOR, dtype=torch.float64)
LIKE = torch.zeros(COUNT, N, dtype=torch.float64)


def product(vectors):
    return vectors @ MATRIX


ESTIMATORS = [
    Hutchinson(3),
    Hutchinson(3, "gaussian"),
    Hutchinson(3, orthogonal=True),
    HutchPlusPlus(3, 1),
    HutchPlusPlus(2, 3, "gaussian"),
]


def estimate(divergence, count=COUNT):
    return divergence.trace(product, divergence.probes(Normals(1, count, (N,))), LIKE[:count])


@pytest.mark.parametrize("divergence", ESTIMATORS, ids=str)
def test_estimates_are_unbiased_and_their_standard_errors_honest(divergence):
    columns = estimate(divergence)
    assert columns.shape == (COUNT, divergence.columns(N))
    error = columns.mean(1) - MATRIX.trace()
    spread = float(error.std())
    assert abs(float(error.mean())) < stats.norm.isf(ALPHA / 2) * spread / math.sqrt(COUNT)
    squares = divergence.standard_error(columns, N).square()
    # the mean of the squared standard errors is the variance of the values
    noise = float(squares.std() + error.square().std()) / math.sqrt(COUNT)
    assert abs(float(squares.mean()) - spread**2) < stats.norm.isf(ALPHA / 2) * noise


def test_one_rademacher_probe_has_the_variance_of_the_off_diagonal():
    error = estimate(Hutchinson(1))[:, 0] - MATRIX.trace()
    symmetric = MATRIX + MATRIX.mT
    exact = float((symmetric - symmetric.diagonal().diag()).square().sum() / 2)
    noise = float(error.square().std()) / math.sqrt(COUNT)
    assert abs(float(error.square().mean()) - exact) < stats.norm.isf(ALPHA / 2) * noise


def test_all_orthogonal_probes_and_the_exact_divergence_are_exact():
    for divergence in (Hutchinson(N, orthogonal=True), ExactDivergence(), ExactDivergence(chunk=4)):
        columns = estimate(divergence, 5)
        assert torch.allclose(columns.mean(1), MATRIX.trace().expand(5))
    assert torch.equal(Hutchinson(N, orthogonal=True).standard_error(columns.expand(5, N), N), LIKE[:5, 0])
    assert ExactDivergence().standard_error(columns, N) is None


def test_a_sketch_catches_a_matrix_of_low_rank():
    low = MATRIX[:, :2] @ MATRIX[:, :2].mT
    divergence = HutchPlusPlus(1, 2)
    columns = divergence.trace(lambda v: v @ low, divergence.probes(Normals(0, 4, (N,))), LIKE[:4])
    assert torch.allclose(columns[:, 0], low.trace().expand(4))
    zero = divergence.trace(lambda v: 0 * v, divergence.probes(Normals(0, 4, (N,))), LIKE[:4])
    assert torch.equal(zero, torch.zeros_like(zero))


def test_probes_belong_to_samples_and_more_probes_begin_with_the_same():
    for divergence in ESTIMATORS:
        whole = divergence.probes(Normals(1, 8, (N,)))
        assert torch.equal(divergence.probes(Normals(1, range(5, 8), (N,))), whole[5:])
        more = divergence.at_least(5, N)
        assert torch.allclose(more.probes(Normals(1, 8, (N,)))[:, : whole.shape[1]], whole)
        assert more.columns(N) == 5
    assert Hutchinson(1, orthogonal=True).at_least(9, N).columns(N) == N
    assert ExactDivergence().at_least(4, N) == ExactDivergence()


def test_products_are_counted():
    assert [d.products(N) for d in (ExactDivergence(), Hutchinson(3), HutchPlusPlus(3, 2))] == [N, 3, 7]


def test_jacobian_products_of_an_operation_without_a_rule_for_batches():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    x = torch.arange(1.0, 7.0).reshape(2, 3).requires_grad_()
    vectors = torch.eye(3).expand(2, 3, 3)
    for output in (Square.apply(x), x.square()):
        found = JacobianProducts(output, x)(vectors)
        assert torch.allclose(found, torch.diag_embed(2 * x.detach()))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hutchinson(0), "num_probes must be at least 1, got 0"),
        (lambda: Hutchinson(1, "signs"), "kind must be one of rademacher, gaussian, walsh, got 'signs'"),
        (lambda: Hutchinson(7, orthogonal=True).columns(6), "at most the number of features, 6"),
        (lambda: HutchPlusPlus(2, 6).columns(6), "take the exact divergence"),
        (lambda: HutchPlusPlus(2, 0), "sketch must be at least 1"),
        (lambda: HutchPlusPlus(2, 1, "signs"), "kind must be one of"),
        (lambda: ExactDivergence(0), "chunk must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_the_exact_divergence_of_too_many_features_is_refused():
    with pytest.raises(ValueError, match=r"divergence must be estimated for 196608 features.*divergence=16"):
        ExactDivergence().columns(196608)


@pytest.mark.slow
@pytest.mark.parametrize("size", range(2, 9))
def test_sketches_of_dependent_probes_leave_the_trace_unbiased(size):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    draws = 100_000
    for sketch in {1, size // 2, size - 1}:
        divergence = HutchPlusPlus(1, sketch)
        probes = divergence.probes(Normals(size, draws, (size,)))
        columns = divergence.trace(lambda v: v @ matrix, probes, probes.new_zeros(draws, size))[:, 0]
        error = float(columns.std()) / math.sqrt(draws)
        assert abs(float(columns.mean() - matrix.trace())) < 3 * error
        assert float(columns.abs().max()) < 100


@pytest.mark.parametrize(
    "probes", [[[1, 1, 1], [1, 1, 1]], [[1, -1, 1], [-1, 1, -1]], [[0, 0, 0], [0, 0, 0]]]
)
def test_parallel_probes_are_one_direction_of_the_sketch(probes):
    sketch = torch.tensor(probes, dtype=torch.float64).expand(4, 2, 3)
    rest = Hutchinson(1).probes(Normals(0, 4, (3,)))
    matrix, like = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), torch.zeros(4, 3)
    pair = HutchPlusPlus(1, 2).trace(lambda v: v @ matrix, torch.cat([sketch, rest], 1), like)
    alone = HutchPlusPlus(1, 1).trace(lambda v: v @ matrix, torch.cat([sketch[:, :1], rest], 1), like)
    assert torch.allclose(pair, alone, rtol=1e-12)


def test_an_adaptive_run_in_five_dimensions_does_not_stall():
    means = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    mixture = GaussianMixture([0.3, 0.7], means, [0.1, 0.3])
    x = mixture.sample(32, seed=0)
    found = values_only(ExactModel(mixture, VPSDE()), x, divergence=HutchPlusPlus(2, 4))
    assert int(found.nfe.max()) < 400
    assert (
        abs(float((found.nats - mixture.log_prob(x)).mean()))
        < 4 * float(found.standard_error.mean()) / 32**0.5
    )
