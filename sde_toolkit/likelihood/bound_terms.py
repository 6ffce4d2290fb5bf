"""The terms of the variational bounds, whose mathematics is in ``sde_toolkit.likelihood.bounds``.

A path says at which noisy states a bound evaluates the model, with which weights, and what its diffusion part
sums to under the Gaussian with the data's moments:

    Continuous    the integral over lam = log(alpha / sigma), at times drawn in strata
    Discrete      the sum over the steps of a chain, all of them or some drawn in strata

Draws come in strata of two neighbours.  Each draw estimates the whole sum, and the diffusion part is the mean
of its draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sde_toolkit.data import Scaling
from sde_toolkit.models import Moments, ScoreModel, Wrapper, row_product
from sde_toolkit.sdes import VARIANCES, Chain, ForwardSDE, Variance, VariationalTerms, log_normal_mass
from sde_toolkit.utils import check_called, shown
from solvers.terms import expand_like

BoundTimes = Literal["log_snr", "uniform"]
BOUND_TIMES: tuple[str, ...] = get_args(BoundTimes)
"""How times may be drawn, by name."""

LearnedVariance = Callable[..., Tensor]
"""(x_i with shape (B, *), i with shape (B,)) -> v with shape (B, *) or (B,): the variance of the step from i
is exp(v log large + (1 - v) log small), see ``sde_toolkit.sdes.variational``.  If samples have conditions,
their rows are a third argument."""

PAIR = 2
"""Draws in a stratum."""


class GaussianControl:
    """The denoiser of N(m, S) at rows of data: its squared error of the noise, and what is expected of it.

    Args:
        moments: m and S.
        x0: rows of data with shape (B, *).
    """

    def __init__(self, moments: Moments, x0: Tensor) -> None:
        self.moments, self.variances = moments, moments.variances.to(x0.device)
        self.u = moments.project(x0.double() - moments.mean.to(x0.device))

    def error(self, z: Tensor, nsr: Tensor) -> Tensor:
        """h_G with shape (B,), for z with shape (B, *) and ratios with shape () or (B,)."""
        n, w = expand_like(nsr, self.u), self.moments.project(z.double())
        return ((n * self.u - self.variances * w) / (self.variances + n.square())).square().sum(1)

    def expected(self, nsr: Tensor, weights: Tensor) -> Tensor:
        """Sum of weights E[h_G] with shape (B,), for ratios and weights with shape (K,)."""
        v = (self.variances + nsr.square()[:, None]).square()
        constant = weights @ (self.variances.square() / v).sum(1)
        slope = weights @ (nsr.square()[:, None] / v)
        return row_product(self.u.square(), slope[:, None])[:, 0] + constant

    def integral(self, low: Tensor, high: Tensor) -> Tensor:
        """The integral of E[h_G] over lam between two ratios with shape (); returns shape (B,)."""

        def part(n: Tensor) -> Tensor:
            v = self.variances + n.square()
            return 0.5 * ((n.square() / v).log() + (self.variances - self.u.square()) / v).sum(1)

        return part(high) - part(low)


class Draw(NamedTuple):
    """One evaluation of the diffusion part, for each of B rows; all with shape (B,).

    Attributes:
        place: the time, or the index.
        t, alpha, nsr: there, float64.
        scale: inverse of the probability (density, in lam) that a draw falls there.
    """

    place: Tensor
    t: Tensor
    alpha: Tensor
    nsr: Tensor
    scale: Tensor


class State(NamedTuple):
    """A time with its signal scale and its ratio, each with shape (), float64."""

    t: Tensor
    alpha: Tensor
    nsr: Tensor


class Path(ABC):
    """The noisy states of a bound.

    Attributes:
        num_draws: draws of the diffusion part per row.
        first, last: the first noisy state and the prior's.
        table: labels of the K pieces of the diffusion part: tensors with shape (K,), "t" among them.
    """

    num_draws: int
    first: State
    last: State
    table: Mapping[str, Tensor]

    @abstractmethod
    def draws(self, u: Tensor) -> list[Draw]:
        """One draw per column of the uniforms u with shape (B, num_draws)."""

    @abstractmethod
    def piece(self, draw: Draw, number: int) -> Tensor:
        """Which of the K pieces draw ``number`` belongs to, int64 with shape (B,)."""

    @abstractmethod
    def term(self, draw: Draw, x_t: Tensor, error: Tensor, condition: Tensor | None) -> Tensor:
        """The term at a draw with shape (B,), for x_t and squared errors of the noise with shape (B, *)."""

    @abstractmethod
    def control(self, draw: Draw, error: Tensor | None) -> Tensor:
        """What is known of the term at a draw, with shape (B,), from the Gaussian's h_G with shape (B,), or
        without it."""

    @abstractmethod
    def control_total(self, gaussian: GaussianControl | None) -> Tensor:
        """The expectation of ``control`` summed (or integrated) over all terms, with shape () or (B,)."""

    @abstractmethod
    def decoder_std(self, x_a: Tensor, condition: Tensor | None) -> Tensor:
        """Standard deviation of x0 given the first state with shape (B, *); broadcastable to it."""


class Continuous(Path):
    """The diffusion part as an integral over lam, at times drawn in pairs from equal strata.

    Args:
        sde: the forward process.
        t_min: the first time, with noise.
        num_draws: even.
        time_sampling: "log_snr" or "uniform".

    Raises:
        ValueError: ``t_min`` out of range or without noise.
    """

    def __init__(self, sde: ForwardSDE, t_min: float, num_draws: int, time_sampling: BoundTimes) -> None:
        if not 0 <= t_min < sde.T:
            raise ValueError(f"t_min must lie in [0, T) with T = {sde.T}, got {t_min}")
        ends = torch.tensor([t_min, sde.T], dtype=torch.float64)
        self.first, self.last = (State(t, sde.alpha(t), sde.nsr(t)) for t in ends)
        if not float(self.first.nsr) > 0:
            raise ValueError(f"t_min must be a time with noise, got {t_min}, where sigma is 0; try 1e-5")
        self.sde, self.num_draws, self.time_sampling = sde, num_draws, time_sampling
        strata = num_draws // PAIR
        self.table = {"t": self._at((torch.arange(strata, dtype=torch.float64) + 0.5) / strata)[0]}

    def _at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times with the shape of u in [0, 1], and the inverse of their density in lam."""
        start, end = self.first.t.to(u.device), self.last.t.to(u.device)
        if self.time_sampling == "uniform":
            t = torch.lerp(start, end, u)
            return t, (end - start) * 0.5 * self.sde.g_squared(t) / self.sde.sigma(t).square()
        low, high = self.first.nsr.log().to(u.device), self.last.nsr.log().to(u.device)
        t = self.sde.inverse_nsr(torch.lerp(low, high, u).exp()).clamp(float(start), float(end))
        return t, (high - low).expand(u.shape)

    def draws(self, u: Tensor) -> list[Draw]:
        """One draw per column of u, two columns to a stratum."""
        t, scale = self._at(_stratified(u))
        columns = (t, t, self.sde.alpha(t), self.sde.nsr(t), scale)
        return [Draw(*row) for row in zip(*(c.unbind(1) for c in columns), strict=True)]

    def piece(self, draw: Draw, number: int) -> Tensor:
        """Its stratum."""
        return torch.full_like(draw.place, number // PAIR, dtype=torch.int64)

    def term(self, draw: Draw, x_t: Tensor, error: Tensor, condition: Tensor | None) -> Tensor:
        """The squared error of the noise."""
        return error.flatten(1).sum(1)

    def control(self, draw: Draw, error: Tensor | None) -> Tensor:
        """The Gaussian's squared error."""
        return torch.zeros_like(draw.nsr) if error is None else error

    def control_total(self, gaussian: GaussianControl | None) -> Tensor:
        """Its integral."""
        if gaussian is None:
            return torch.zeros((), dtype=torch.float64)
        device = gaussian.u.device
        return gaussian.integral(self.first.nsr.to(device), self.last.nsr.to(device))

    def decoder_std(self, x_a: Tensor, condition: Tensor | None) -> Tensor:
        """The first ratio."""
        return self.first.nsr


class Discrete(Path):
    """The diffusion part as a sum over a chain's steps: every one once, or some drawn in pairs from strata.

    Args:
        chain: the process at N + 1 indices.
        variance: of the reverse steps.
        num_terms: number of steps to draw, in proportion to their length in log-SNR; None for every one.
        num_features: D.

    Raises:
        ValueError: an unknown variance, or fewer than two steps between noisy states.
    """

    def __init__(
        self, chain: Chain, variance: Variance | LearnedVariance, num_terms: int | None, num_features: int
    ) -> None:
        if callable(variance):
            check_called("variance", variance, 2, more=1)
        elif variance not in VARIANCES:
            raise ValueError(
                f"variance must be one of {', '.join(VARIANCES)} or a callable, got {variance!r}"
            )
        self._terms = VariationalTerms(chain)
        start = self._terms.first - 1
        self.index = torch.arange(start + 1, chain.num_steps + 1)
        if chain.ends_in_noise:
            raise ValueError(
                "chain must have signal at its last index, got alpha_N = 0; leave that index out, with "
                f"chain.first({chain.num_steps - 1})"
            )
        self.chain, self._nsr = chain, self._terms.nsr
        self.first, self.last = (State(chain.times[i], chain.alphas[i], self._nsr[i]) for i in (start, -1))
        self.learned = variance if callable(variance) else None
        n_t, n_s = self._nsr[self.index], self._nsr[self.index - 1]
        # tables over all indices, with zeros before the first step
        small, log_ratio = self._terms.mean_weight, self._terms.log_ratio
        self._weight = small if variance == "small" else small * log_ratio.exp()
        excess = 0.5 * num_features * (torch.expm1(log_ratio) - log_ratio)
        self._excess = excess if variance == "large" else torch.zeros_like(excess)
        self._everything = num_terms is None
        self.num_draws = len(self.index) if num_terms is None else num_terms
        lengths = (n_t / n_s).log()
        self._probability = self._padded(lengths / lengths.sum())
        self.table = {"t": chain.times[self.index], "index": self.index}

    def _padded(self, values: Tensor) -> Tensor:
        return torch.cat([values.new_zeros(int(self.index[0])), values])

    def draws(self, u: Tensor) -> list[Draw]:
        """One draw per column of u: all steps, whatever u, or two steps to a stratum."""
        if self._everything:
            index = self.index.to(u.device).expand(len(u), -1)
            scale = torch.full_like(u, self.num_draws)
        else:
            probability = self._probability.to(u.device)
            index = torch.searchsorted(probability.cumsum(0), _stratified(u), right=True)
            index = index.clamp(int(self.index[0]), self.chain.num_steps)
            scale = 1 / probability[index]
        tables = (self.chain.times, self.chain.alphas, self._nsr)
        columns = (index, *(table.to(u.device)[index] for table in tables), scale)
        return [Draw(*row) for row in zip(*(c.unbind(1) for c in columns), strict=True)]

    def piece(self, draw: Draw, number: int) -> Tensor:
        """Its index, counted from the first one."""
        return draw.place - int(self.index[0])

    def term(self, draw: Draw, x_t: Tensor, error: Tensor, condition: Tensor | None) -> Tensor:
        """The divergence between the two Gaussians of a step."""
        i, device = draw.place, draw.place.device
        if self.learned is None:
            return self._weight.to(device)[i] * error.flatten(1).sum(1) + self._excess.to(device)[i]
        v = self._fraction(self.learned, x_t, i, condition)
        return self._terms.divergence(i, error, v).flatten(1).sum(1)

    def control(self, draw: Draw, error: Tensor | None) -> Tensor:
        """The Gaussian's divergence; for a learned variance the share of the mean in that of "large"."""
        known = self._excess.to(draw.place.device)[draw.place]
        return known if error is None else known + self._weight.to(draw.place.device)[draw.place] * error

    def control_total(self, gaussian: GaussianControl | None) -> Tensor:
        """Its sum."""
        known = self._excess.sum()
        if gaussian is None:
            return known
        tables = (self._nsr[self.index], self._weight[self.index])
        return known + gaussian.expected(*(table.to(gaussian.u.device) for table in tables))

    def decoder_std(self, x_a: Tensor, condition: Tensor | None) -> Tensor:
        """The first ratio; for a learned variance of the last step, between its own ends."""
        if self.learned is None or int(self.index[0]) == 1:
            return self.first.nsr
        i = torch.ones(len(x_a), dtype=torch.int64, device=x_a.device)
        return self._terms.decoder_std(self._fraction(self.learned, x_a, i, condition))

    @staticmethod
    def _fraction(learned: LearnedVariance, x: Tensor, i: Tensor, condition: Tensor | None) -> Tensor:
        v = learned(x, i) if condition is None else learned(x, i, condition)
        if not isinstance(v, Tensor) or v.shape not in (x.shape, x.shape[:1]):
            raise TypeError(
                f"variance must return a tensor with shape {tuple(x.shape)} or {tuple(x.shape[:1])}, got "
                f"{shown(v)}"
            )
        v = v.double()
        return expand_like(v, x.double()) if v.ndim < 2 else v


def remembering(model: ScoreModel) -> tuple[ScoreModel, LearnedVariance]:
    """The model, and what says its learned variances from the same evaluations.

    Raises:
        ValueError: it has none.
    """
    made = _Remembering(model)
    return made, made.fraction


class _Remembering(Wrapper):
    """A model with learned variances that remembers the fraction of its last evaluation.

    A bound asks for the variance at the state where it has just asked for the noise: both come from one
    evaluation.

    Args:
        model: the model inside.

    Raises:
        ValueError: it has no learned variances.
    """

    def __init__(self, model: ScoreModel) -> None:
        if not model.learned_variance:
            raise ValueError(
                'variance="learned" needs a model with learned variances, got one without; take "small" or '
                '"large", or a callable'
            )
        super().__init__(model)
        self._kept: tuple[Tensor, Tensor] | None = None

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction with shape (B, *); the fraction is kept."""
        raw, fraction = self.model.raw_and_fraction(x_t, t, condition)
        self._kept = x_t, fraction
        return raw

    def fraction(self, x_t: Tensor, i: Tensor, condition: Tensor | None = None) -> Tensor:
        """The fraction v with shape (B, *) at the state of the last evaluation."""
        assert self._kept is not None
        assert self._kept[0] is x_t
        return self._kept[1]


def _stratified(u: Tensor) -> Tensor:
    """Uniforms with shape (B, n), two columns to each of n / 2 equal strata of [0, 1]."""
    return (torch.arange(u.shape[1], device=u.device) // PAIR + u) * (PAIR / u.shape[1])


def prior_divergence(last: State, prior_std: float, moments: Moments | None, x0: Tensor) -> Tensor:
    """KL( q(x_T | x0) || prior ) in nats with shape (B,), for x0 with shape (B, *).

    Args:
        last: the prior's end.
        prior_std: the prior is N(0, prior_std^2 I),
        moments: or, if given, the Gaussian at T of data with these.
    """
    alpha, sigma = last.alpha.to(x0.device), (last.alpha * last.nsr).to(x0.device)
    variance = sigma.square()
    if moments is None:
        square, total = (alpha * x0.double()).square().flatten(1), torch.full_like(variance, prior_std**2)
    else:
        shifted = moments.project(x0.double() - moments.mean.to(x0.device))
        square = (alpha * shifted).square()
        total = moments.marginal_variances(alpha, sigma)
    return 0.5 * ((total / variance).log() + (variance + square) / total - 1).sum(1)


def bin_log_mass(mean: Tensor, std: Tensor, x0: Tensor, scaling: Scaling) -> Tensor:
    """log of the mass of N(mean, std^2) on the bins of grey levels, the outermost ones open; shape (B,).

    Args:
        mean: with shape (B, *), float64.
        std: broadcastable to it.
        x0: centres of the bins, with shape (B, *).
        scaling: of grey levels.

    References: 2006.11239, eq. 13.
    """
    assert scaling.levels is not None
    v, width = scaling.to_levels(x0), scaling.scale.to(mean.device)
    centre = scaling.to_model(v.double() + 0.5, torch.float64)
    low, high = (centre - 0.5 * width - mean) / std, (centre + 0.5 * width - mean) / std
    low = torch.where(v == 0, -math.inf, low)
    high = torch.where(v == scaling.levels - 1, math.inf, high)
    return log_normal_mass(low, high).flatten(1).sum(1)
