"""Where a run starts: the law that x_t is drawn from at the first time t of the run, T as a rule.

    prior      N(0, prior_std^2 I), the process' own, whatever the data
    moments    N(alpha m, alpha^2 S + sigma^2 I), with the data's mean m and covariance S
               (``sde_toolkit.models.Moments``), as likelihoods take it

The second has the mean and the covariance that x_t has; Gaussian data start from their exact law.  The
prior of VE ignores m and S: with sigma_max = 1 and data N(0, 1) exact runs end with the standard deviation
sqrt(1/2) and not 1, with sigma_max = 50 the error is 2e-4; under VP, where alpha is .0066 at T, it is nothing
but .0066 m.  Both take the same normals z; where noise dominates, starts with the same z are neighbours.

With classes as the condition every sample starts from the moments of its class, where the model knows them.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from sde_toolkit.models import Moments, ScoreModel

StartName = Literal["prior", "moments"]
STARTS: tuple[str, ...] = get_args(StartName)
"""The starts by name."""

Start = StartName | Moments
"""One of ``STARTS``, "moments" for the model's own; or moments, for all samples."""


def check_start(start: Start, model: ScoreModel | None = None) -> None:
    """Refuse, with ValueError, an unknown start, and one that cannot be had with this model."""
    if isinstance(start, str) and start not in STARTS:
        raise ValueError(f"start must be {' or '.join(map(repr, STARTS))}, or Moments, got {start!r}")
    if model is None or start == "prior":
        return
    if isinstance(start, Moments):
        if start.event_shape != model.event_shape:
            raise ValueError(
                f"start must be moments with the event shape {model.event_shape}, got {start.event_shape}"
            )
    elif model.moments is None:
        raise ValueError(
            "start='moments' needs the mean and the covariance of the data, but the model has none; give "
            "start=estimate_moments(x) of examples x in model scale, or start=sampled_moments(model)"
        )


def start_state(
    start: Start, model: ScoreModel, z: Tensor, t: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Turn standard normals z with shape (B, *) into the states where B runs start, with the shape and the
    type of z.

    Args:
        start: where.
        model: gives the process and the moments.
        z: the normals.
        t: the first time, with shape ().
        condition: one row per sample, or None.
    """
    if start == "prior":
        return model.sde.prior_sample(z)
    levels = model.sde.alpha(t), model.sde.sigma(t)
    if isinstance(start, Moments):
        return start.marginal_sample(z, *levels)
    whole, of_classes = model.moments, model.class_moments
    assert whole is not None
    if condition is None or of_classes is None:
        return whole.marginal_sample(z, *levels)
    x = torch.empty_like(z)
    for label in condition.unique().tolist():
        rows = condition == label
        law = of_classes[label] if label < len(of_classes) else whole  # the last label stands for no class
        x[rows] = law.marginal_sample(z[rows], *levels)
    return x
