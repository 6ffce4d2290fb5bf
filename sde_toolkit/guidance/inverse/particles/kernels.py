"""The steps of particles towards data given y: kernels p(x_s | x_t), proposals and twists.

In the scale-free state u = x / alpha, with n = sigma / alpha and r = n_s^2 / n_t^2, the forward process gives

    u_s | u_t, x0 ~ N((1 - r) x0 + r u_t, c^2 I),       c^2 = n_s^2 (1 - r)

and a kernel follows from what x0 given u_t is taken to be, N(x0_hat, V):

    small       V = 0, the posterior of DDPM with its small variance
    moments     V = (S^-1 + I / n_t^2)^-1, that of the Gaussian N(m, S) with the moments of the data
    jacobian    V = n_t^2 J, with J the derivative of x0_hat with respect to u_t: the covariance of x0 given
                u_t itself, so that mean and covariance of the step are right

The last step goes to n = 0, which is x0 ~ N(x0_hat, V).  A twist stands for p(y | u_t):

    N(y; A x0_hat, A W A^T + s^2 I),     W = V of "moments" or "jacobian"; n^2 d^2 / (n^2 + d^2) I of
                                         "isotropic", d the std of the data; 0 of "likelihood"

Proposals with V = 0 move the mean by (n_t^2 - n_s^2) grad log twist.  For the others everything is Gaussian,
and u_s is drawn from its law given y.  With l(y | .) the law of y under x0 ~ N(x0_hat, V),

    q(u_s | u_t, y) = p(u_s | u_t) l(y | u_s, u_t) / l(y | u_t)
    x0 given u_s and u_t has the covariance (V^-1 + (1 / n_s^2 - 1 / n_t^2) I)^-1

so that p / q is known without the density of either.  A draw is one of (x0, y'), moved by Kalman's gain:
x0 + K (y - y').

References: Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models"
(2306.17775), section 3; Ho et al., DDPM (2006.11239), eq. 6-7; Matheron's rule for the draw.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.gains import Gains
from sde_toolkit.guidance.inverse.maps import EntriesMap
from sde_toolkit.guidance.inverse.observations import LinearObservation, Measured, Observation, reciprocal
from sde_toolkit.guidance.inverse.posterior import Query
from sde_toolkit.models import Moments, ScoreModel

KERNELS = ("jacobian", "moments", "small")
"""What x0 given x_t is taken to be."""

TWISTS = ("jacobian", "moments", "isotropic", "likelihood")
"""What p(y | x_t) is taken to be."""


@dataclass(frozen=True)
class Cloud:
    """Particles at one noise level, and what one evaluation of the network says of each.

    Attributes:
        u: scale-free states with shape (B, *D).
        x0_hat: clean predictions with shape (B, *D).
        twist: log p(y | u) in the approximation of the twist, with shape (B,).
        slope: its gradient with respect to u, with shape (B, *D), where the proposal needs it.
        values, axes: the covariance of x0 given u, axes diag(values) axes^T, with shapes (B, n) and (B, n,
            n), where it is the network's own.
        seen: A axes, with shape (B, m, n).
        factor: Cholesky's of the covariance of y given u, with shape (B, m, m), where the twist is that.
    """

    u: Tensor
    x0_hat: Tensor
    twist: Tensor
    slope: Tensor | None = None
    values: Tensor | None = None
    axes: Tensor | None = None
    seen: Tensor | None = None
    factor: Tensor | None = None

    def pick(self, index: Tensor) -> Cloud:
        """The particles with these numbers, with shape (B,)."""
        held = (self.slope, self.values, self.axes, self.seen, self.factor)
        optional = (None if x is None else x[index] for x in held)
        return Cloud(self.u[index], self.x0_hat[index], self.twist[index], *optional)


class Spread(ABC):
    """The covariance V of x0 given u_t, and the Gaussian laws that follow.

    Args:
        seen: y and its law, with the noise's standard deviations divided out.
        constant: what is added to log-densities of y for that.
    """

    def __init__(self, seen: Measured, constant: float) -> None:
        self.seen, self.constant = seen, constant

    @abstractmethod
    def values(self, cloud: Cloud, n2: float) -> Tensor:
        """The eigenvalues of V, with shape (k,) or (B, k)."""

    @abstractmethod
    def apply(self, cloud: Cloud, factor: Tensor, x: Tensor) -> Tensor:
        """f(V) x with shape (B, *D), for f of the eigenvalues."""

    @abstractmethod
    def log_prob(self, cloud: Cloud, n2_t: float, n2_s: float, r: Tensor) -> Tensor:
        """log N(r; 0, A V_s A^T + s^2 I) with shape (B,), V_s the covariance given u_s too."""

    @abstractmethod
    def weighted(self, cloud: Cloud, n2: float, r: Tensor) -> Tensor:
        """A^T (A V A^T + s^2 I)^-1 r with shape (B, *D)."""

    def gain(self, cloud: Cloud, n2: float, r: Tensor) -> Tensor:
        """V A^T (A V A^T + s^2 I)^-1 r with shape (B, *D)."""
        return self.apply(cloud, self.values(cloud, n2), self.weighted(cloud, n2, r))


class MomentsSpread(Spread):
    """That of N(m, S): one covariance for all particles."""

    def __init__(self, seen: Measured, constant: float, moments: Moments, gains: Gains) -> None:
        super().__init__(seen, constant)
        self._moments, self._gains = moments, gains

    def values(self, cloud: Cloud, n2: float) -> Tensor:
        """n^2 l / (n^2 + l) with shape (k,)."""
        distinct = self._moments.distinct
        return (n2 * distinct / (n2 + distinct)).to(cloud.u)

    def apply(self, cloud: Cloud, factor: Tensor, x: Tensor) -> Tensor:
        """f(V) x with shape (B, *D)."""
        return self._moments.filter(x)((x, factor.to(x)))

    def log_prob(self, cloud: Cloud, n2_t: float, n2_s: float, r: Tensor) -> Tensor:
        """The same with V_s that of the level s alone."""
        return self._gains.log_prob(_ratio(n2_s), r, self.seen) + self.constant

    def weighted(self, cloud: Cloud, n2: float, r: Tensor) -> Tensor:
        """A^T M^-1 r with shape (B, *D)."""
        return self.seen.backward(self._gains.solve(_ratio(n2), r, self.seen))


class JacobianSpread(Spread):
    """n^2 J of the network, made symmetric; its negative eigenvalues are taken as 0."""

    def values(self, cloud: Cloud, n2: float) -> Tensor:
        """Of the particles, with shape (B, n)."""
        assert cloud.values is not None
        return cloud.values

    def apply(self, cloud: Cloud, factor: Tensor, x: Tensor) -> Tensor:
        """f(V) x with shape (B, *D)."""
        assert cloud.axes is not None
        turned = (x.flatten(1)[:, None, :] @ cloud.axes)[:, 0] * factor
        return (cloud.axes @ turned[:, :, None]).reshape(x.shape)

    def log_prob(self, cloud: Cloud, n2_t: float, n2_s: float, r: Tensor) -> Tensor:
        """By one factorisation for every particle."""
        factor = cloud.factor
        if factor is None or n2_s != n2_t:
            v = self.values(cloud, n2_t)
            factor = self.factor(cloud, v / (1 + (1 / n2_s - 1 / n2_t) * v))
        z = torch.linalg.solve_triangular(factor, r[:, :, None], upper=False)[:, :, 0]
        scales = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return -0.5 * z.square().sum(1) - scales - self._many(r) * 0.5 * math.log(2 * math.pi) + self.constant

    def weighted(self, cloud: Cloud, n2: float, r: Tensor) -> Tensor:
        """A^T M^-1 r with shape (B, *D)."""
        factor = self.factor(cloud, self.values(cloud, n2)) if cloud.factor is None else cloud.factor
        return self.seen.backward(torch.cholesky_solve(r[:, :, None], factor)[:, :, 0])

    def _many(self, r: Tensor) -> Tensor | int:
        held = held_of(self.seen)
        return r.shape[1] if held is None else held.to(r).sum(1)

    def columns(self, axes: Tensor) -> Tensor:
        """A axes with shape (B, m, n)."""
        B, n = axes.shape[:2]
        shape = self.seen.map.event_shape
        if held_of(self.seen) is None:
            return self.seen.forward(axes.mT.reshape(B * n, *shape)).unflatten(0, (B, n)).mT.contiguous()
        return torch.stack([self.seen.forward(axes[:, :, j].unflatten(1, shape)) for j in range(n)], 2)

    def factor(self, cloud: Cloud, v: Tensor) -> Tensor:
        """Cholesky's factor of A U diag(v) U^T A^T + s^2 I with shape (B, m, m)."""
        assert cloud.seen is not None
        seen = cloud.seen
        law = (seen * v[:, None, :]) @ seen.mT
        each = law.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        added = (self.seen.std**2 + 10 * torch.finfo(v.dtype).eps * each).expand(law.shape[:2])
        held = held_of(self.seen)
        if held is not None:
            added = torch.where(held > 0, added, 1.0)
        return torch.linalg.cholesky_ex(law + torch.diag_embed(added))[0]


class Steps:
    """The steps of particles of one model given one observation.

    Args:
        model: of the data.
        observation: the law of y given x0.
        kernel, twist: of ``KERNELS`` and ``TWISTS``.
        y: with shape (1, *Y) or (B, *Y).
        condition: of the model, with one row per particle, or None.
        gains: of the moments; None without.
    """

    def __init__(
        self,
        model: ScoreModel,
        observation: Observation,
        names: tuple[str, str],
        y: Tensor,
        condition: Tensor | None,
        gains: Gains | None,
    ) -> None:
        self.model, self.observation, self.y, self.condition = model, observation, y, condition
        self.kernel, self.twist = names
        self.spreads: dict[str, Spread] = {}
        if isinstance(observation, LinearObservation):
            self.seen = observation.measured(y, torch.empty(0, dtype=y.dtype, device=y.device))
            each = observation._each(None)
            constant = -float(each.log().sum()) if each.ndim else 0.0
            self.spreads["jacobian"] = JacobianSpread(self.seen, constant)
            if gains is not None:
                assert model.moments is not None
                self.spreads["moments"] = MomentsSpread(self.seen, constant, model.moments, gains)

    def evaluate(self, u: Tensor, t: Tensor) -> Cloud:
        """One evaluation of the network at each of the states u with shape (B, *D), at the time t."""
        alpha = self.model.sde.alpha(t).to(u)
        query = Query(self.model, self.observation, alpha * u, t, self.y, self.condition)
        jacobian = "jacobian" in (self.kernel, self.twist)
        sloped = self.kernel == "small"
        x0_hat = query.tracked() if jacobian or sloped else query.x0_hat()
        cloud = Cloud(u, x0_hat, u.new_zeros(len(u)))
        if jacobian:
            cloud = self._spread_out(cloud, query)
        twist, weighted = self._twisted(cloud, query, sloped)
        slope = None
        if sloped:
            with torch.enable_grad():
                slope = alpha * (query.slope(twist) if weighted is None else query.pulled(weighted))
        return replace(cloud, twist=twist.detach(), slope=slope)

    def _spread_out(self, cloud: Cloud, query: Query) -> Cloud:
        """With the network's covariance, and what both the twist and the proposal take from it."""
        spread = self.spreads["jacobian"]
        assert isinstance(spread, JacobianSpread)
        values, axes = covariance(query)
        cloud = replace(cloud, values=values, axes=axes, seen=spread.columns(axes))
        return replace(cloud, factor=spread.factor(cloud, values))

    def _twisted(self, cloud: Cloud, query: Query, sloped: bool) -> tuple[Tensor, Tensor | None]:
        """log twist with shape (B,), and A^T M^-1 (y - A x0_hat), None where it is to be differentiated."""
        n2, x0_hat = float(query.nsr) ** 2, cloud.x0_hat
        if not isinstance(self.observation, LinearObservation):
            with torch.set_grad_enabled(sloped):
                at = query.graph() if sloped else x0_hat
                return self._likelihood(at), None
        r = self.seen.residual(x0_hat)
        if self.twist in self.spreads:
            spread = self.spreads[self.twist]
            twist = spread.log_prob(cloud, n2, n2, r)
            return twist, spread.weighted(cloud, n2, r) if sloped else None
        v = 0.0
        if self.twist == "isotropic":
            d2 = self.model.data_std**2
            v = n2 * d2 / (n2 + d2)
        variance = self.seen.std**2

        def precision(e: Tensor) -> Tensor:
            return reciprocal(variance + v * e)

        g = self.seen.of_gram(precision, r)
        e = self.seen.map.spectrum.to(r)
        law = variance + v * e
        held = held_of(self.seen)
        logs = law.log() + math.log(2 * math.pi)
        logs = logs.sum(-1) if held is None else (held * logs).sum(-1)
        twist = -0.5 * (r * g).sum(1) - 0.5 * logs + self.spreads["jacobian"].constant
        return twist, self.seen.backward(g) if sloped else None

    def start(self, z: tuple[Tensor, Tensor, Tensor], n2: float) -> tuple[Tensor, Tensor]:
        """States u with shape (B, *D) of the Gaussian N(m, S + n^2 I) given y, and log p(u) / q(u) with shape
        (B,)."""
        spread, moments = self.spreads["moments"], self.model.moments
        assert moments is not None
        m = moments.mean.to(z[0])
        whole = Cloud(z[0], m.expand_as(z[0]), z[0].new_zeros(len(z[0])))
        x0, _ = self._conditioned(spread, whole, FLAT, z[:2])
        u = x0 + math.sqrt(n2) * z[2]
        distinct = moments.distinct
        expected = m + spread.apply(whole, distinct / (distinct + n2), u - m)
        before = spread.log_prob(whole, FLAT, FLAT, self.seen.residual(whole.x0_hat))
        return u, before - spread.log_prob(whole, n2, n2, self.seen.residual(expected))

    def move(
        self, cloud: Cloud, z: tuple[Tensor, Tensor, Tensor], n2_t: float, n2_s: float
    ) -> tuple[Tensor, Tensor]:
        """Draws u_s of the proposal with shape (B, *D), and log p(u_s | u_t) / q(u_s | u_t, y) with shape
        (B,), times p(y | u_s) at the last step."""
        if self.kernel == "small":
            return self._moved_by_slope(cloud, z[2], n2_t, n2_s)
        spread, x0_hat = self.spreads[self.kernel], cloud.x0_hat
        x0, before = self._conditioned(spread, cloud, n2_t, z[:2])
        if n2_s == 0:
            return x0, before
        share = 1 - n2_s / n2_t
        u_s = share * x0 + (1 - share) * cloud.u + math.sqrt(n2_s * share) * z[2]
        v = spread.values(cloud, n2_t)
        away = u_s - share * x0_hat - (1 - share) * cloud.u
        expected = x0_hat + spread.apply(cloud, v / (share * v + n2_s), away)
        return u_s, before - spread.log_prob(cloud, n2_t, n2_s, self.seen.residual(expected))

    def _conditioned(
        self, spread: Spread, cloud: Cloud, n2: float, z: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Draws of x0 given u_t and y with shape (B, *D), and log l(y | u_t) with shape (B,)."""
        x0 = cloud.x0_hat + spread.apply(cloud, spread.values(cloud, n2).sqrt(), z[0])
        away = self.seen.residual(x0) - self.seen.std * self._noise(z[1])
        law = spread.log_prob(cloud, n2, n2, self.seen.residual(cloud.x0_hat))
        return x0 + spread.gain(cloud, n2, away), law

    def _likelihood(self, x0: Tensor) -> Tensor:
        """log p(y | x0) with shape (B,)."""
        return self.observation.log_likelihood(self.y[0] if len(self.y) == 1 else self.y, x0)

    def _noise(self, z: Tensor) -> Tensor:
        """Of the entries that are held."""
        held = held_of(self.seen)
        return z if held is None else z * held.to(z)

    def _moved_by_slope(self, cloud: Cloud, z: Tensor, n2_t: float, n2_s: float) -> tuple[Tensor, Tensor]:
        """The proposal of the paper: the mean of DDPM's step, moved along the gradient of the twist."""
        if n2_s == 0:
            return cloud.x0_hat, self._likelihood(cloud.x0_hat)
        assert cloud.slope is not None
        share = 1 - n2_s / n2_t
        std = math.sqrt(n2_s * share)
        shift = (n2_t - n2_s) * cloud.slope
        u_s = share * cloud.x0_hat + (1 - share) * cloud.u + shift + std * z
        moved = (shift / std).flatten(1)
        return u_s, -0.5 * moved.square().sum(1) - (moved * z.flatten(1)).sum(1)


def held_of(seen: Measured) -> Tensor | None:
    """Which entries are observed, with shape (1, m) or (B, m); None for all."""
    return seen.map.held if isinstance(seen.map, EntriesMap) else None


def covariance(query: Query) -> tuple[Tensor, Tensor]:
    """Eigenvalues with shape (B, n) and eigenvectors in columns with shape (B, n, n) of the covariance of x0
    given x_t, n backward passes."""
    x = query.tracked()
    units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    rows = [query.spread(unit.reshape(1, *x.shape[1:]).expand_as(x)).flatten(1) for unit in units]
    V = torch.stack(rows, 1)
    values, axes = torch.linalg.eigh((0.5 * (V + V.mT)).nan_to_num())
    return values.clamp(min=0), axes


FLAT = 1e150
"""A squared noise-to-signal ratio so large that x_t says nothing of x0."""


def _ratio(n2: float) -> Tensor:
    return torch.tensor(n2, dtype=torch.float64).sqrt()
