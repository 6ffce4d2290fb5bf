"""Where a run starts: the law that x_t is drawn from at the first time t of the run, T as a rule.

    prior      N(0, prior_std^2 I), the process' own, whatever the data
    moments    N(alpha m, alpha^2 S + sigma^2 I), with the data's mean m and covariance S
               (``sde_toolkit.models.Moments``), as likelihoods take it

The second has the mean and the covariance that x_t has; Gaussian data start from their exact law.  The
prior of VE ignores m and S: with sigma_max = 1 and data N(0, 1) exact runs end with the standard deviation
sqrt(1/2) and not 1, with sigma_max = 50 the error is 2e-4; under VP, where alpha is .0066 at T, it is nothing
but .0066 m.  Both take the same normals z; where noise dominates, starts with the same z are neighbours.

With classes as the condition every sample starts from the moments of its class, where the model knows them.

A run may also start from given states: clean data x0 that get the noise of the first time t,

    x_t = alpha_t x0 + sigma_t z,          z the normals that the prior would have been made of,

so that the run keeps of x0 what the noise leaves and makes up the rest (SDEdit: image to image, strokes to
pictures); or states x_t that are noised already, such as latents of ``sde_toolkit.likelihood.encode``.  With
x0 from the data x_t has the law p_t, and the samples have the data's law but for the sampler's error.

Reference: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations"
(2108.01073).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sde_toolkit.models import Moments, ScoreModel
from sde_toolkit.utils import as_tensor, require

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


class GivenStates(NamedTuple):
    """States that runs start from, one for every sample.

    Attributes:
        x: clean data or noised states, with shape (N, *D).
        noised: whether they are x_t at the first time already.
    """

    x: Tensor
    noised: bool

    def at(self, model: ScoreModel, first: int, z: Tensor, t: Tensor) -> Tensor:
        """The states at t with shape (B, *D) of the samples ``first``, ...; z are their normals."""
        x = self.x[first : first + len(z)].to(z.dtype)
        return x if self.noised else model.sde.perturb(x, t, z)


def given_states(x_start: Any, noised: bool, model: ScoreModel, num_samples: int) -> GivenStates | None:
    """The states that a caller gives, on the device of the model; None for None.

    Raises:
        TypeError: what holds no real numbers.
        ValueError: another shape than (num_samples, *D), nan or inf, or ``noised`` of nothing.
    """
    if not isinstance(noised, bool):
        require("noised", noised, bool)
    if x_start is None:
        if noised:
            raise ValueError("noised=True says that x_start is noised already; give x_start, or leave it out")
        return None
    x = as_tensor("x_start", x_start, model.dtype)
    wanted = (int(num_samples), *model.event_shape)
    if x.shape != wanted:
        raise ValueError(
            f"x_start must have shape {wanted}, one state in model scale for each of num_samples, got "
            f"{tuple(x.shape)}; repeat a single one with x.expand{wanted}"
        )
    if x.is_meta or not bool(x.isfinite().all()):
        raise ValueError("x_start must hold finite numbers, got nan, inf or a tensor on the meta device")
    return GivenStates(x.to(model.device), noised)
