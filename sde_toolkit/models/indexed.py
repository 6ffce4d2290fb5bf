"""Networks that were trained at the N indices of a chain, as score models.

Such a network is asked at index i as ``network(x, i - 1)``: its own count starts at 0 with the least noise,
as in DDPM code.

A time t between two indices goes to the nearest index i, and times before index 1 go to it (for networks that
embed real numbers only these).  The network then speaks of the levels alpha_i, sigma_i and not of those at t.
It is asked at the state of the same size there, and its answer holds for the levels at t in the way of EDM's
preconditioning: what it adds to the Gaussian N(0, d^2), in units of that Gaussian's own uncertainty,

    x_i = (V_i / V_t)^{1/2} x_t,    V = alpha^2 d^2 + sigma^2,    W = alpha d^2 / V,    c = sigma d V^{-1/2}
    (x0_hat - W_t x_t) / c_t  =  (x0_hat_i - W_i x_i) / c_i

which is exact for data N(0, d^2 I), and wrong for others by the distance of the levels to first order.  The
prediction itself taken as one at t would be wrong by 1 / alpha times that: at alpha = .001 the means of
samples are off by their size.

A network with learned variances puts out twice the channels.  The second half u says, by features, where
between log beta~ and log beta the log variance of the step from the index lies: at v = (u + 1) / 2 of the way
(``sde_toolkit.sdes.variational``).  On a chain with fewer indices v lies between the two of its longer steps.

References: Lu et al., "DPM-Solver" (2206.00927), section 3.4 and appendix D, for indices as times; Nichol and
Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672), eq. 15, for learned variances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.models.moments import Moments
from sde_toolkit.models.network import ModuleModel
from sde_toolkit.models.score import Prediction, conversion, prediction_coefficients, prediction_name
from sde_toolkit.models.wrappers import inner_network
from sde_toolkit.sdes import Chain, ChainSDE
from sde_toolkit.utils import checked
from solvers import expand_like

_ON_INDEX = 1e-6
"""Distance of a time from an index, in indices, below which it is on it."""


class IndexedModel(ModuleModel):
    """A score model whose network was trained at the N indices of a chain.

    Args:
        network: called as ``network(x, i)`` with x of shape (B, *) and i of shape (B,): int64 from 0 to N - 1
            or, with ``fractional``, real numbers in between; and a condition, as for ``ModuleModel``.
        chain: the levels that it was trained at.
        predicts: what the network puts out.
        event_shape: the shape D of one sample.
        fractional: whether times between two indices are passed on as fractions; None: for networks that
            embed real numbers, which are those of ``sde_toolkit.networks``, diffusers' with
            ``time_embedding_type`` "positional" or "fourier", and those with an attribute
            ``embeds_real_times`` that is true.
        data_std: root-mean-square standard deviation of the data; that of the moments, or 1, when None.
        moments: mean and covariance of the data: with them likelihoods know the law at T, and samplers
            start from it.
        class_moments, condition_shape, dtype, device: as for ``ModuleModel``.
        learned_variance: whether the network returns tensors with shape (B, 2 C, *), whose second half is
            that of the variances.

    Raises:
        ValueError, TypeError: as for ``ModuleModel``; ValueError also for a chain that ends in noise alone,
            where a prediction of the noise or of the score says nothing.
    """

    sde: ChainSDE

    @checked
    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        chain: Chain,
        predicts: Prediction | str,
        event_shape: tuple[int, ...],
        fractional: bool | None = None,
        data_std: float | None = None,
        moments: Moments | None = None,
        class_moments: Sequence[Moments] | None = None,
        condition_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        learned_variance: bool = False,
    ) -> None:
        if predicts == "residual":
            raise ValueError(
                'predicts must be a prediction of a network that sees x_t itself, got "residual"; use a '
                "NetworkModel under ChainSDE(chain)"
            )
        if prediction_name(predicts) == "flow":
            raise ValueError(
                'predicts must be a prediction at the levels of an index, got "flow", which is a rate of '
                "time; use a NetworkModel under a process in continuous time"
            )
        if data_std is None:
            data_std = 1.0 if moments is None else moments.std
        super().__init__(
            network, ChainSDE(chain), predicts, event_shape, data_std, moments, class_moments,
            condition_shape, dtype, device,
        )  # fmt: skip
        self.learned_variance = learned_variance
        self._ends_in_noise, self._last_sigma = chain.ends_in_noise, float(chain.sigmas[-1])
        self.fractional = embeds_real_times(self.network) if fractional is None else fractional
        if chain.ends_in_noise and self.predicts in ("noise", "score"):
            raise ValueError(
                f"predicts must be velocity, data or edm for a chain that ends in noise alone (alpha_N = 0), "
                f"where a prediction of the {self.predicts} leaves the data open; or leave the last index "
                f"out, with chain.first({chain.num_steps - 1})"
            )

    def _options(self) -> dict[str, Any]:
        """The arguments that it was made with, but for the network and its place."""
        options = super()._options()
        del options["sde"]
        return options | {
            "chain": self.sde.chain, "fractional": self.fractional, "learned_variance": self.learned_variance,
        }  # fmt: skip

    def arguments(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state at the index that is asked, with shape (B, *), and the network's index (B,)."""
        index, asked = self._indices(t)
        if self._differs(index, asked):
            size, size_i = (self._size(*levels) for levels in (self._levels(t), self._levels_at(asked)))
            x_t = expand_like(size_i / size, x_t) * x_t
        asked = (asked - 1).to(x_t.device)
        asked = asked.to(x_t.dtype) if self.fractional else asked.round().long()
        return x_t, asked.expand(x_t.shape[0])  # len() would be a constant of an exported program

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's output at the index that is asked, as the prediction for the levels at t.

        Raises:
            TypeError: the network returned something else than a tensor with the shape and type of x_t.
        """
        if self.learned_variance:
            return self.raw_and_fraction(x_t, t, condition)[0]
        return self._at(super().raw(x_t, t, condition), x_t, t)

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction, and v = (u + 1) / 2 at the index that is asked, each with shape (B, *).

        Raises:
            ValueError: a network without learned variances.
            TypeError: the network returned something else than a tensor with shape (B, 2 C, *).
        """
        if not self.learned_variance:
            return super().raw_and_fraction(x_t, t, condition)
        raw, u = self._output(x_t, t, condition, parts=2).chunk(2, dim=1)
        return self._at(raw, x_t, t), 0.5 * (u + 1)

    def _at(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's prediction at the index that is asked, as the one for the levels at t."""
        index, asked = self._indices(t)
        if not self._differs(index, asked):
            return raw
        here, there = self._levels(t), self._levels_at(asked)
        keep, factor = self._moved(here, there)
        return expand_like(keep, x_t) * x_t + expand_like(factor, raw) * raw

    def _indices(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The index at t as a real number, and the one that the network is asked at, each in float64."""
        index = self.sde.index(t.double())
        asked = index.clamp(1, self.sde.chain.num_steps)
        return index, asked if self.fractional else asked.round()

    def _differs(self, index: Tensor, asked: Tensor) -> bool:
        """Whether the levels at t are others than those of the network; for times with shape (B,) always."""
        if index.ndim:
            return True
        last = self._ends_in_noise and float(asked) == self.sde.chain.num_steps
        return last or abs(float(index - asked)) > _ON_INDEX

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of the process."""
        return self.sde.alpha(t.double()), self.sde.sigma(t.double())

    def _levels_at(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma that the network was trained with; alpha = 0 at the end of a chain in noise."""
        alpha, sigma = self._levels(self.sde.time(asked))
        last = (asked == self.sde.chain.num_steps) & self._ends_in_noise
        return torch.where(last, 0.0, alpha), torch.where(last, self._last_sigma, sigma)

    def _size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """V^{1/2} of the module's head."""
        return (alpha.square() * self.data_std**2 + sigma.square()).sqrt()

    def _moved(self, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(P, Q) such that the prediction at t is P x_t + Q raw, see the module's head."""
        d, size, size_i = self.data_std, self._size(*here), self._size(*there)
        (alpha, sigma), (alpha_i, sigma_i) = here, there
        keep, factor = conversion(self.predicts, "data", alpha_i, sigma_i, d)
        stretch = sigma / sigma_i * size_i / size
        wiener, wiener_i = alpha * d**2 / size.square(), alpha_i * d**2 / size_i.square()
        keep = wiener + stretch * (keep - wiener_i) * size_i / size
        # x0_hat = keep x_t + stretch factor raw, in terms of the prediction
        predicts, scale = self.predicts, torch.ones_like(sigma)
        if predicts == "score":
            predicts, scale = "noise", -1 / sigma
        a, b = prediction_coefficients(predicts, alpha, sigma, d)
        of_data = scale * (a - b * alpha / sigma)
        return of_data * keep + scale * b / sigma, of_data * stretch * factor


def embeds_real_times(network: nn.Module) -> bool:
    """Whether a network, or the one inside its wrappings, says that its index may be a real number."""
    inner = inner_network(network)
    own = getattr(inner, "embeds_real_times", None)
    kind = getattr(getattr(inner, "config", None), "time_embedding_type", None)
    return kind in ("positional", "fourier") if own is None else bool(own)
