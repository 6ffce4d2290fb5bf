"""The samplers of score_sde, the published code of 2011.13456, step by step.

Its N times are t_i = T - i (T - eps) / (N - 1), i = 0 .. N - 1.  At each of them, with T = 1,

    correct (n times)    x <- x + e score(x, t_i) + sqrt(2 e) z,      e = 2 a (snr |z| / |score|)^2
                         or, with correction="ald",                   e = 2 a (snr sigma(t_i))^2
    predict              x_mean = x + ...,   x = x_mean + std z,      by one of

    "euler_maruyama"     x_mean = x - (f x - g^2 score) / N           std = g / sqrt(N)
    "reverse_diffusion"  VP: (2 - sqrt(1 - beta)) x + beta score      std = sqrt(beta)
                         VE: x + (sigma_k^2 - sigma_{k-1}^2) score    std = sqrt(sigma_k^2 - sigma_{k-1}^2)
    "ancestral"          VP: (x + beta score) / sqrt(1 - beta)        std = sqrt(beta)
                         VE: as above, times sigma_{k-1} / sigma_k in the std
    "none"               x, nothing: the corrections alone follow the noise down

where f, g are those of t_i; beta = beta_k and sigma_k those of k = floor(t_i (N - 1)) in tables of N values,
beta_k = (beta_min + k / (N - 1) (beta_max - beta_min)) / N and sigma_k geometric from sigma_min to
sigma_max, sigma_{-1} = 0; a = 1 - beta_k under VP and 1 under VE.  The run ends at the last x_mean
("noise_removal"), not at eps: the last step goes on from there.  "none" has no mean to end at.

A step is 1 / N long, but its times are (1 - eps) / (N - 1) apart.  With eps = 1 / N, as published for VP,
both are equal, and Euler-Maruyama is that of ``euler_maruyama`` down to t = 0.  With any other eps the steps
do not add up to the times, and more steps do not remove that; the declared order is that with eps = 1 / N.

The published norms are means over the batch, so that samples depend on their neighbours.  Here that is an
option, ``batch_mean_norms``.

On a model that was trained at the N indices of a chain the network is asked at the labels that score_sde
passes, (N - 1) t_i under VP, with fractions, and read by sigma of the index below, by predictors and
corrections alike; sigma(t_i) of "ald" stays that of the process in continuous time.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), algorithms 1 to 5 and appendices D to G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers.correctors import AfterStep, langevin_draws, langevin_steps, norm_ratio
from sde_toolkit.samplers.equations import ReverseSteps, scheme
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.sdes import VESDE, VPSDE, ChainSDE, ForwardSDE, LinearBeta, SubVPSDE
from sde_toolkit.utils import Partial, check_fields, checked, integer
from solvers import Form, Interval, NoiseSource, SchemeMethod, Term

Predictor = Literal["euler_maruyama", "reverse_diffusion", "ancestral", "none"]
"""The predictors by name."""

Correction = Literal["langevin", "ald"]
"""The corrections by name: step sizes from norms, or from the noise level (annealed Langevin dynamics)."""

_KINDS: dict[str, type[ForwardSDE]] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}
_STEP = SchemeMethod(name="one_step", order=1, weak_order=1.0)
_NO_STEP = SchemeMethod(name="no_step", order=0, nodes=0, nfe_per_step=0)
_UP = 1e-9
"""What is added before an index is rounded down, for times that are one up to rounding."""
_SAME = 1e-6


@dataclass(frozen=True)
class Published:
    """A process as score_sde has it, with its tables of N values.

    Args:
        kind: "vp", "subvp" or "ve".
        sde: the process in continuous time, on [0, 1].
        num_steps: N.
        last_time: eps.
        on_chain: whether the model's times are those of a chain of N indices, (1 + k) / N for k.
    """

    kind: str
    sde: ForwardSDE
    num_steps: int
    last_time: float
    on_chain: bool

    def clock(self, time: Tensor) -> Tensor:
        """The time t_i of score_sde for one of the model, with its shape."""
        if not self.on_chain:
            return time
        last = self.num_steps - 1
        k = self.num_steps * time - 1
        return 1 - (last - k.round()) * (1 - self.last_time) / last if self.kind == "ve" else k / last

    def time(self, clock: Tensor) -> Tensor:
        """The time of the model for one of score_sde, with its shape."""
        N = self.num_steps
        if not self.on_chain:
            return clock
        index = clock * (N - 1)
        return (1 + (index.round() if self.kind == "ve" else index)) / N

    def index(self, time: Tensor) -> Tensor:
        """k with the shape of the model's time."""
        return (self.clock(time).double() * (self.num_steps - 1) + _UP).floor().long()

    def betas(self) -> Tensor:
        """beta_k with shape (N,), of a variance-preserving process.

        Raises:
            ValueError: N is so small that they reach 1.
        """
        beta, N = cast(LinearBeta, cast(VPSDE, self.sde).beta), self.num_steps
        if beta.beta_max >= N:
            raise ValueError(
                f"num_steps must be greater than beta_max = {beta.beta_max:g} for steps by the table of "
                f'betas, got {N}; predictor="euler_maruyama" without corrections takes fewer'
            )
        return torch.linspace(beta.beta_min / N, beta.beta_max / N, N, dtype=torch.float64)

    def sigmas(self) -> Tensor:
        """0, then sigma_k, with shape (N + 1,), of a variance-exploding process."""
        sde, N = cast(VESDE, self.sde), self.num_steps
        levels = torch.linspace(math.log(sde.sigma_min), math.log(sde.sigma_max), N, dtype=torch.float64)
        return torch.cat([levels.new_zeros(1), levels.exp()])

    def std(self, time: Tensor) -> Tensor:
        """What a prediction of the noise is divided by, with the shape of the model's time."""
        if not self.on_chain:
            return self.sde.sigma(time)
        k = self.index(time)
        if self.kind == "ve":
            return self.sigmas()[k + 1]
        return (-torch.expm1(torch.log1p(-self.betas()).cumsum(0))).sqrt()[k]


def published(sde: ForwardSDE, kind: str, num_steps: int, last_time: float) -> Published:
    """The process of a model as score_sde has it.

    Raises:
        ValueError: it is of another kind, or trained at another number of indices.
    """
    wanted = _KINDS[kind]
    if isinstance(sde, ChainSDE):
        return _of_chain(sde, kind, num_steps, last_time)
    linear = kind == "ve" or isinstance(getattr(sde, "beta", None), LinearBeta)
    if type(sde) is not wanted or not linear or sde.T != 1:
        more = "" if kind == "ve" else "(LinearBeta(beta_min, beta_max))"
        raise ValueError(
            f"score_sde_{kind} needs a model under {wanted.__name__}{more} or its chain, as score_sde has "
            f"it, got {sde!r}; other processes have reverse_diffusion and predictor_corrector"
        )
    return Published(kind, sde, num_steps, last_time, on_chain=False)


def _of_chain(sde: ChainSDE, kind: str, num_steps: int, last_time: float) -> Published:
    chain, N = sde.chain, num_steps
    if chain.num_steps != N:
        raise ValueError(
            f"num_steps must be the {chain.num_steps} indices that the model was trained at, got {N}; fewer "
            "steps take another sampler, such as ddim"
        )
    found: Published | None = None
    if kind == "ve" and N > 1 and float(chain.sigmas[0]) == 0 and bool((chain.alphas == 1).all()):
        ve = VESDE(float(chain.sigmas[1]), float(chain.sigmas[-1]))
        found = Published(kind, ve, N, last_time, on_chain=True)
        table, own = chain.sigmas, found.sigmas()
    elif kind == "vp" and N > 1 and not chain.ends_in_noise and float(chain.alphas[-1]) < 1:
        table = chain.betas
        vp = VPSDE(LinearBeta(N * float(table.min()), N * float(table.max())))
        found = Published(kind, vp, N, last_time, on_chain=True)
        own = found.betas()
    if found is None or not torch.allclose(table, own, rtol=_SAME):
        raise ValueError(
            f"score_sde_{kind} needs a chain with its own table, "
            f"{'geometric noise levels' if kind == 've' else 'betas in equal steps'}, got {chain}"
        )
    return found


def _rule(k: ReverseSteps, process: Published, predictor: Predictor) -> Form:
    """One step of a predictor, for predictions of the noise."""
    if predictor == "none":
        return 1.0 * k.x
    time, h = k.t.time, 1 / process.num_steps
    score = -1 / process.std(time) * k.m[0]
    if predictor == "euler_maruyama" or process.kind == "subvp":
        at = process.clock(time)
        f, g_squared = process.sde.f(at), process.sde.g_squared(at)
        return (1 - h * f) * k.x + h * g_squared * score + (h * g_squared).sqrt() * k.z
    index = process.index(time)
    if process.kind == "ve":
        before, sigma = process.sigmas()[index], process.sigmas()[index + 1]
        removed = (sigma - before) * (sigma + before)
        kept = before / sigma if predictor == "ancestral" else torch.ones_like(sigma)
        return k.x + removed * score + kept * removed.sqrt() * k.z
    beta = process.betas()[index]
    if predictor == "ancestral":
        return (1 - beta).rsqrt() * (k.x + beta * score) + beta.sqrt() * k.z
    return (2 - (1 - beta).sqrt()) * k.x + beta * score + beta.sqrt() * k.z


def _equation(model: ScoreModel, kind: str, num_steps: int, last_time: float, predictor: Predictor) -> Term:
    process = published(model.sde, kind, num_steps, last_time)
    return scheme(Partial(_rule, process, predictor), "noise", noisy=predictor != "none")(model)


@dataclass(frozen=True)
class PublishedTimes:
    """score_sde's N times from T to ``last_time``, then 0, where its last step is taken to end.

    Args:
        kind: "vp", "subvp" or "ve".
        last_time: eps.
    """

    kind: str
    last_time: float

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,)."""
        process = published(sde, self.kind, num_steps, self.last_time)
        ts = torch.linspace(1.0, self.last_time, num_steps, dtype=torch.float64)
        return torch.cat([process.time(ts), ts.new_zeros(1)])


@dataclass(frozen=True)
class PublishedLangevin(AfterStep):
    """score_sde's Langevin steps.

    Args:
        snr: signal-to-noise ratio of a step.
        num_steps: steps per time.
        correction: "langevin", step sizes from norms, or "ald", from the noise level.
        batch_mean_norms: whether norms are means over the batch.
        kind: "vp" or "ve".
        num_times: N.
        last_time: eps.
    """

    snr: float
    num_steps: int
    correction: Correction
    batch_mean_norms: bool
    kind: str
    num_times: int
    last_time: float

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        model: ScoreModel,
        interval: Interval,
        x: Tensor,
        noise: NoiseSource,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Correct x with shape (B, *), given a condition with B rows or None, at the end of the interval."""
        t = interval.s
        process = published(model.sde, self.kind, self.num_times, self.last_time)
        a = 1.0 if self.kind == "ve" else 1 - float(process.betas()[process.index(t)])
        sigma, std = process.sde.sigma(process.clock(t)), process.std(t).to(x)

        def score(x: Tensor) -> Tensor:
            return -model.noise(x, t, condition) / std

        def step_size(z: Tensor, score: Tensor) -> Tensor:
            annealed = self.correction == "ald"
            ratio = sigma.to(x) if annealed else norm_ratio(z, score, self.batch_mean_norms)
            return 2 * a * (self.snr * ratio).square()

        return langevin_steps(x, langevin_draws(self.num_steps, interval, noise), score, step_size)


def _sampler(
    kind: str, num_steps: int, predictor: Predictor, corrections: int, correction: Correction, snr: float,
    batch_mean_norms: bool, noise_removal: bool, last_time: float,
) -> Sampler:  # fmt: skip
    integer("num_steps", num_steps, 1)
    integer("corrections", corrections, 0)
    for name, value, known in (("predictor", predictor, Predictor), ("correction", correction, Correction)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if predictor == "none" and not corrections:
        raise ValueError(
            'predictor="none" leaves all to the corrections, got none; give corrections=1 or more'
        )
    if correction == "ald" and batch_mean_norms:
        raise ValueError('correction="ald" takes no norms; leave batch_mean_norms out')
    if not 0 < last_time < 1:
        raise ValueError(f"last_time must lie in (0, 1), got {last_time}")
    corrector = None
    if corrections:
        if not 0 < snr < math.inf:
            raise ValueError(f"snr must be a finite positive number, got {snr}")
        corrector = PublishedLangevin(
            snr, corrections, correction, batch_mean_norms, kind, num_steps, last_time
        )
    return Sampler(
        f"score_sde_{kind}",
        Partial(_equation, kind, num_steps, last_time, predictor),
        _NO_STEP if predictor == "none" else _STEP,
        num_steps,
        0.0,
        PublishedTimes(kind, float(last_time)),
        denoise=False,
        corrector=corrector,
        corrector_first=True,
        last_draw=not noise_removal or predictor == "none",
        options={"predictor": predictor, "noise_removal": noise_removal, "last_time": float(last_time)},
    )


@checked
def score_sde_vp(
    num_steps: int = 1000,
    *,
    predictor: Predictor = "euler_maruyama",
    corrections: int = 0,
    correction: Correction = "langevin",
    snr: float = 0.16,
    batch_mean_norms: bool = False,
    noise_removal: bool = True,
    last_time: float = 1e-3,
) -> Sampler:
    """The published samplers of score_sde under VP (2011.13456).

    Published: "euler_maruyama" for models in continuous time, "ancestral" or "reverse_diffusion" for those of
    1000 indices, all without corrections.

    Args:
        predictor: "euler_maruyama", "reverse_diffusion" or "ancestral", whose variance is beta, or "none",
            the corrections alone.
        corrections: Langevin steps before every step of the predictor.
        correction: "langevin", step sizes from norms, or "ald", from the noise level (annealed Langevin
            dynamics).
        snr: signal-to-noise ratio of a correction.
        batch_mean_norms: take the norms of a correction as means over the batch, as published; samples then
            depend on their neighbours.
        noise_removal: end at the mean of the last step.
        last_time: the last time at which the model is asked, eps.

    Raises:
        ValueError: an option out of range; when sampling: a model under another process.
    """
    return _sampler(
        "vp", num_steps, predictor, corrections, correction, snr, batch_mean_norms, noise_removal, last_time
    )  # fmt: skip


@checked
def score_sde_ve(
    num_steps: int = 1000,
    *,
    predictor: Predictor = "reverse_diffusion",
    corrections: int = 1,
    correction: Correction = "langevin",
    snr: float = 0.16,
    batch_mean_norms: bool = False,
    noise_removal: bool = True,
    last_time: float = 1e-5,
) -> Sampler:
    """The published sampler of score_sde under VE: reverse diffusion, one correction before every step.

    Args:
        predictor: "reverse_diffusion", "euler_maruyama" or "ancestral", or "none", the corrections alone.
        corrections: Langevin steps before every step of the predictor.
        correction: "langevin", step sizes from norms, or "ald", from the noise level (annealed Langevin
            dynamics).
        snr: signal-to-noise ratio of a correction: 0.16 for CIFAR-10, 0.17 for CelebA, 0.075 for LSUN, 0.15
            for images of 1024 x 1024.
        batch_mean_norms: take the norms of a correction as means over the batch, as published; samples then
            depend on their neighbours.
        noise_removal: end at the mean of the last step.
        last_time: the last time at which the model is asked, eps.

    Raises:
        ValueError: an option out of range; when sampling: a model under another process.
    """
    return _sampler(
        "ve", num_steps, predictor, corrections, correction, snr, batch_mean_norms, noise_removal, last_time
    )  # fmt: skip


@checked
def score_sde_subvp(num_steps: int = 1000, *, noise_removal: bool = True, last_time: float = 1e-3) -> Sampler:
    """The published sampler of score_sde under sub-VP: Euler-Maruyama; its corrector fails there.

    Args:
        noise_removal: end at the mean of the last step.
        last_time: the last time at which the model is asked, eps.

    Raises:
        ValueError: an option out of range; when sampling: a model under another process.
    """
    return _sampler(
        "subvp", num_steps, "euler_maruyama", 0, "langevin", 0.16, False, noise_removal, last_time
    )
