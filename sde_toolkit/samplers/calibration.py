"""Calibrated grids: the times of a sampler's steps, found for one model on a small batch.

A deterministic sampler with the times T = t_0 > t_1 > ... > t_N = t_min carries a start x_T to x(t_1, ...,
t_{N-1}); the probability flow carries it to x*.  The error over a batch of starts

    E(t_1, ..., t_{N-1}) = ( mean |x - x*|^2 / mean |x*|^2 )^(1/2)

is made small by direct search in the logarithm of the noise-to-signal ratio, from the sampler's own grid:

    1. the whole grid is bent, log n_i -> the fraction u_i^g of its range, and drawn towards either end;
    2. each inner time is moved by a share of the gap to its neighbour, up or down, and stays where E falls;
       the share is halved when a sweep changes nothing.

Nothing is drawn at random but the starts, so the search is deterministic; a move is kept only if E falls.
The result is judged on a second batch: if the found grid is not better there, the sampler keeps its own.

Not promised: the best grid there is.  Grids found with few starts in many dimensions, or for many steps, fit
the starts; the second batch tells.

References: Sabour, Fidler and Kreis, "Align Your Steps" (2404.14507) and Chen et al., "On the Trajectory
Regularity of ODE-based Diffusion Sampling" (2405.11326), for grids found for a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, evaluating
from sde_toolkit.samplers.grids import Explicit
from sde_toolkit.samplers.presets.adaptive_steps import dopri5
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import Stream, atomic_write_text, checked
from solvers import Normals

FORMAT_VERSION = 1
_BENDS = (0.6, 0.75, 0.87, 1.15, 1.33, 1.66)
_DRAWS = (-0.5, -0.25, 0.25, 0.5)
_FIRST_SHARE, _LAST_SHARE = 0.4, 0.05


@dataclass(frozen=True)
class Calibration:
    """A grid found for a model, and what it is worth.

    Attributes:
        times: the found grid, or the sampler's own where that was not worse on the second batch.
        error_before, error: on the batch of the search, of the sampler's own grid and of ``times``.
        validation_before, validation: the same on the second batch.
        evaluations: model evaluations of the search, counted in batches.
        key: of the cache.
    """

    times: tuple[float, ...]
    error_before: float
    error: float
    validation_before: float
    validation: float
    evaluations: int
    key: str

    @property
    def grid(self) -> Explicit:
        """The times as a grid for a sampler with the same number of steps."""
        return Explicit(self.times)


@checked
def calibrate(
    sampler: Sampler,
    model: ScoreModel,
    *,
    num_samples: int = 32,
    seed: int = 0,
    sweeps: int = 12,
    reference: Sampler | None = None,
    cache: Path | str | None = None,
) -> Calibration:
    """Find times for the steps of ``sampler`` on ``model``; never worse on the second batch than its own.

    Args:
        sampler: deterministic, on a fixed grid of at least 2 steps.
        model: any ``ScoreModel``.
        num_samples: starts in each of the two batches.
        seed: of the starts; the second batch follows the first in the same sequence of samples.
        sweeps: most passes over the inner times.
        reference: makes the fine solution, from the sampler's starts; adaptive Dopri5 with tolerances 1e-6 to
            the same t_min, with the same choice of ``denoise``, when None.
        cache: directory, made if need be, where results are kept and looked up by model and settings; models
            are identified by their predictions on fixed states.

    Raises:
        ValueError: a stochastic or adaptive sampler, fewer than 2 steps, or a count below 1.
    """
    if sampler.num_steps is None or sampler.num_steps < 2 or sampler.strong_order is not None:
        raise ValueError(f"sampler must be deterministic, on a grid of 2 or more steps, got {sampler.name}")
    if num_samples < 1 or sweeps < 1:
        raise ValueError(f"num_samples and sweeps must be at least 1, got {num_samples} and {sweeps}")
    sampler = sampler.on(model.sde)
    if reference is None:
        reference = dopri5(rtol=1e-6, atol=1e-6, t_min=sampler.t_min, denoise=sampler.denoise)
    key = _key(sampler, model, reference, num_samples, seed, sweeps)
    path = None if cache is None else Path(cache) / f"grid-{key}.json"
    found = None if path is None else _read(path, key)
    if found is None:
        found = _search(sampler, model, reference, num_samples, seed, sweeps, key)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            document = {"format_version": FORMAT_VERSION, **asdict(found)}
            atomic_write_text(path, json.dumps(document, indent=1) + "\n")
    return found


@checked
def calibrated(sampler: Sampler, model: ScoreModel, **options: Any) -> Sampler:
    """The sampler on the grid that ``calibrate`` finds for it, with the same options."""
    return replace(sampler, grid=calibrate(sampler, model, **options).grid)


def _search(
    sampler: Sampler,
    model: ScoreModel,
    reference: Sampler,
    num_samples: int,
    seed: int,
    sweeps: int,
    key: str,
) -> Calibration:
    evaluations = 0

    def objective(first_sample: int) -> Callable[[Tensor], float]:
        same = replace(reference, start=sampler.start)
        ends = same.sample(model, num_samples, seed=seed, first_sample=first_sample).x
        scale = float(ends.double().square().mean().sqrt())

        def error(ts: Tensor) -> float:
            nonlocal evaluations
            tried = replace(sampler, grid=Explicit(ts))
            samples = tried.sample(model, num_samples, seed=seed, first_sample=first_sample)
            evaluations += round(samples.nfe)
            value = float((samples.x - ends).double().square().mean().sqrt()) / scale
            return value if math.isfinite(value) else math.inf

        return error

    assert sampler.num_steps is not None
    own = sampler.grid(model.sde, sampler.num_steps, sampler.t_min, model.sde.T)
    error, check = objective(0), objective(num_samples)
    error_before, validation_before = error(own), check(own)
    best, lowest = _bent(model, own, error, error_before)
    best, lowest = _moved(model, best, lowest, error, sweeps)
    validation = check(best)
    if not validation < validation_before:
        best, lowest, validation = own, error_before, validation_before
    times = tuple(best.tolist())
    return Calibration(times, error_before, lowest, validation_before, validation, evaluations, key)


def _levels(model: ScoreModel, ts: Tensor) -> Tensor:
    """log n of the times; a ratio of 0 at the end counts as a hundredth of the one before."""
    n = model.sde.nsr(ts)
    return torch.where(n > 0, n, n[-2] / 100).log()


def _times(model: ScoreModel, levels: Tensor, ends: Tensor) -> Tensor:
    """The times of levels, with the first and the last of ``ends``."""
    inner = model.sde.inverse_nsr(levels[1:-1].exp())
    return torch.cat([ends[:1], inner, ends[-1:]])


def _falling(ts: Tensor) -> bool:
    return bool(ts.isfinite().all() & (ts.diff() < 0).all())


def _bent(
    model: ScoreModel, own: Tensor, error: Callable[[Tensor], float], start: float
) -> tuple[Tensor, float]:
    """The best of the whole grids that are bent and drawn, and its error."""
    levels = _levels(model, own)
    u = (levels - levels[-1]) / (levels[0] - levels[-1])
    forms = [u**g for g in _BENDS] + [u + d * u * (1 - u) for d in _DRAWS]
    best, lowest = own, start
    for form in forms:
        ts = _times(model, levels[-1] + form * (levels[0] - levels[-1]), own)
        value = error(ts) if _falling(ts) else math.inf
        if value < lowest:
            best, lowest = ts, value
    return best, lowest


def _moved(
    model: ScoreModel, best: Tensor, lowest: float, error: Callable[[Tensor], float], sweeps: int
) -> tuple[Tensor, float]:
    """Inner times moved one by one while the error falls."""
    share = _FIRST_SHARE
    for _ in range(sweeps):
        changed = False
        for i in range(1, len(best) - 1):
            for side in (-1, 1):
                levels = _levels(model, best)
                levels[i] += share * (levels[i + side] - levels[i])
                ts = _times(model, levels, best)
                value = error(ts) if _falling(ts) else math.inf
                if value < lowest:
                    best, lowest, changed = ts, value, True
                    break
        if not changed:
            share /= 2
            if share < _LAST_SHARE:
                break
    return best, lowest


@torch.no_grad()
def _key(
    sampler: Sampler, model: ScoreModel, reference: Sampler, num_samples: int, seed: int, sweeps: int
) -> str:
    """Identifies model and settings: the model by its noise predictions on 4 states at 3 times."""
    digest = hashlib.sha256()
    described = {
        "format": FORMAT_VERSION,
        "sampler": sampler.settings,
        "method": repr(sampler.method),
        "reference": reference.settings,
        "sde": repr(model.sde),
        "event_shape": model.event_shape,
        "dtype": str(model.dtype),
        "search": (num_samples, seed, sweeps, _BENDS, _DRAWS, _FIRST_SHARE, _LAST_SHARE),
    }
    digest.update(json.dumps(described, sort_keys=True, default=repr).encode())
    z = Normals(0, 4, model.event_shape, model.dtype, model.device).draw(0, Stream.MODEL_STATES)
    for share in (0.1, 0.5, 1.0):
        t = torch.tensor(share * model.sde.T, dtype=torch.float64)
        x = model.sde.alpha(t).to(z) * model.data_std * z.flip(0) + model.sde.sigma(t).to(z) * z
        with evaluating(model):
            z_hat = model.noise(x, t)
        digest.update(z_hat.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path, key: str) -> Calibration | None:
    """A result kept earlier; None if there is none, or one that is damaged or of another format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format_version") != FORMAT_VERSION:
            return None
        found = Calibration(**{**document, "times": tuple(map(float, document["times"]))})
        return found if found.key == key and found.grid is not None else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
