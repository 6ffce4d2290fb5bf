"""Denoising score matching at the indices of a chain: the discrete losses of DDPM and SMLD.

    |z_hat - z|^2 / D        at an index drawn among 1 .. N, x_i = alpha_i x0 + sigma_i z

is DDPM's simple loss (2006.11239, algorithm 1) on the chain of a VP process.  On that of a VE process it is
SMLD's, the mean over the noise levels of sigma_i^2 |score + z / sigma_i|^2 (1907.05600, eq. 5 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, check_states
from sde_toolkit.sdes import Chain
from sde_toolkit.training.objective.denoising import normals_like, squared_error
from sde_toolkit.training.objective.times import uniforms
from sde_toolkit.utils import check_fields, checked


@dataclass(frozen=True)
class ChainLoss:
    """DDPM's training loss (2006.11239, algorithm 1): |z_hat - z|^2 / D at an index drawn among 1 .. N of
    a chain.

    Args:
        chain: the discretised process, as ``sde.discretize(N)`` gives it.
        stratified: spread the indices of a batch evenly over 1 .. N; each one still is uniform.
    """

    chain: Chain
    stratified: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def __call__(
        self, model: ScoreModel, x0: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """The loss of every sample, with shape (B,), averaged over the event.

        Args:
            model: what is trained.
            x0: examples with shape (B, *).
            generator: of all draws.
            condition: one row per example, or None.

        Draws B (or one) uniforms and then the normals from ``generator``, on its own device.
        """
        check_states(model, x0, "x0", finite=False)
        i = draw_indices(self.chain.num_steps, len(x0), generator, self.stratified)
        z = normals_like(x0, generator)
        t = self.chain.times[i].to(x0.device)
        return squared_error(model, self.chain.q_sample(x0, i, z), t, condition, z)


def draw_indices(num_steps: int, batch_size: int, generator: torch.Generator, stratified: bool) -> Tensor:
    """Indices in 1 .. N with shape (B,), int64, each of them uniform."""
    u = uniforms(batch_size, generator, stratified)
    return 1 + (num_steps * u).long().clamp(max=num_steps - 1)
