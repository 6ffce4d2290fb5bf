"""Sliced score matching: the score from states alone, for processes whose noise kernel nobody knows.

Integration by parts takes the unknown score s* out of |score - s*|^2 (Hyvarinen 2005), and a random vector v
of signs, or normals, the trace out of it: with E[v v'] = I,

    E |score - s*|^2 - E |s*|^2  =  E [ 2 v' (d score / dx) v + |score|^2 ]
    loss of one sample           =  w(t) ( 2 v' (d score / dx) v + |score|^2 ) / D,     x = x_t

its minimum is -E[w |s*|^2] / D, at the exact score.  (v' score)^2 in the place of |score|^2 is the plain form
of 1905.07088; the one with |score|^2, "variance-reduced" there, has the same mean and less spread.

States come from a function (x0, t, generator) -> x_t, such as ``Simulated``: Euler-Maruyama's method from x0
at time 0, every row to its own time, on

    dx = drift(x, t) dt + diffusion(t) dW

The law whose score is learned is that of what the function returns, here with the error of its steps.

Against denoising score matching the loss costs a second derivative, and near the data, where scores are
large, its spread is large too: take that wherever the kernel is known.

References: Song et al., "Sliced Score Matching" (1905.07088), eq. 8 and 9; Hyvarinen, "Estimation of
Non-Normalized Statistical Models by Score Matching" (2005).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, check_states
from sde_toolkit.training.objective.denoising import normals_like
from sde_toolkit.training.objective.times import uniforms
from sde_toolkit.training.objective.weightings import WEIGHTS, Weight, Weighting, weights_at
from sde_toolkit.utils import check_fields, checked, integer
from solvers.terms import expand_like

States = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(x0 with shape (B, *), t with shape (B,), generator) -> x_t with shape (B, *)."""


@dataclass(frozen=True)
class Simulated:
    """States of dx = drift(x, t) dt + diffusion(t) dW by Euler-Maruyama's method from time 0.

    Args:
        drift: (x with shape (B, *), t with shape (B,)) -> with the shape of x.
        diffusion: t with shape (B,) -> g with that shape.
        num_steps: equal steps of every row to its own time.

    Raises:
        ValueError: no step.
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor], Tensor]
    num_steps: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_steps", self.num_steps, 1)

    def __call__(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """x_t with the shape of x0, for times with shape (B,)."""
        x, h = x0, t / self.num_steps
        step, root = expand_like(h, x0), expand_like(h.sqrt(), x0)
        for k in range(self.num_steps):
            now, z = k * h, normals_like(x0, generator)
            x = x + step * self.drift(x, now) + root * expand_like(self.diffusion(now), x0) * z
        return x


@dataclass(frozen=True)
class ScoreWeight:
    """A weight of the noise's squared error as one of the score's: w(t) sigma_t^2.

    Args:
        weighting: a name of ``WEIGHTINGS``, not "residual", or a function, as for ``DenoisingLoss``.

    Raises:
        ValueError: an unknown or "residual" weight.
    """

    weighting: Weighting | Weight = "noise"

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.weighting, str) and self.weighting not in WEIGHTS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTS)}, got {self.weighting!r}")

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """w(t) sigma_t^2 with the shape of t."""
        return weights_at(self.weighting, model, t) * model.sde.sigma(t).square()


@dataclass(frozen=True)
class SlicedScoreLoss:
    """Sliced score matching on states of any process (1905.07088); called ``loss(model, x0, generator)``.

    Args:
        states: gives x_t, such as ``Simulated``.
        t_min, t_max: times are uniform between these; ``t_max`` is the end of the model's process when None.
        weighting: (model, t) -> w with the shape (B,) of t; 1 when None.
        num_slices: vectors v for every state.
        variance_reduced: |score|^2 in the place of (v' score)^2.

    Raises:
        ValueError: times out of order, or no slice.
    """

    states: States
    t_min: float = 1e-3
    t_max: float | None = None
    weighting: Weight | None = None
    num_slices: int = 1
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_slices", self.num_slices, 1)
        if not 0 <= self.t_min < (float("inf") if self.t_max is None else self.t_max):
            raise ValueError(f"t_min must lie in [0, t_max), got {self.t_min} and t_max = {self.t_max}")

    @checked
    def __call__(
        self, model: ScoreModel, x0: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """The loss of every sample, with shape (B,).

        Args:
            model: what is trained; its ``score`` is.  A network that predicts the "score" is asked for
                nothing else of its process than the scale of its input.
            x0: examples with shape (B, *).
            generator: of all draws.
            condition: one row per example, or None.

        Draws one uniform, what ``states`` draws, and signs, from ``generator``, on its own device.

        Raises:
            ValueError: ``t_min`` at or after the end, or states of another shape.
        """
        check_states(model, x0, "x0", finite=False)
        end = model.sde.T if self.t_max is None else self.t_max
        if self.t_min >= end:
            raise ValueError(f"t_min must be below the end of the process, T = {end}, got {self.t_min}")
        u = uniforms(len(x0), generator, stratified=True).to(x0.device)
        t = self.t_min + (end - self.t_min) * u
        x_t = self.states(x0, t, generator).detach()
        check_states(model, x_t, "states(x0, t, generator)", finite=False)
        with torch.enable_grad():
            x_t.requires_grad_()
            score, total = model.score(x_t, t, condition), x_t.new_zeros(len(x_t))
            for _ in range(self.num_slices):
                v = normals_like(x0, generator).sign()
                (slope,) = torch.autograd.grad(score, x_t, v, create_graph=True)
                along = (v * score).flatten(1).sum(1).square()
                size = score.square().flatten(1).sum(1) if self.variance_reduced else along
                total = total + 2 * (slope * v).flatten(1).sum(1) + size
        loss = total / (self.num_slices * x0[0].numel())
        return loss if self.weighting is None else weights_at(self.weighting, model, t).to(x0) * loss
