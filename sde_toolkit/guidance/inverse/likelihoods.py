"""Guidance by the gradient of an approximate likelihood p(y | x_t), pulled back through the network.

With x0_hat and its Jacobian J at x_t, V = (sigma^2 / alpha) J the covariance of x0 given x_t, n = sigma /
alpha:

    p(y | x_t) ~ N(y; A x0_hat, A W A^T + s^2 I)
    x0_hat' = x0_hat + (sigma^2 / alpha) J^T A^T (A W A^T + s^2 I)^-1 (y - A x0_hat)

    method     W                                                    exact for
    DPS        0, with a step length in the place of s^2            -
    PiGDM      n^2 d^2 / (n^2 + d^2) I, d the data's std            Gaussians with covariance d^2 I
               or that of N(m, S), S (I + S / n^2)^-1               Gaussians
    TMPD       the diagonal matrix of the sums of the rows of V     Gaussians with independent features
               or V itself, column by column                        Gaussians
    MMPS       V, by conjugate residuals                            Gaussians

J is taken as fixed: the derivative of V is left out by all of them, and vanishes for Gaussians.  For other
data none is exact, since p(x0 | x_t) is no Gaussian: where it has several modes, the weights of the modes of
the posterior come out wrong.

The Jacobian of a network is neither symmetric nor positive, and its error counts n^2 times in V: at high
noise x' V x has any sign.  So what PiGDM, TMPD and MMPS add to x0_hat is shortened where it would leave |y -
A x0_hat'| above |y - A x0_hat|.  Where V is a covariance and W is V this changes nothing.

References: Chung et al., DPS (2209.14687), algorithm 1 and theorem 1; Song et al., "Pseudoinverse-Guided
Diffusion Models for Inverse Problems" (ICLR 2023), eq. 7-8; Boys et al., "Tweedie Moment Projected
Diffusions for Inverse Problems" (2310.06721), eq. 9-10 and section 4; Rozet et al., "Learning Diffusion
Priors from Observations by Expectation Maximization" (2405.13712), section 4 (MMPS).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.gains import Gains, gains_of
from sde_toolkit.guidance.inverse.observations import (
    LinearObservation,
    Measured,
    NonlinearObservation,
    Observation,
    reciprocal,
)
from sde_toolkit.guidance.inverse.posterior import Method, Query
from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import check_fields
from solvers.terms import expand_like


@dataclass(frozen=True)
class DPS(Method):
    """Diffusion posterior sampling (2209.14687), algorithm 1, for any observation.

    The paper takes a step of DDPM from t to s and subtracts zeta grad |y - h(x0_hat)|.  Here x0_hat is moved
    so that the ancestral step of ``num_steps`` uniform steps is moved by just that; with another number of
    steps the guidance per unit of time stays the same.  An observation with a likelihood of its own is
    guided by zeta grad log p(y | x0_hat).

    Args:
        zeta: the length of a step.
        num_steps: of the chain that zeta is meant for.

    Raises:
        ValueError: a zeta that is not positive, or num_steps below 1.
    """

    zeta: float = 1.0
    num_steps: int = 1000
    linear = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.zeta < math.inf or operator.index(self.num_steps) < 1:
            raise ValueError(f"DPS needs zeta > 0 and num_steps >= 1, got {self.zeta} and {self.num_steps}")

    def denoise(self, query: Query) -> Tensor:
        """x0_hat less the gradient, over the weight of x0_hat in an ancestral step; shape (B, *D)."""
        x0_hat = query.tracked()
        with torch.enable_grad():
            slope = query.slope(self._misfit(query))
        sde, t = query.sde, query.t
        s = (t - sde.T / self.num_steps).clamp(min=1e-4 * sde.T / self.num_steps)
        ratio = (sde.nsr(s) / sde.nsr(t)).square()
        weight = (sde.alpha(s) * (1 - ratio)).clamp(min=1e-12)
        return x0_hat - expand_like((self.zeta / weight).to(slope), slope) * slope

    def _misfit(self, query: Query) -> Tensor:
        """|y - h(x0_hat)| or -log p(y | x0_hat), with shape (B,)."""
        observation, x0_hat = query.observation, query.graph()
        if isinstance(observation, LinearObservation):
            r = query.measured.residual(x0_hat)
            return (r.square().sum(1) + torch.finfo(r.dtype).tiny).sqrt()
        assert isinstance(observation, NonlinearObservation)
        return observation.misfit(query.y, x0_hat)


@dataclass(frozen=True)
class PiGDM(Method):
    """Pseudoinverse-guided diffusion (ICLR 2023), in the form of a score: eq. 7 with r_t^2 = n^2 d^2 / (n^2
    + d^2).

    The paper multiplies the guidance by a weight of its own for DDIM (r_t^2); that is left out here, because
    it is not the score of any approximation.

    Args:
        covariance: "isotropic", the paper's r_t^2 I; or "moments", that of x0 given x_t for N(m, S).

    Raises:
        ValueError: another covariance.
    """

    covariance: str = "isotropic"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.covariance not in ("isotropic", "moments"):
            raise ValueError(f"covariance must be 'isotropic' or 'moments', got {self.covariance!r}")

    @property
    def needs_moments(self) -> bool:  # type: ignore[override]
        """With the covariance of the moments."""
        return self.covariance == "moments"

    def plan(self, model: ScoreModel, observation: Observation) -> Gains | None:
        """The products of A and the axes of S."""
        return gains_of(model, observation) if self.needs_moments else None

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        x0_hat, seen = query.tracked(), query.measured
        r = seen.residual(x0_hat)
        if self.needs_moments:
            return x0_hat + _bounded(
                seen, r, query.spread(seen.backward(query.plan.solve(query.nsr, r, seen)))
            )
        return x0_hat + _bounded(seen, r, query.spread(seen.backward(_isotropic(query, seen, r))))


@dataclass(frozen=True)
class TMPD(Method):
    """Tweedie moment projected diffusion (2310.06721).

    Args:
        covariance: "row_sums", the paper's diagonal approximation, for one more backward pass; or "full", V
            itself, for one backward pass per number observed.

    Raises:
        ValueError: another covariance.
    """

    covariance: str = "row_sums"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.covariance not in ("row_sums", "full"):
            raise ValueError(f"covariance must be 'row_sums' or 'full', got {self.covariance!r}")

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        x0_hat, seen = query.tracked(), query.measured
        r = seen.residual(x0_hat)
        B, m = r.shape
        units = torch.eye(m, dtype=r.dtype, device=r.device)
        if self.covariance == "row_sums":
            v = query.spread(torch.ones_like(x0_hat)).clamp(min=0)
            columns = [seen.forward(v * seen.backward(units[i : i + 1].expand(B, m))) for i in range(m)]
        else:
            columns = [
                seen.forward(query.spread(seen.backward(units[i : i + 1].expand(B, m)))) for i in range(m)
            ]
        law = torch.stack(columns, 2)
        law = 0.5 * (law + law.mT) + seen.std**2 * units
        return x0_hat + _bounded(seen, r, query.spread(seen.backward(_solve(law, r))))


@dataclass(frozen=True)
class MMPS(Method):
    """Moment matching posterior sampling (2405.13712), by generalised conjugate residuals.

    Preconditioned, where the model has moments, by the covariance of y given x_t for Gaussian data, so that
    one iteration solves the system for these; without, by the isotropic one.  V is the model's own in every
    case.  That of a network is neither symmetric nor positive, as the error of its Jacobian counts n^2 times:
    the paper's conjugate gradients divide by g M g, M = A V A^T + s^2 I, which is then any small number, and
    throw draws out of the data; here |M g|^2 stands in its place.

    Args:
        iterations: at most; each is one backward pass.

    Raises:
        ValueError: iterations below 1.
    """

    iterations: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if operator.index(self.iterations) < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def plan(self, model: ScoreModel, observation: Observation) -> Gains | None:
        """The products of A and the axes of S."""
        return None if model.moments is None else gains_of(model, observation)

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        x0_hat, seen = query.tracked(), query.measured

        def near(g: Tensor) -> Tensor:
            if query.plan is not None:
                return query.plan.solve(query.nsr, g, seen)
            return _isotropic(query, seen, g)

        return x0_hat + _matched(query, seen, seen.residual(x0_hat), near, self.iterations)


def _isotropic(query: Query, seen: Measured, r: Tensor) -> Tensor:
    """(A W A^T + s^2 I)^-1 r with shape (B, m), W = n^2 d^2 / (n^2 + d^2) I."""
    d2, n2 = query.model.data_std**2, query.nsr.square()
    v = n2 * d2 / (n2 + d2)
    v = v if v.ndim == 0 else v[:, None]
    return seen.of_gram(lambda e: reciprocal(seen.std**2 + v * e), r)


def _bounded(seen: Measured, r: Tensor, move: Tensor) -> Tensor:
    """c times a move of x0_hat with shape (B, *D): c is the most in [0, 1] with |r - c A move| <= |r|, row by
    row."""
    image = seen.forward(move)
    square = image.square().sum(1)
    length = 2 * (r * image).sum(1) / torch.where(square > 0, square, 1.0)
    return expand_like(length.clamp(0, 1), move) * move


def _matched(query: Query, seen: Measured, r: Tensor, near: Any, iterations: int) -> Tensor:
    """V A^T g with shape (B, *D), row by row, for g with the least |r - M g| that is reached, M = A V A^T +
    s^2 I; bounded.

    Generalised conjugate residuals: every iteration takes from r its part along the next image of M, so that
    r never grows, whatever M is.

    Args:
        r: with shape (B, m).
        near: what is near the inverse of M.
        iterations: at most, one backward pass each.
    """
    rest, shift = r, torch.zeros_like(query.x_t).flatten(1)
    before: list[tuple[Tensor, Tensor, Tensor]] = []  # images, their squares, and what they move x0_hat by
    for _ in range(min(iterations, r.shape[1])):
        g = near(rest)
        move = query.spread(seen.backward(g))
        image, move = seen.forward(move) + seen.std**2 * g, move.flatten(1)
        least = image.detach().square().sum(1, keepdim=True) * (10 * torch.finfo(r.dtype).eps) ** 2
        for other, square, moved in before:
            part = (image * other).sum(1, keepdim=True) / square
            image, move = image - part * other, move - part * moved
        square = image.square().sum(1, keepdim=True)
        going = square > least
        square = torch.where(going, square, 1.0)
        step = torch.where(going, (rest * image).sum(1, keepdim=True) / square, 0.0)
        rest, shift = rest - step * image, shift + step * move
        before.append((image, square, move))
    return _bounded(seen, r, shift.reshape(query.x_t.shape))


def _solve(law: Tensor, r: Tensor) -> Tensor:
    """law^-1 r with shape (B, m), for symmetric laws with shape (B, m, m), where no eigenvalue is below the
    rounding of the largest: those are left out."""
    values, vectors = torch.linalg.eigh(law)
    least = law.shape[1] * torch.finfo(law.dtype).eps * values[:, -1:].clamp(min=0)
    inverse = torch.where(values > least, 1 / torch.where(values > least, values, 1.0), 0.0)
    turned = (vectors * r[:, :, None]).sum(1) * inverse
    return (vectors * turned[:, None, :]).sum(2)
