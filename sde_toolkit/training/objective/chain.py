"""Denoising score matching at the indices of a chain: the discrete losses of DDPM and SMLD.

    |z_hat - z|^2 / D        at an index drawn among 1 .. N, x_i = alpha_i x0 + sigma_i z

is DDPM's simple loss (2006.11239, algorithm 1) on the chain of a VP process.  On that of a VE process it is
SMLD's, the mean over the noise levels of sigma_i^2 |score + z / sigma_i|^2 (1907.05600, eq. 5 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, check_states
from sde_toolkit.sdes import Chain
from sde_toolkit.training.objective.adaptive import ImportanceIndices
from sde_toolkit.training.objective.denoising import normals_like, squared_error
from sde_toolkit.training.objective.learned import LearnedPart
from sde_toolkit.training.objective.times import uniforms
from sde_toolkit.utils import check_fields, checked


@dataclass(frozen=True)
class ChainLoss:
    """DDPM's training loss (2006.11239, algorithm 1): |z_hat - z|^2 / D at an index drawn among 1 .. N of
    a chain.

    Args:
        chain: the discretised process, as ``sde.discretize(N)`` gives it.
        stratified: spread the draws of a batch evenly; each one has its law still.
        index_sampling: the law of the indices, uniform when None; the loss is divided by it.

    Raises:
        ValueError: a law for another number of steps.
    """

    chain: Chain
    stratified: bool = True
    index_sampling: ImportanceIndices | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_law(self.index_sampling, self.chain)

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
        i, correction = draw_indices(self, len(x0), generator)
        z = normals_like(x0, generator)
        t = self.chain.times[i].to(x0.device)
        error = squared_error(model, self.chain.q_sample(x0, i, z), t, condition, z)
        return error if correction is None else correction.to(error) * error

    @property
    def learned_parts(self) -> dict[str, LearnedPart]:
        """The law of the indices, where it learns."""
        return {} if self.index_sampling is None else {"indices": self.index_sampling}

    def observe(self, model: ScoreModel, losses: Tensor, generator: torch.Generator) -> None:
        """Tell the law of a batch: losses with shape (B,), the generator as the call got it."""
        observe_indices(self, model, losses, generator)


class IndexLoss(Protocol):
    """A loss at indices of a chain."""

    @property
    def chain(self) -> Chain:
        """Its field."""
        ...

    @property
    def stratified(self) -> bool:
        """Its field."""
        ...

    @property
    def index_sampling(self) -> ImportanceIndices | None:
        """Its field."""
        ...


def draw_indices(
    loss: IndexLoss, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """The first draws of a call: indices in 1 .. N with shape (B,), int64, and 1 / (N p_i) with that shape,
    None where it is 1."""
    u = uniforms(batch_size, generator, loss.stratified)
    if loss.index_sampling is not None:
        return loss.index_sampling.draw(u)
    num_steps = loss.chain.num_steps
    return 1 + (num_steps * u).long().clamp(max=num_steps - 1), None


def observe_indices(loss: IndexLoss, model: ScoreModel, losses: Tensor, generator: torch.Generator) -> None:
    """Tell the law of a loss, if it has one, of a batch."""
    if (law := loss.index_sampling) is not None:
        i, correction = draw_indices(loss, len(losses), generator)
        assert correction is not None
        law.observe(model, i, losses.double().cpu() / correction.cpu())


def check_law(law: ImportanceIndices | None, chain: Chain) -> None:
    """Refuse a law for another number of steps."""
    if law is not None and law.num_steps != chain.num_steps:
        raise ValueError(
            f"index_sampling must be for the chain's {chain.num_steps} steps, got one for {law.num_steps}"
        )
