"""Samples on their way: states of a reverse run kept while it goes, and paths of the forward process.

A forward path is drawn exactly between the times t_0 < t_1 < ...; alpha_k and sigma_k are those of t_k:

    x_k = r x_{k-1} + (sigma_k^2 - r^2 sigma_{k-1}^2)^(1/2) z_k,    r = alpha_k / alpha_{k-1}

from x_0 = alpha_0 x0 + sigma_0 z_0, with z_k ~ N(0, I): every x_k has the marginal law of the process.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit.samplers import StepInfo
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, checked
from solvers import Normals


@dataclass(frozen=True)
class Trajectory:
    """States of a set of samples at several times.

    Attributes:
        times: of the states, in the order of the run.
        x: the states with shape (F, n, *), float32 on the host.
    """

    times: tuple[float, ...]
    x: Tensor = field(repr=False)


class Recorder:
    """A callback for ``Sampler.sample`` that keeps states at evenly spaced steps, the last one always.

        recorder = Recorder()
        sampler.sample(model, 500, callback=recorder)
        recorder.trajectory().x       # (F, n, *)

    It keeps at most ``num_frames`` states of ``most_samples`` samples, the first of the run, as float32 on
    the host, however long the run is.  One recorder is for one run.

    Args:
        num_frames: states that are kept, at most; at least 1.
        most_samples: samples of which they are kept; at least 1.

    Raises:
        ValueError: fewer than 1.
    """

    @checked
    def __init__(self, num_frames: int = 50, most_samples: int = 1000) -> None:
        for name, value in (("num_frames", num_frames), ("most_samples", most_samples)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_frames, self.most_samples = num_frames, most_samples
        self._kept: dict[int, tuple[float, dict[int, Tensor]]] = {}
        self._first: int | None = None

    def __repr__(self) -> str:
        return f"Recorder({self.num_frames}, {self.most_samples})"

    def __call__(self, info: StepInfo) -> None:
        """Keep the state of a step, if it is one of those to be kept."""
        if info.number not in kept_steps(info.num_steps, self.num_frames):
            return
        if self._first is None:
            self._first = info.first_sample
        place = info.first_sample - self._first
        if not 0 <= place < self.most_samples:
            return
        state = info.x[: self.most_samples - place].detach().to("cpu", torch.float32, copy=True)
        self._kept.setdefault(info.number, (float(info.s), {}))[1][place] = state

    def trajectory(self) -> Trajectory:
        """The states that were kept, from noise to data.

        Raises:
            ValueError: there are none: the run has not been made, or it had another callback.
        """
        if not self._kept:
            raise ValueError(
                "the recorder must have been the callback of a run, got no state; "
                "pass it as sampler.sample(..., callback=recorder)"
            )
        numbers = sorted(self._kept)
        states = [self._kept[number][1] for number in numbers]
        x = torch.stack([torch.cat([parts[place] for place in sorted(parts)]) for parts in states])
        return Trajectory(tuple(self._kept[number][0] for number in numbers), x)


def kept_steps(num_steps: int, num_frames: int) -> set[int]:
    """Numbers of the steps whose states are kept: evenly spaced, the last one among them."""
    if num_frames >= num_steps:
        return set(range(num_steps))
    return {num_steps - 1 - (k * num_steps) // num_frames for k in range(num_frames)}


@checked
def forward_trajectory(sde: ForwardSDE, x0: Tensor, times: Sequence[float], seed: int = 0) -> Trajectory:
    """Paths of the forward process from clean data, at increasing times.

    Args:
        sde: the process.
        x0: clean data with shape (n, *).
        times: increasing, from 0 to T.
        seed: of the noise.

    Raises:
        ValueError: data without rows; times that do not increase or lie outside [0, T].
    """
    if x0.ndim < 1 or len(x0) < 1:
        raise ValueError(f"x0 must have shape (n, *) with n >= 1, got shape {tuple(x0.shape)}")
    ts = [float(t) for t in times]
    if not ts or any(b <= a for a, b in itertools.pairwise(ts)) or not 0 <= ts[0] <= ts[-1] <= sde.T:
        raise ValueError(f"times must increase within [0, {sde.T}], got {ts[:4]}")
    noise = Normals(seed, len(x0), x0.shape[1:], torch.float64)
    x, states = x0.detach().to("cpu", torch.float64), []
    alpha, sigma = 1.0, 0.0
    for k, t in enumerate(ts):
        time = torch.tensor(t, dtype=torch.float64)
        alpha_k, sigma_k = float(sde.alpha(time)), float(sde.sigma(time))
        ratio = alpha_k / alpha
        more = max(sigma_k**2 - (ratio * sigma) ** 2, 0.0) ** 0.5
        x = ratio * x + more * noise.draw(k, Stream.FORWARD)
        states.append(x.float())
        alpha, sigma = alpha_k, sigma_k
    return Trajectory(tuple(ts), torch.stack(states))
