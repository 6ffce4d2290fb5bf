"""Improved DDPM: the variances of a chain's reverse steps are learned beside the noise.

With L_i the term of the variational bound at index i (``sde_toolkit.sdes.variational``; the decoder at i = 1
where index 0 is without noise), and i drawn among 1 .. N,

    L_simple = |z_hat - z|^2 / D
    L_vlb    = N L_i / D                 an estimate of L_1 + ... + L_N, in nats per dimension
    L_hybrid = L_simple + lambda L_vlb   with z_hat held fixed in L_vlb, which so trains the variances alone

For data in bins the decoder is the mass that its Gaussian gives to the bin of x0 (2006.11239, eq. 13), for
others its density at x0.

The rest of the bound, KL(q(x_N | x0) || prior), has no parameters.  Over many x0 the best variance of a step
is, by features, that of the posterior mean's error, E[KL] being least where

    c^2 = small + b^2 E |x0_hat - x0|^2,         b the coefficient of x0_hat in the step's mean

and for Gaussian data this is the variance of x_{i-1} given x_i.

The paper's code measures L_vlb in bits, so that its lambda = .001 is .001 / log 2 here.

Reference: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672), eq. 15, 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, check_states, conversion
from sde_toolkit.sdes import Chain, VariationalTerms
from sde_toolkit.training.objective.adaptive import ImportanceIndices
from sde_toolkit.training.objective.chain import check_law, draw_indices, observe_indices
from sde_toolkit.training.objective.denoising import normals_like
from sde_toolkit.training.objective.learned import LearnedPart
from sde_toolkit.utils import check_fields, checked, integer
from solvers.terms import expand_like


@dataclass(frozen=True)
class HybridLoss:
    """Improved DDPM's loss, of the noise and of the learned variances (2102.09672, eq. 16).

    Args:
        chain: that of the model.
        vlb_weight: lambda, of the bound in nats per dimension.
        simple_weight: of the error of the noise; 0, with ``vlb_weight=1`` and ``fixed_mean=False``, trains on
            the bound alone.
        fixed_mean: whether the bound's gradients stop at the mean.
        stratified, index_sampling: as for ``ChainLoss``.
        levels: number of grey levels, for data in bins of width 2 / levels on [-1, 1], whose decoder is that
            of the bins; 0 for all others.

    Raises:
        ValueError: a negative weight, or a chain of fewer than two steps between noisy states, or one that
            ends in noise alone; one level, or levels on a chain with noise at index 0, whose decoder has no
            learned variance; when called: a model without learned variances.
    """

    chain: Chain
    vlb_weight: float = 1e-3
    simple_weight: float = 1.0
    fixed_mean: bool = True
    stratified: bool = True
    index_sampling: ImportanceIndices | None = None
    levels: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_law(self.index_sampling, self.chain)
        for name in ("vlb_weight", "simple_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}")
        if self.chain.ends_in_noise:
            raise ValueError(
                "chain must have signal at its last index, got alpha_N = 0; leave that index out, with "
                f"chain.first({self.chain.num_steps - 1})"
            )
        terms = self._terms
        if integer("levels", self.levels, 0) == 1 or (self.levels and terms.first == 1):
            raise ValueError(
                "levels must be an integer >= 2, or 0: for none, and on a chain with noise at index 0, whose "
                f"decoder is not learned, got {self.levels}"
            )

    @cached_property
    def _terms(self) -> VariationalTerms:
        return VariationalTerms(self.chain)

    @checked
    def __call__(
        self, model: ScoreModel, x0: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """The loss of every sample, with shape (B,).

        Args:
            model: what is trained; with ``learned_variance``.
            x0: examples with shape (B, *).
            generator: of all draws.
            condition: one row per example, or None.

        Draws as ``ChainLoss`` does, from one evaluation of the network.
        """
        check_states(model, x0, "x0", finite=False)
        chain = getattr(model.sde, "chain", self.chain)
        if chain is not self.chain and chain != self.chain:
            raise ValueError(f"chain must be the model's own, {chain}, got {self.chain}")
        i, correction = draw_indices(self, len(x0), generator)
        z = normals_like(x0, generator)
        x_t, t = self.chain.q_sample(x0, i, z), self.chain.times[i].to(x0.device)
        raw, v = model.raw_and_fraction(x_t, t, condition)
        keep, factor = noise_of(model, t)
        off = expand_like(keep, x_t) * x_t + expand_like(factor, raw) * raw - z
        error = off.square().to(wide := torch.promote_types(off.dtype, torch.float32))
        off, v = off.to(wide), v.to(wide)
        i = i.to(x0.device)
        bound = self.bound_terms(i, error.detach() if self.fixed_mean else error, v)
        if self.levels:
            bound = self._with_bins(i, bound, x0, off.detach() if self.fixed_mean else off, v)
        simple, vlb = error.flatten(1).mean(1), bound.flatten(1).mean(1)
        loss = self.simple_weight * simple + self.vlb_weight * self.chain.num_steps * vlb
        return loss if correction is None else correction.to(loss) * loss

    @property
    def learned_parts(self) -> dict[str, LearnedPart]:
        """The law of the indices, where it learns."""
        return {} if self.index_sampling is None else {"indices": self.index_sampling}

    def observe(self, model: ScoreModel, losses: Tensor, generator: torch.Generator) -> None:
        """Tell the law of a batch: losses with shape (B,), the generator as the call got it."""
        observe_indices(self, model, losses, generator)

    def bound_terms(self, i: Tensor, error: Tensor, v: Tensor) -> Tensor:
        """L_i with shape (B, *), in nats, for indices with shape (B,), squared errors of the noise and
        fractions v with shape (B, *)."""
        found = self._terms.divergence(i, error, v)
        if self._terms.first == 1:
            return found
        return torch.where(expand_like(i == 1, found) > 0, self._terms.decoder_loss(error, v), found)

    def _with_bins(self, i: Tensor, bound: Tensor, x0: Tensor, off: Tensor, v: Tensor) -> Tensor:
        """The terms (B, *), those at index 1 for data in bins: off with shape (B, *) is z_hat - z."""
        first = expand_like(i == 1, bound) > 0
        off, v = torch.where(first, off, 0.0), torch.where(first, v, 0.0)  # of others nothing is taken
        x0_hat = x0.double() - float(self._terms.nsr[1]) * off.double()
        return torch.where(first, self._terms.decoder_bins(x0, x0_hat, v, self.levels).to(bound), bound)


def noise_of(model: ScoreModel, t: Tensor) -> tuple[Tensor, Tensor]:
    """(P, Q) with z_hat = P x_t + Q raw, each with the shape of t."""
    return conversion(model.predicts, "noise", model.sde.alpha(t), model.sde.sigma(t), model.data_std)
