"""Variational bounds on log p(x0): the discrete chain's, and the continuous-time one.

Both belong to the stochastic model: x_T from the prior, then the reverse process with the model's denoiser
down to the first noisy state, then x0 from a Gaussian around its denoised value.  With q the forward process
from x0, h = |z_hat(x_t, t) - z|^2 at x_t = alpha x0 + sigma z, the ratio n = sigma / alpha and lam = -log n,

    -log p(x0)  <=  prior + diffusion + reconstruction
    prior           KL( q(x_T | x0) || prior ), between Gaussians
    reconstruction  -E_q log N(x0; x0_hat(x_a), n_a^2 I) = D/2 log(2 pi n_a^2) + E[h_a] / 2
    continuous      diffusion = 1/2 int g^2 E|score - grad log q(x_t | x0)|^2 dt = int E[h] dlam
    discrete        diffusion = sum_i KL( q(x_{i-1} | x_i, x0) || N(a_i x_i + b_i x0_hat(x_i), c_i^2 I) )
                              = sum_i w_i E[h_i] + D/2 (r_i - 1 - log r_i),      w_i = b_i^2 n_i^2 / (2 c_i^2)

where a is the first noisy state (t_min, or an index) and r_i the posterior's variance over c_i^2: 1 with
"small", w_i = (n_i^2 / n_{i-1}^2 - 1) / 2; and sigma_{i-1}^2 / sigma_i^2 with "large".  A chain with
sigma_0 = 0 (VP) has a = 1 and i = 2 .. N; one with sigma_0 > 0 (VE) has a = 0 and i = 1 .. N.

When is it tight?  The gap is the divergence between two laws of the whole path given x0: under q, and under
the model.  With an exact score the model's paths are those of the reversed forward process.  The continuous
bound then equals log p(x0) at every single point x0, except for two terms: the prior, unless it is the law of
x_T, and the decoder, which where the data look like N(0, d^2) loses about (n_a / d)^4 / 4 per dimension.
With an inexact score the stochastic model and the probability flow are two different densities, and neither
bounds the other.

The discrete bound adds what Gaussian steps of a fixed variance lose.  With the exact score it is below log
p(x0) on average over data, and tends to the continuous bound as steps get short in lam.  Under VP a chain
uniform in t never has short steps at its start, where n_i^2 grows as i however large N is.  There the data
look flat; "large" is the right variance and loses nothing, while "small" loses (H_{N-1} - log N) / 2 nats per
dimension, in the limit half of Euler's constant: .29 nats, .42 bits.

Estimates.  Every expectation over z (and over times or indices) is a mean over draws keyed by (seed, sample),
unbiased, in strata of two draws whose differences give the standard error.  What is averaged is the
difference to the Gaussian N(m, S) with the data's moments, whose denoiser has, with u = U^T (x0 - m) and w =
U^T z in the eigenbasis of S = U diag(l) U^T,

    h_G = sum (n u - l w)^2 / (l + n^2)^2,     E[h_G] = sum (n^2 u^2 + l^2) / (l + n^2)^2
    int E[h_G] dlam = 1/2 sum [ log(n^2 / (l + n^2)) + (l - u^2) / (l + n^2) ]   between the two ratios

in closed form, whatever the data are: the moments affect only the size of the difference.

Draws belong to samples, whatever the batch size and the number of processes.  Values are then equal bit for
bit if the model computes rows independently of each other, as exact models do; with a network they agree to
rounding.

Discrete data (grey levels): the decoder gives a level the mass that N(x0_hat, n_a^2) has on its bin, the
outermost bins open (2006.11239, eq. 13), and the bound is on log P(level) itself.

References: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models" (2102.09672), eq. 15, for learned variances; Kingma et
al., "Variational Diffusion Models" (2107.00630); Song et al., "Maximum Likelihood Training of Score-Based
Diffusion Models" (2101.09258), theorem 3; Huang, Lim and Courville, "A Variational Perspective on
Diffusion-Based Generative Models and Score Matching" (2106.02808).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.data import Scaling
from sde_toolkit.likelihood.bound_terms import (
    BOUND_TIMES,
    PAIR,
    BoundTimes,
    Continuous,
    Discrete,
    GaussianControl,
    LearnedVariance,
    Path,
    State,
    bin_log_mass,
    prior_divergence,
    remembering,
)
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN, data_end, refuse_noise_alone
from sde_toolkit.models import Condition, Moments, ScoreModel, check_states, evaluated, known_moments
from sde_toolkit.sdes import Chain, Variance
from sde_toolkit.utils import ALONE, Processes, Stream, check_fields, checked, integer, per_sample
from solvers import Normals, expand_like


@dataclass(frozen=True)
class BoundDraws:
    """How the expectations of a bound are estimated.

    Args:
        num_draws: evaluations per sample for the diffusion part, even; a multiple of 4 if ``antithetic``.
            None is 32 times for the continuous bound, and every term once for a chain.
        num_reconstructions: evaluations per sample at the first noisy state, at least 2.
        time_sampling: of the continuous bound: "log_snr" draws times evenly in log-SNR, where all have the
            same weight: the importance sampling of 2101.09258, through the process's own inverse; or
            "uniform" in time.  Both are stratified.
        antithetic: of the continuous bound: use every z with -z as well, at the same time.
        control: subtract the loss of the Gaussian with ``model.moments`` (else N(0, data_std^2 I)) and add
            its expectation, which lowers the variance and does not change the mean.

    Raises:
        ValueError: an unknown time sampling, or fewer than two reconstructions.
    """

    num_draws: int | None = None
    num_reconstructions: int = 2
    time_sampling: BoundTimes = "log_snr"
    antithetic: bool = False
    control: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.time_sampling not in BOUND_TIMES:
            raise ValueError(
                f"time_sampling must be one of {', '.join(BOUND_TIMES)}, got {self.time_sampling!r}"
            )
        if self.num_reconstructions < 2:
            count = self.num_reconstructions
            raise ValueError(f"num_reconstructions must be at least 2, for a standard error, got {count}")


DEFAULT_DRAWS = BoundDraws()
"""32 draws of the continuous bound, all terms of a chain, with the control variate."""


@dataclass(frozen=True)
class Bound:
    """Lower bounds on log p(x0) for B samples.

    Attributes:
        nats: in nats and in the units of x0, with shape (B,); minus the sum of the three parts.
        bits_per_dim: -(nats + D log_det_per_dim) / (D log 2) with shape (B,).
        standard_error: of ``nats``, in nats, from the draws, with shape (B,).
        standard_error_bits_per_dim: the same error in bits per dimension, with shape (B,).
        prior, diffusion, reconstruction: the parts, in nats, each with shape (B,).
        terms: the diffusion part in K pieces, each a tensor with shape (K,): "t" (times), "nats" (means over
            samples and draws, summing to the mean of ``diffusion`` up to their errors), "standard_error" (in
            nats), and for a chain "index".
        nfe: network evaluations with shape (B,), counted.
        seconds: wall time.
        settings: the options, as plain values.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    standard_error_bits_per_dim: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    terms: Mapping[str, Tensor]
    nfe: Tensor
    seconds: float
    settings: Mapping[str, Any]

    @property
    def mean_standard_error(self) -> float:
        """Of the mean of ``nats`` over these samples, in nats, from the draws alone."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.nats)


@checked
@evaluated
def continuous_bound(
    model: ScoreModel,
    x0: Tensor,
    *,
    condition: Condition | None = None,
    draws: BoundDraws = DEFAULT_DRAWS,
    t_min: float = LIKELIHOOD_T_MIN,
    scaling: Scaling | None = None,
    prior_moments: Moments | None = None,
    log_det_per_dim: float | Tensor = 0.0,
    seed: int = 0,
    first_sample: int = 0,
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Bound:
    """The continuous-time bound on log p(x0), in nats (2101.09258, theorem 3; 2107.00630, eq. 11 to 17).

    Args:
        model: any ``ScoreModel``.
        x0: data in model scale with shape (B, *), of the model's dtype.
        condition: a tensor with one row per sample, or a class for all samples; for log p(x0 | condition).
        draws: how the expectations are estimated.
        t_min: where the diffusion part begins, 0 <= t_min < T, with sigma(t_min) > 0.
        scaling: of grey levels, when x0 are the centres of bins and log P of the levels is wanted.
        prior_moments: of the data, when the prior is the Gaussian that they have at T; N(0, prior_std^2 I)
            when None.
        log_det_per_dim: log |dx/dw| per dimension of the data's scaling, for the bits per dimension; or (B,).
        seed, first_sample: the draws of row i are keyed by (seed, first_sample + i).
        batch_size: samples per evaluation; all at once when None.
        processes: those of torch.distributed that share the batches; each gets the whole result.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong shape or type; before any evaluation.
    """
    _check(model, x0, batch_size, scaling, log_det_per_dim, first_sample)
    num_draws, multiple = 32 if draws.num_draws is None else draws.num_draws, PAIR * (1 + draws.antithetic)
    if num_draws < multiple or num_draws % multiple:
        raise ValueError(f"num_draws must be a positive multiple of {multiple}, got {num_draws}")
    t_min = data_end(model.sde, t_min)
    refuse_noise_alone(model.sde)
    path = Continuous(model.sde, t_min, num_draws // (1 + draws.antithetic), draws.time_sampling)
    estimate = _Estimate(model, path, draws, scaling, prior_moments, seed)
    settings = {"bound": "continuous", "num_draws": num_draws, "t_min": t_min}
    settings |= {"time_sampling": draws.time_sampling}
    rows = _Rows(x0, model.conditions(condition, len(x0)), first_sample, batch_size or len(x0), processes)
    return _run(estimate, rows, per_sample("log_det_per_dim", log_det_per_dim, x0), settings)


@checked
@evaluated
def discrete_bound(
    model: ScoreModel,
    x0: Tensor,
    chain: Chain,
    *,
    condition: Condition | None = None,
    variance: Variance | Literal["learned"] | LearnedVariance = "large",
    draws: BoundDraws = DEFAULT_DRAWS,
    scaling: Scaling | None = None,
    prior_moments: Moments | None = None,
    log_det_per_dim: float | Tensor = 0.0,
    seed: int = 0,
    first_sample: int = 0,
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Bound:
    """The variational bound of a chain on log p(x0), in nats (2006.11239, eq. 5; 2107.00630, eq. 11).

    Args:
        model: any ``ScoreModel``.
        x0: data in model scale with shape (B, *), of the model's dtype.
        chain: the process at N + 1 indices, such as ``model.sde.discretize(N)``.
        condition: as for ``continuous_bound``.
        variance: of the reverse steps: "small", "large", or "learned" for what the model has learned, whose
            chain ``chain`` is, all of it or strided; or a callable for a learned one of yours.
        draws: how the expectations are estimated.  ``num_draws`` terms of the sum are drawn per sample, with
            a probability in proportion to their length in log-SNR.  With every term once, neighbours in the
            sum take the place of the two draws of a stratum, which makes the standard error too large, if
            anything.
        scaling, prior_moments, log_det_per_dim, seed, first_sample, batch_size, processes: as for
            ``continuous_bound``.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong shape or type, or a chain with fewer
            than two terms; before any evaluation.
    """
    _check(model, x0, batch_size, scaling, log_det_per_dim, first_sample)
    num_terms = draws.num_draws
    if num_terms is not None and (num_terms < PAIR or num_terms % PAIR):
        raise ValueError(f"num_draws must be a positive even number, or None for all terms, got {num_terms}")
    if draws.antithetic or draws.time_sampling != "log_snr":
        raise ValueError("antithetic and time_sampling are for the continuous bound; leave them out here")
    name = variance if isinstance(variance, str) else "learned"
    steps: Variance | LearnedVariance
    model, steps = remembering(model) if variance == "learned" else (model, variance)
    path = Discrete(chain, steps, num_terms, x0[0].numel())
    estimate = _Estimate(model, path, draws, scaling, prior_moments, seed)
    settings = {"bound": "discrete", "num_steps": chain.num_steps, "variance": name, "num_terms": num_terms}
    rows = _Rows(x0, model.conditions(condition, len(x0)), first_sample, batch_size or len(x0), processes)
    return _run(estimate, rows, per_sample("log_det_per_dim", log_det_per_dim, x0), settings)


class _Estimate(NamedTuple):
    """What is estimated, and how."""

    model: ScoreModel
    path: Path
    draws: BoundDraws
    scaling: Scaling | None
    prior_moments: Moments | None
    seed: int


class _Rows(NamedTuple):
    """The samples, their conditions and numbers, and how they are shared."""

    x0: Tensor
    condition: Tensor | None
    first_sample: int
    batch_size: int
    processes: Processes


class _Batch(NamedTuple):
    """Samples with their conditions and numbers, and their Gaussian control."""

    x0: Tensor
    condition: Tensor | None
    samples: range
    gaussian: GaussianControl | None


class _Parts(NamedTuple):
    """The parts and the variance of their sum, (B,), and the pieces of the diffusion with shape (B, K)."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    variance: Tensor
    pieces: Tensor


def _run(estimate: _Estimate, rows: _Rows, log_det: Tensor, settings: dict[str, Any]) -> Bound:
    start, x0, path, draws = time.perf_counter(), rows.x0, estimate.path, estimate.draws
    gaussian = known_moments(estimate.model) if draws.control else None

    def run(first: int, some: Tensor) -> _Parts:
        last = first + len(some)
        given = None if rows.condition is None else rows.condition[first:last]
        samples = range(rows.first_sample + first, rows.first_sample + last)
        control = None if gaussian is None else GaussianControl(gaussian, some)
        return _parts(estimate, _Batch(some, given, samples, control))

    with torch.no_grad():
        found = rows.processes.map(run, x0, rows.batch_size)
    nats = -(found.prior + found.diffusion + found.reconstruction)
    dims, error = x0[0].numel(), found.variance.sqrt()
    spread = found.pieces.var(0, correction=min(1, len(x0) - 1)).sqrt()  # 0 for one sample
    evaluations = path.num_draws * (1 + draws.antithetic) + draws.num_reconstructions
    return Bound(
        nats=nats,
        bits_per_dim=-(nats / dims + log_det) / math.log(2),
        standard_error=error,
        standard_error_bits_per_dim=error / (dims * math.log(2)),
        prior=found.prior,
        diffusion=found.diffusion,
        reconstruction=found.reconstruction,
        terms={**path.table, "nats": found.pieces.mean(0), "standard_error": spread / len(x0) ** 0.5},
        nfe=torch.full((len(x0),), evaluations, device=x0.device),
        seconds=time.perf_counter() - start,
        settings={
            **settings,
            "antithetic": draws.antithetic,
            "control": draws.control,
            "num_reconstructions": draws.num_reconstructions,
            "seed": estimate.seed,
            "log_det_per_dim": float(log_det.mean()),
            "levels": None if estimate.scaling is None else estimate.scaling.levels,
            "prior": "process" if estimate.prior_moments is None else "moments",
        },
    )


def _parts(estimate: _Estimate, batch: _Batch) -> _Parts:
    last, std = estimate.path.last, estimate.model.sde.prior_std
    prior = prior_divergence(last, std, estimate.prior_moments, batch.x0)
    diffusion, variance, pieces = _diffusion(estimate, batch)
    reconstruction, more = _reconstruction(estimate, batch)
    return _Parts(prior, diffusion, reconstruction, variance + more, pieces)


def _diffusion(estimate: _Estimate, batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The diffusion part and the variance of its estimate, (B,), and its pieces with shape (B, K)."""
    model, path = estimate.model, estimate.path
    x0, condition, samples, gaussian = batch
    places = Normals(estimate.seed, samples, (path.num_draws,), device=x0.device).draw(0, Stream.BOUND_PLACES)
    normals = Normals(estimate.seed, samples, model.event_shape, model.dtype, model.device)
    pieces = torch.zeros(len(x0), len(path.table["t"]), dtype=torch.float64, device=x0.device)
    residuals, signs = [], (1, -1) if estimate.draws.antithetic else (1,)
    for number, draw in enumerate(path.draws(torch.special.ndtr(places))):
        z = normals.draw(number, Stream.BOUND_NOISE)
        term = torch.zeros_like(draw.scale)
        control = torch.zeros_like(draw.scale)
        for sign in signs:
            x_t, difference = _noised(model, batch, sign * z, State(draw.t, draw.alpha, draw.nsr))
            term += path.term(draw, x_t, difference.square(), condition) / len(signs)
            error = None if gaussian is None else gaussian.error(sign * z, draw.nsr)
            control += path.control(draw, error) / len(signs)
        share = draw.scale * term / path.num_draws
        pieces.scatter_add_(1, path.piece(draw, number)[:, None], share[:, None])
        residuals.append(draw.scale * (term - control))
    table = torch.stack(residuals, dim=1)
    return path.control_total(gaussian) + table.mean(1), _variance_in_strata(table), pieces


def _reconstruction(estimate: _Estimate, batch: _Batch) -> tuple[Tensor, Tensor]:
    """The reconstruction part and the variance of its estimate, each with shape (B,)."""
    model, path = estimate.model, estimate.path
    x0, condition, samples, gaussian = batch
    normals = Normals(estimate.seed, samples, model.event_shape, model.dtype, model.device)
    nsr = path.first.nsr
    values = []
    for number in range(estimate.draws.num_reconstructions):
        z = normals.draw(number, Stream.BOUND_RECONSTRUCTION)
        x_a, difference = _noised(model, batch, z, path.first)
        std = path.decoder_std(x_a, condition).to(x0.device)
        if estimate.scaling is not None:
            mean = x0.double() - nsr * difference
            values.append(-bin_log_mass(mean, std, x0, estimate.scaling))
            continue
        density = 0.5 * (nsr * difference / std).square() + (math.sqrt(2 * math.pi) * std).log()
        value = density.flatten(1).sum(1)
        values.append(value if gaussian is None else value - 0.5 * gaussian.error(z, nsr))
    table = torch.stack(values, dim=1)
    mean = table.mean(1)
    if gaussian is not None and estimate.scaling is None:
        ratios = nsr.to(x0.device)[None]
        mean = mean + gaussian.expected(ratios, torch.full_like(ratios, 0.5))
    return mean, _variance(table) / estimate.draws.num_reconstructions


def _noised(model: ScoreModel, batch: _Batch, z: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """x_t = alpha (x0 + nsr z), and z_hat - z in float64, each with shape (B, *)."""
    (t, alpha, nsr), x0 = state, batch.x0
    x_t = expand_like(alpha, x0) * x0 + expand_like(alpha * nsr, x0) * z
    return x_t, model.noise(x_t, t, batch.condition).double() - z.double()


def _variance(values: Tensor) -> Tensor:
    """Sample variance along the columns with shape (B,), for values with shape (B, n).

    Written out: the library's rounds a row by the number of rows.
    """
    deviation = values - values.mean(1, keepdim=True)
    return deviation.square().sum(1) / (values.shape[1] - 1)


def _variance_in_strata(values: Tensor) -> Tensor:
    """Variance of the mean of independent draws with shape (B, n), two to a stratum, the last ones three if n
    is odd; too large, if anything, where their expectations differ."""
    count = values.shape[1]
    odd = 3 if count % PAIR else 0
    pairs, rest = values[:, : count - odd].unflatten(1, (-1, PAIR)), values[:, count - odd :]
    squares = PAIR * pairs.var(2).sum(1)
    return (squares + (odd * _variance(rest) if odd else 0)) / count**2


def _check(
    model: ScoreModel, x0: Tensor, batch_size: int | None, scaling: Scaling | None,
    log_det_per_dim: float | Tensor, first_sample: int,
) -> None:  # fmt: skip
    check_states(model, x0, "x0")
    integer("first_sample", first_sample, 0)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if scaling is None:
        return
    centres = scaling.to_model(scaling.to_levels(x0) + 0.5, torch.float64)
    near = torch.allclose(centres, x0.double(), atol=1e-3 * float(scaling.scale.min()))
    if not near or bool(torch.as_tensor(log_det_per_dim).any()):
        raise ValueError(
            "with scaling, x0 must be the centres of its bins and log_det_per_dim 0, for the bound is on the "
            "mass of a level; use scaling.to_model(levels + 0.5), or leave scaling out for dequantised data"
        )
