"""Moments of a model that has none, from a pilot run of its own."""

from __future__ import annotations

from sde_toolkit.data import estimate_moments
from sde_toolkit.models import Moments, ScoreModel, isotropic
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.gaussian.method import gaussian_residual
from sde_toolkit.utils import checked, integer


@checked
def sampled_moments(
    model: ScoreModel, num_samples: int = 256, num_steps: int = 10, *, seed: int = 0, t_min: float = T_MIN
) -> Moments:
    """Moments of a model that has none: those of its own samples, as ``estimate_moments`` gives them.

    The samples are those of ``gaussian_residual`` with mean 0 and variance data_std^2, good enough for a mean
    and a covariance at ten evaluations.  Worth its cost, ``num_samples`` times ``num_steps`` evaluations,
    before a larger run.

    Args:
        model: takes no condition, or works without one; ``model.given(c)`` has the moments of c.
        num_samples: at least 2.
        num_steps: evaluations of every sample.
        seed: of the samples.
        t_min: end of the runs.

    Raises:
        ValueError: an argument out of range.
    """
    integer("num_samples", num_samples, 2)
    start = isotropic(model.event_shape, model.data_std)
    sampler = gaussian_residual(model, num_steps, t_min=t_min, moments=start)
    return estimate_moments(sampler.sample(model, num_samples, seed=seed, start="prior").x.double().cpu())
