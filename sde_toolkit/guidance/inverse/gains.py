"""The Gaussian N(m, S) given x_t and y, for guidance: what the data's moments say of an observation.

With S = U diag(l) U^T and n = sigma / alpha, x0 given x_t has the covariance V = U diag(n^2 l / (n^2 + l))
U^T, in the axes in which the moments are held, and

    M = A V A^T + s^2 I            the covariance of y given x_t
    K = V A^T M^-1                 the gain, from y - A x0_hat to the change of x0_hat

Both depend on the level alone: on a fixed grid one factorisation of an (m, m) matrix serves all samples.

Where S is of low rank beside one variance for all other axes (or that variance alone), V = v I + L diag(d)
L^T with r columns of L, and no (m, m) matrix is formed.  In the eigenvectors of A A^T, whose eigenvalues are
e,

    N = v e + s^2,    M = N + B diag(d) B^T,    B = A L with shape (m, r)
    M^-1 = N^-1 - N^-1 B diag(d) (I + B^T N^-1 B diag(d))^-1 B^T N^-1

is found in O(m r^2) for a level and O(m r) for a sample.

References: Kalman's gain; Woodbury's identity; Wang and Vastola (2412.09726) for how well N(m, S) does at
high noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.maps import EntriesMap, LinearMap, MaskMap
from sde_toolkit.guidance.inverse.observations import LinearObservation, Measured, Observation
from sde_toolkit.guidance.inverse.posterior import Method, Query
from sde_toolkit.models import LowRank, Moments, ScoreModel, row_product

_SMALL = 1e-9
"""The least eigenvalue of N, in units of the mean of those of M, where only a few axes have variance."""

_JITTER = 1e-15
"""Added to the diagonal of M, in units of its mean: rows of A that say the same twice."""


class Gains:
    """M^-1 and K for one observation and one law N(m, S).

    Args:
        moments: m and S.
        observation: A and s.
    """

    @torch.inference_mode(False)
    def __init__(self, moments: Moments, observation: LinearObservation) -> None:
        self._moments, self._rowwise = moments, isinstance(observation.A, EntriesMap)
        self._variances = moments.variances
        map_, _ = observation.scaled
        self._diagonal = moments.kind in ("scalar", "diagonal") and isinstance(map_, MaskMap)
        self._seen: Tensor | None = None  # A U, with shape (m, n)
        self._narrow: _Narrow | None = None
        self._axes: Tensor | None = None
        if self._diagonal:
            self._picked = map_.forward(self._variances.reshape(1, *moments.event_shape))[0]
        elif self._rowwise:
            n = moments.mean.numel()
            self._axes = torch.eye(n, dtype=torch.float64) if moments.axes is None else moments.axes
        elif moments.kind in ("scalar", "low_rank"):
            self._narrow = _Narrow(moments, map_)
        else:
            A = map_.matrix()
            self._seen = moments.project(A.unflatten(-1, moments.event_shape)).contiguous()

    def solve(self, nsr: Tensor, r: Tensor, measured: Measured) -> Tensor:
        """M^-1 r with shape (B, m), for r with shape (B, m) and a ratio with shape () or (B,)."""
        n2 = nsr.double().square()[..., None]
        if self._narrow is not None:
            return self._narrow.solve(n2, r, measured)
        if self._diagonal:
            v = self._picked.to(n2.device)
            return r / (n2 * v / (n2 + v) + measured.std**2).clamp(min=1e-300).to(r)
        law = self._law(n2, measured)
        if law.ndim == 2:
            return row_product(r, _inverse(law).to(r).contiguous())
        return _solved(law, r.double()).to(r)

    def gain(self, nsr: Tensor, r: Tensor, measured: Measured) -> Tensor:
        """K r with shape (B, *D), for r with shape (B, m) and a ratio with shape () or (B,)."""
        g = measured.backward(self.solve(nsr, r, measured))
        n2 = nsr.double().square()[..., None]
        distinct = self._moments.distinct.to(n2.device)
        v = n2 * distinct / (n2 + distinct)
        return self._moments.filter(g)((g, v.to(g)))

    def log_prob(self, nsr: Tensor, r: Tensor, measured: Measured) -> Tensor:
        """log N(r; 0, M) with shape (B,), for r with shape (B, m) and a ratio with shape (); entries that are
        missing do not count."""
        n2 = nsr.double().square()[..., None]
        held = measured.map.held if isinstance(measured.map, EntriesMap) else None
        many = r.shape[1] if held is None else held.to(r).sum(1)
        if self._narrow is not None:
            g, scales = self._narrow.solve(n2, r, measured), self._narrow.log_scale(n2, measured)
            return -0.5 * (r * g).sum(1) - many * 0.5 * math.log(2 * math.pi) - scales.to(r)
        if self._diagonal:
            v = self._picked.to(n2.device)
            law = n2 * v / (n2 + v) + measured.std**2
            z, scales = r / law.sqrt().to(r), 0.5 * law.log().sum()
        else:
            law = self._law(n2, measured)
            if held is not None:  # whose own variances are 1 + s^2
                law = law - torch.diag_embed((1 - held.double()) * measured.std**2)
            factor = torch.linalg.cholesky(law)
            scales = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            if law.ndim == 2:
                eye = torch.eye(len(law), dtype=law.dtype, device=law.device)
                inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
                z = row_product(r, inverse.mT.to(r).contiguous())
            else:
                z = torch.linalg.solve_triangular(factor, r.double()[:, :, None], upper=False)[:, :, 0].to(r)
        return -0.5 * z.square().sum(1) - many * 0.5 * math.log(2 * math.pi) - scales.to(r)

    def _law(self, n2: Tensor, measured: Measured) -> Tensor:
        """M with shape (m, m), or (B, m, m) where rows differ."""
        variances = self._variances.to(n2.device)
        v = n2 * variances / (n2 + variances)
        if self._seen is not None:
            seen = self._seen.to(n2.device)
            law = (seen * v[..., None, :]) @ seen.mT
        else:
            assert self._axes is not None
            assert isinstance(measured.map, EntriesMap)
            axes, held = self._axes.to(n2.device), measured.map.held
            assert held is not None
            held = held.double()
            law = (axes * v[..., None, :]) @ axes.mT
            law = law * held[:, :, None] * held[:, None, :] + torch.diag_embed(1 - held)
        law = 0.5 * (law + law.mT)
        each = law.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
        return law + torch.diag_embed((measured.std**2 + _JITTER * each).expand(law.shape[:-1]))


class _Narrow:
    """M^-1 for moments of low rank beside one variance, and for that variance alone.

    Args:
        moments: of kind "low_rank" or "scalar".
        map_: A, with the noise's standard deviations divided out.
    """

    def __init__(self, moments: Moments, map_: LinearMap) -> None:
        self._map = map_
        covariance = moments.covariance
        if isinstance(covariance, LowRank):
            self._variances, self._rest = covariance.variances, covariance.rest
            axes = covariance.axes.mT.unflatten(-1, moments.event_shape)
            self._columns = map_.turn(map_.forward(axes.contiguous())).mT.contiguous()  # B, with shape (m, r)
        else:
            self._variances, self._rest = covariance.new_empty(0), covariance
            self._columns = covariance.new_empty(map_.count, 0)

    def solve(self, n2: Tensor, r: Tensor, measured: Measured) -> Tensor:
        """M^-1 r with shape (B, m), for a squared ratio with shape (1,) or (B, 1)."""
        inverse, d, K = self._level(n2, measured)
        B, w = self._columns.to(r.device), self._map.turn(r.double()) * inverse
        if B.shape[1]:
            c = row_product(w, B)
            if K.ndim == 2:
                c = row_product(c, torch.linalg.inv(K).mT.contiguous())
            else:
                c = torch.linalg.solve(K, c[:, :, None])[:, :, 0]
            w = w - row_product(d * c, B.mT.contiguous()) * inverse
        return self._map.turn_back(w).to(r)

    def log_scale(self, n2: Tensor, measured: Measured) -> Tensor:
        """1/2 log det M with shape (), without what is not observed at all."""
        inverse, _, K = self._level(n2, measured)
        logs = torch.where(inverse > 0, inverse, 1.0).log()
        return 0.5 * (torch.linalg.slogdet(K).logabsdet - logs.sum(-1))

    def _level(self, n2: Tensor, measured: Measured) -> tuple[Tensor, Tensor, Tensor]:
        """N^-1 with shape (m,) or (B, m), 0 where A sees nothing and there is no noise, d with shape (r,) or
        (B, r), and I + B^T N^-1 B diag(d)."""
        B, e = self._columns.to(n2.device), self._map.spectrum.to(n2)
        variances, rest = self._variances.to(n2.device), self._rest.to(n2.device)
        v = n2 * rest / (n2 + rest)
        d = n2 * variances / (n2 + variances) - v
        N = v * e + measured.std**2
        each = N.mean(-1, keepdim=True) + (d @ B.square().mean(0))[..., None]
        N = N.clamp(min=_SMALL * each.clamp(min=1e-280))
        inverse = torch.where((e == 0) & (measured.std == 0), 0.0, 1 / N)
        inside = (B * inverse[..., None]).mT @ B * d[..., None, :]
        return inverse, d, inside + torch.eye(B.shape[1], dtype=B.dtype, device=B.device)


def _inverse(law: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(law)
    if int(info) == 0:
        return torch.cholesky_inverse(factor)
    return torch.linalg.pinv(law, hermitian=True)


def _solved(law: Tensor, r: Tensor) -> Tensor:
    """law^-1 r with shape (B, m), each row by itself."""
    return torch.linalg.solve(law, r[:, :, None])[:, :, 0]


def gains_of(model: ScoreModel, observation: Observation) -> Gains:
    """The gains of the model's moments."""
    assert model.moments is not None
    assert isinstance(observation, LinearObservation)
    return Gains(model.moments, observation)


@dataclass(frozen=True)
class GaussianInformed(Method):
    """Guidance by the gain of N(m, S), the Gaussian with the data's moments:

        x0_hat' = x0_hat + K (y - A x0_hat)

    Exact for Gaussian data, at every level and for every observation, and as cheap as sampling without an
    observation: no pass goes back through the network.  For other data V is that of the Gaussian: too wide
    where the noise is small and the data have several narrow modes, where it trusts y too much.
    """

    needs_moments = True

    def plan(self, model: ScoreModel, observation: Observation) -> Gains:
        """The products of A and the axes of S."""
        return gains_of(model, observation)

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        x0_hat, seen = query.x0_hat(), query.measured
        gains: Gains = query.plan
        return x0_hat + gains.gain(query.nsr, seen.residual(x0_hat), seen)
