"""azula's methods of posterior sampling, on our models and observations, over our range of noise levels.

PGDM and MMPS, TMPD and DiffPIR run in azula's DDIM or DDPM as its documentation shows; the twist of its TDS
is the isotropic Gaussian of the paper, N(y; A x0_hat, (s^2 + r^2) I) with r^2 = n^2 d^2 / (n^2 + d^2).  Its
DPS takes the norm of the residual over the batch; it is given the sum of the samples' norms, so that every
sample is guided as one alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.repaint import RePaintSampler
from azula.guidance.tds import TDSSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.noise import Schedule
from azula.sample import DDPMSampler
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import T_MIN


class _Levels(Schedule):
    """alpha and sigma of a process at T_MIN + (T - T_MIN) u, u in 0 .. 1."""

    def __init__(self, model: ScoreModel) -> None:
        self.sde = model.sde

    def time(self, u: Tensor) -> Tensor:
        return T_MIN + (self.sde.T - T_MIN) * u.double()

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.sde.alpha(self.time(t)), self.sde.sigma(self.time(t))


class _Denoiser(Denoiser):
    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.schedule = model, _Levels(model)

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        return DiracPosterior(self.model.denoise(x_t, self.schedule.time(t)))


def _misfits(seen: Any, x: Tensor) -> Tensor:
    return seen.residual(x).norm(dim=1).sum()[None]


def peers() -> dict[str, Callable[[Any, int, int, int], Tensor]]:
    """Name -> draws for a case, a number of evaluations, a seed and a number of samples."""

    def peer(make: Callable[..., Any], per_step: int = 1) -> Callable[[Any, int, int, int], Tensor]:
        def draw(case: Any, nfe: int, seed: int, count: int) -> Tensor:
            denoiser, seen = (
                _Denoiser(case.model),
                case.observation.measured(case.y[None], case.truth.data.mean),
            )
            steps = {"steps": max(2, nfe // per_step), "silent": True, "dtype": torch.float64}
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                sampler = make(case, denoiser, seen, steps)
                z = torch.randn(count, *case.model.event_shape, dtype=torch.float64)
                sigma = denoiser.schedule(torch.ones(()))[1]
                return sampler(sigma * z)

        return draw

    def variance(seen: Any) -> float:
        return max(seen.std**2, 1e-12)

    def twisted(case: Any, denoiser: Denoiser, seen: Any, steps: dict[str, Any]) -> Any:
        def twist(x: Tensor, n: Tensor) -> Tensor:
            r2 = n**2 * case.model.data_std**2 / (n**2 + case.model.data_std**2)
            return -0.5 * seen.residual(x).square().sum(1) / (seen.std**2 + r2)

        return TDSSampler(denoiser, twist, **steps)

    return {
        "azula DPS": peer(lambda c, d, s, k: DPSSampler(d, torch.zeros(1), lambda x: _misfits(s, x), **k)),
        "azula PGDM": peer(
            lambda c, d, s, k: PGDMSampler(d, s.values, s.forward, s.pseudo_inverse, eta=1.0, **k)
        ),
        "azula MMPS": peer(
            lambda c, d, s, k: DDPMSampler(
                MMPSDenoiser(d, s.values, s.forward, IsotropicCovariance(variance(s)), iterations=4), **k
            )
        ),
        "azula TMPD": peer(
            lambda c, d, s, k: DDPMSampler(TMPDenoiser(d, s.values, s.forward, variance(s)), **k)
        ),
        "azula DiffPIR": peer(
            lambda c, d, s, k: DDPMSampler(
                DiffPIRDenoiser(d, s.values, s.forward, variance(s), lmbda=1.0, iterations=4), **k
            )
        ),
        "azula RePaint": peer(
            lambda c, d, s, k: RePaintSampler(
                d, s.backward(s.values)[0], s.backward(torch.ones_like(s.values))[0] > 0, iterations=5,
                eta=1.0, **k,
            ), 5
        ),
        "azula TDS": peer(twisted),
    }  # fmt: skip
