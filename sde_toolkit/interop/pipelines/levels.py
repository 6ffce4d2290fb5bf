"""Networks that are told a function of the noise level, as score models.

    raw = network(c_in x_t, c_noise(t) [, condition])

    c_noise     log_sigma   log(nsr) / 4, EDM's              c_in   1, or
                sigma       sigma, score_sde's under VE             (alpha^2 d^2 + sigma^2)^(-1/2),
                arctan      2 / pi arctan(nsr)                      EDM's, with d = data_std
                time        N t, flow matching's

The feature is computed in float64 and rounded once.

References: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364),
table 1; Song et al. (2011.13456); Esser et al. (2403.03206).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_toolkit.interop.pipelines.schedules import Schedule
from sde_toolkit.models import ModuleModel, Moments
from sde_toolkit.utils import checked
from solvers import expand_like


class LevelModel(ModuleModel):
    """A score model whose network is told a function of the noise level.

    Args:
        network: called as ``network(x, c)`` or ``network(x, c, condition)``, with c of shape (B,).
        schedule: the process, what the network puts out and what it is told.
        event_shape: the shape D of one sample.
        data_std: root-mean-square standard deviation of the data; the schedule's when None.
        moments, condition_shape, dtype, device: as for ``ModuleModel``.

    Raises:
        ValueError, TypeError: as for ``ModuleModel``; ValueError also for another ``data_std`` where the
            network's input is scaled by the schedule's own.
    """

    @checked
    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        schedule: Schedule,
        event_shape: tuple[int, ...],
        data_std: float | None = None,
        moments: Moments | None = None,
        condition_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if schedule.scaled and data_std not in (None, schedule.data_std):
            raise ValueError(
                f"data_std must be the sigma_data = {schedule.data_std} that the network's input is scaled "
                "by, got "
                f"{data_std}; leave it out"
            )
        if data_std is None:
            data_std = schedule.data_std if moments is None or schedule.scaled else moments.std
        super().__init__(
            network, schedule.sde, schedule.predicts, event_shape, data_std, moments,
            condition_shape=condition_shape, dtype=dtype, device=device,
        )  # fmt: skip
        self.schedule = schedule

    def with_network(self, network: nn.Module | Callable[..., Tensor]) -> LevelModel:
        """The same model around another network; one without tensors takes its type and device."""
        made = LevelModel(
            network, self.schedule, self.event_shape, self.data_std, self.moments, self.condition_shape
        )
        made._like = torch.empty(0, dtype=self.dtype, device=self.device)
        made.scaling = self.scaling
        return made

    def arguments(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state that the network sees, with shape (B, *), and its feature (B,)."""
        t = t.double()
        if self.schedule.scaled:
            alpha_t, sigma_t = self.sde.alpha(t), self.sde.sigma(t)
            c_in = (alpha_t.square() * self.data_std**2 + sigma_t.square()).rsqrt().to(x_t.dtype)
            x_t = expand_like(c_in, x_t) * x_t
        return x_t, self._feature(t).to(x_t.device, x_t.dtype).expand(len(x_t))

    def _feature(self, t: Tensor) -> Tensor:
        kind = self.schedule.feature
        if kind == "time":
            return self.schedule.scale * t
        if kind == "sigma":
            return self.sde.sigma(t)
        nsr = self.sde.nsr(t)
        return nsr.log() / 4 if kind == "log_sigma" else 2 / math.pi * nsr.arctan()
