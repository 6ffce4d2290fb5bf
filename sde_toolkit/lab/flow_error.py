"""The error of a sampler's own map: where its samples end, against where the probability flow carries them.

A deterministic sampler maps starts x_T to ends.  The flow of the model maps them too, and the difference is
the sampler's error alone: no sampling noise, no error of the network, no finite set of real data.

    e = flow(x_T, T -> t_min),      denoised, x0_hat(e, t_min), where the sampler ends so

The flow is exact where the model knows it (``ExactModel.flow``), else it is that of a fine sampler:
Dormand-Prince with small tolerances, or Heun's method with many steps for models of a chain, whose process
has kinks at the indices, over which adaptive steps stumble.  A sampler with guidance or a threshold is
compared with the flow of the model that it samples, the changed one.  On samplers with noise the figure is
the distance of two coupled draws, which their noise decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_toolkit.lab.experiment import Metric
from sde_toolkit.lab.problems import NamedCondition, condition_rows
from sde_toolkit.metrics import Estimate, bootstrap
from sde_toolkit.models import Condition, ExactModel, ScoreModel
from sde_toolkit.samplers import Sampler, Samples, Start, dopri5, edm, start_state
from sde_toolkit.sdes import ChainSDE
from sde_toolkit.utils import Stream, checked
from solvers import Normals

_TOLERANCE, _STEPS = 1e-6, 200


class FlowEnds:
    """Where the probability flow of one model carries the starts of samplers; every start is carried once.

    Args:
        model: whose flow.
        condition: of all samples.
        reference: a sampler with small errors, for models that are not exact; if None Dormand-Prince at 1e-6,
            or 200 of EDM's Heun steps for models of a chain.
    """

    @checked
    def __init__(
        self,
        model: ScoreModel,
        condition: Condition | NamedCondition | None = None,
        reference: Sampler | None = None,
    ) -> None:
        self.model, self.condition = model, condition
        self.reference = _fine(model) if reference is None else reference
        self._known: list[tuple[Start, tuple[object, ...], Tensor]] = []

    def of(self, sampler: Sampler, num_samples: int, seed: int) -> Tensor:
        """The ends of the starts of these samples, at the sampler's end: shape (num_samples, *)."""
        key, start = (sampler.t_min, sampler.denoise, num_samples, seed, sampler.guidance), sampler.start
        for known_start, known, ends in self._known:
            same = known_start is start or (isinstance(start, str) and known_start == start)
            if same and known == key:
                return ends
        ends = self._carried(sampler, num_samples, seed)
        self._known.append((start, key, ends))
        return ends

    def _carried(self, sampler: Sampler, num_samples: int, seed: int) -> Tensor:
        model, condition = self.model, condition_rows(self.condition, num_samples)
        if not isinstance(model, ExactModel) or sampler.guidance is not None:
            fine = replace(
                self.reference, t_min=sampler.t_min, start=sampler.start, denoise=sampler.denoise,
                guidance=sampler.guidance,
            )  # fmt: skip
            return fine.sample(model, num_samples, condition=condition, seed=seed).x
        rows = model.conditions(condition, num_samples)
        normals = Normals(seed, range(num_samples), model.event_shape, model.dtype, model.device)
        z = normals.draw(0, Stream.PRIOR)
        T, t_min = (torch.tensor(t, dtype=torch.float64) for t in (model.sde.T, sampler.t_min))
        x = start_state(sampler.start, model, z, T, rows)
        if rows is None:
            return _ends(model, x, T, t_min, sampler.denoise)
        ends = torch.empty_like(x)
        for label in rows.unique().tolist():
            mine = rows == label
            ends[mine] = _ends(model.given(label), x[mine], T, t_min, sampler.denoise)
        return ends


def _fine(model: ScoreModel) -> Sampler:
    return edm(_STEPS) if isinstance(model.sde, ChainSDE) else dopri5(rtol=_TOLERANCE, atol=_TOLERANCE)


def _ends(model: ExactModel, x: Tensor, T: Tensor, t_min: Tensor, denoise: bool) -> Tensor:
    """x with shape (B, *) at T, carried to t_min by the exact flow, and denoised there if asked."""
    ends = model.flow(x, T, t_min)
    return model.denoise(ends, t_min) if denoise else ends


@dataclass(frozen=True, eq=False)
class FlowMetric(Metric):
    """``sde_toolkit.metrics.FlowError`` of samples against the ends of their own starts.

    Args:
        ends: of the model that is sampled; its real data are not looked at.
    """

    ends: FlowEnds | None = None

    def __post_init__(self) -> None:
        if self.ends is None:
            raise ValueError(f"metric {self.name!r} must have the ends of the flow, got ends=None")

    def of(self, samples: Samples, sampler: Sampler) -> Estimate:
        """The error of the samples, whose starts are drawn again."""
        assert self.ends is not None
        count = len(samples.x)
        found = bootstrap(self.distance, samples.x, self.ends.of(sampler, count, samples.seed))
        # every sample has an end of its own: other seeds and samplers are paired by the samples' indices
        return replace(found, groups=f"{len(found.replicates)} replicates of {count} samples and their ends")
