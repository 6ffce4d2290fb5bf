"""Arguments, times, callbacks and ends of a sampler's runs: what is refused, and what failed."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from sde_toolkit.models import Moments, wide_type
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.grids import Grid
from sde_toolkit.samplers.records import Callback, StepInfo
from sde_toolkit.samplers.starts import GivenStates
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, has_method, integer, require, shown
from solvers import FixedGrid, NoiseSource, Solution, Status
from solvers.solution import finish

_SEEDS = 1 << 64
_INDICES = 1 << 63

_ENOUGH, _PLENTY = 256, 4096
"""Samples from which on their moments are compared with those that a sampler was given, and most of them."""

_FAIR = 5
"""Evaluations from which on samples are good enough for that."""

_MOST_RATIO, _MOST_DISTANCE = 2.0, 0.5
"""What samples may differ by: in the total variance, and in the mean, in standard deviations."""


def check_draw(
    num_samples: int,
    batch_size: int | None,
    noise: NoiseSource | None,
    callback: Callback | None,
    seed: int,
    first_sample: int,
    throw: bool,
    gradients: bool,
) -> None:
    """Refuse, with TypeError or ValueError, arguments of ``sample`` that cannot work with any model."""
    count = integer("num_samples", num_samples, 1)
    if batch_size is not None:
        integer("batch_size", batch_size, 1)
    if integer("seed", seed, 0) >= _SEEDS:
        raise ValueError("seed must be below 2^64, got a larger integer")
    if integer("first_sample", first_sample, 0) + count >= _INDICES:
        raise ValueError("first_sample + num_samples must be below 2^63, got a larger integer")
    for name, flag in (("throw", throw), ("gradients", gradients)):
        if not isinstance(flag, bool):
            require(name, flag, bool)
    if noise is not None and not has_method(noise, "draw"):
        require("noise", noise, NoiseSource)
    if noise is not None and batch_size is not None:
        raise ValueError("a noise source serves one batch: leave batch_size out when noise is given")
    if callback is not None:
        require("callback", callback, Callback)


def check_limits(num_steps: int | None, t_min: float, rtol: float, atol: float, max_steps: int) -> None:
    """Refuse, with ValueError, numbers that no sampler can have."""
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 <= t_min < math.inf:
        raise ValueError(f"t_min must be a finite time >= 0, got {t_min}")
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol > 0):
        raise ValueError(f"rtol and atol must be finite, >= 0 and not both 0, got {rtol} and {atol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def check_given(x_start: object, t_start: float | None, start: object) -> None:
    """Refuse, with ValueError, starts that contradict each other."""
    if t_start is not None and x_start is None:
        raise ValueError(
            f"t_start = {shown(t_start)} needs the states there; give x_start, with noised=True for x_t"
        )
    if x_start is not None and start is not None:
        raise ValueError("x_start and start both say where the runs start; give one of them")


def first_time(t_start: float, t_min: float, T: float) -> float:
    """``t_start`` as a number; raises TypeError or ValueError for what is no time between t_min and T."""
    require("t_start", t_start, float)
    t = float(t_start)
    if not t_min < t <= T * (1 + 1e-9):
        raise ValueError(f"t_start must lie above t_min = {t_min} and at most at T = {T}, got {t_start}")
    return min(t, T)


def check_times(
    grid: FixedGrid, function: Grid, num_steps: int, t_min: float, T: float, t_start: float | None
) -> None:
    """Refuse, with ValueError, the times of a grid that is not one from noise to data.

    Args:
        grid: the times.
        function: that made them.
        num_steps, t_min, T: what they should be.
        t_start: where they should begin; anywhere up to T when None.
    """
    first, last = grid.ends
    name = grids.label(function)
    if grid.num_steps != num_steps:
        raise ValueError(
            f"grid {name} must give num_steps + 1 = {num_steps + 1} times, got {grid.num_steps + 1}"
        )
    if not T * (1 + 1e-9) >= first > last >= 0:
        raise ValueError(
            f"grid {name} must fall from T = {T} or below to t_min >= 0, got times from {first} to {last}"
        )
    own_ends = isinstance(function, (grids.Explicit, grids.Snapped))
    if not own_ends and abs(last - t_min) > 1e-9 * T:
        raise ValueError(
            f"grid {name} must end at t_min = {t_min}, got {last}; give t_min={last}, "
            "or times of your own as grids.Explicit(times)"
        )
    at_indices = isinstance(function, (grids.Snapped, grids.Leading))
    if t_start is not None and not at_indices and abs(first - t_start) > 1e-9 * T:
        raise ValueError(
            f"grid {name} must begin at t_start = {t_start}, got {first}; leave t_start out to start there, "
            "or take another grid"
        )


def check_states(given: GivenStates | None, t_start: float | None, begin: Tensor) -> None:
    """Refuse, with ValueError, no states where they are needed, and noised ones of another time than the
    first."""
    if given is None and t_start is not None:
        raise ValueError(f"runs prepared for t_start = {t_start} need the states there; give x_start")
    t = float(begin)
    if given is not None and given.noised and t_start is not None and abs(t - t_start) > 1e-9 * t_start:
        raise ValueError(
            f"noised states at t_start = {t_start} need a grid that begins there, got one on indices, which "
            f"begins at {t}; give states at t_start={t}"
        )


def relative_tolerance(rtol: float, dtype: torch.dtype) -> float:
    """``rtol``, raised to a sixteenth of the rounding of a model of half precision: below, the steps would
    follow that rounding."""
    return rtol if wide_type(dtype) == dtype else max(rtol, torch.finfo(dtype).eps / 16)


def check_end(x: Tensor, solution: Solution, throw: bool) -> None:
    """Refuse clean predictions with shape (B, *) that are nan or inf."""
    if not throw or not math.isnan(float((x.detach() * 0).sum())):
        return
    broken = ~x.flatten(1).isfinite().all(1)
    status = torch.where(broken, int(Status.NONFINITE), int(Status.SUCCESS))
    t = solution.ts[-1].expand(len(x))
    finish(replace(solution, ys=x[None], status=status), t, torch.zeros_like(t), throw)


def failures(status: Tensor, x: Tensor, part: range) -> dict[int, str]:
    """Global index -> why, of the samples with shape (B, *) whose run did not reach its end."""
    broken = (status == 0) & ~x.flatten(1).isfinite().all(1).to(status.device)
    kinds = torch.where(broken, int(Status.NONFINITE), status).tolist()
    return {i: Status(kind).name for i, kind in zip(part, kinds, strict=True) if kind}


def first_normals(noise: NoiseSource, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a noise source gives for the start; raises ValueError for another shape or type."""
    z = noise.draw(0, Stream.PRIOR)
    if z.shape != shape or z.dtype != dtype:
        raise ValueError(
            f"noise must give normals of {dtype} with shape {shape} for these samples, got {z.dtype} with "
            f"shape {tuple(z.shape)}"
        )
    return z


def called(callback: Callback, info: StepInfo, dtype: torch.dtype) -> Tensor | None:
    """Call a callback with the state, a copy, and the clean prediction of a step, both in the model's type;
    what it returns, in the type of the run.

    Raises:
        ValueError: it returns a state of another shape or type than it was given.
    """
    x0_hat = None if info.x0_hat is None else info.x0_hat.to(dtype)
    x = info.x.to(dtype, copy=True)
    returned = callback(replace(info, x=x, x0_hat=x0_hat))
    return None if returned is None else _checked_state(returned, x).to(info.x.dtype)


def _checked_state(returned: object, x: Tensor) -> Tensor:
    """The state that a callback returned, with the shape and the type of x; raises ValueError for others."""
    if not isinstance(returned, Tensor) or returned.shape != x.shape or returned.dtype != x.dtype:
        got = f"{tuple(returned.shape)} {returned.dtype}" if isinstance(returned, Tensor) else repr(returned)
        raise ValueError(
            f"a callback must return None or a state with shape {tuple(x.shape)} and type {x.dtype}, "
            f"got {got}"
        )
    return returned


def warn_of_moments(name: str, method: object, x: Tensor, sde: ForwardSDE, t_min: float, nfe: float) -> None:
    """Warn, with numbers, of samples x with shape (B, *) whose mean or total variance is far from that of the
    moments that a method uses: with those of other data a run takes more evaluations than it needs.

    Compared are the first finite samples of ``_FAIR`` evaluations on the host, ``_ENOUGH`` to ``_PLENTY`` of
    them, with the moments of the data at ``t_min``; mean 0 and one variance, which stand for moments that are
    not known, are not.
    """
    moments = getattr(method, "moments", None)
    if not isinstance(moments, Moments) or (moments.kind == "scalar" and not bool(moments.mean.any())):
        return
    if len(x) < _ENOUGH or nfe < _FAIR or x.device.type != "cpu":
        return
    variance, mean = torch.var_mean(x[:_PLENTY].detach().double(), 0, correction=0)
    count, spread = min(len(x), _PLENTY), float(variance.sum())
    if not math.isfinite(spread):
        return
    alpha, sigma = (f(torch.tensor([t_min], dtype=torch.float64)) for f in (sde.alpha, sde.sigma))
    total = float(moments.marginal_variances(alpha, sigma).sum())
    ratio, distance = spread / total, float((mean - alpha * moments.mean).norm()) / total**0.5
    if 1 / _MOST_RATIO <= ratio <= _MOST_RATIO and distance <= _MOST_DISTANCE:
        return
    warnings.warn(
        f"{name} has moments that are not those of the samples: {count} samples have {ratio:.3g} times "
        f"the variance, and a mean {distance:.3g} standard deviations away; either the moments are those of "
        "other data, then give moments=estimate_moments(data) or sampled_moments(model), or the model is far "
        "from its data",
        stacklevel=5,
    )


def check_observation(observation: object) -> None:
    """Refuse, with TypeError, what is no observation that was made."""
    if observation is not None and not (
        has_method(observation, "conditions") and has_method(observation, "on")
    ):
        raise TypeError(
            "observation must be what was observed, Observed(LinearObservation(A, std), y) of "
            f"sde_toolkit.guidance, got {shown(observation)}"
        )
