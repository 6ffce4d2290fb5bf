"""Denoising score matching from rows with missing entries (nan).

The score of the COMPLETE data's law is wanted.  With O the observed and M the missing entries of a row, and
entries that are missing at random (whether one is missing may depend on those observed in its row, not on
what is hidden), p(x_M | x_O) is the same for rows with and without the missing entries.  So a row completed
by a draw from that law is a draw of the complete data, and every loss for complete rows is the right one for
it.  The law is not known and is learnt meanwhile, by the same network (``models.entries``), from the
completed rows:

    x_M ~ q(x_M | x_O)                          of the network as it is, without gradients, anew at every use
    loss of the completed rows                  denoising score matching
    + loss of F(u, a; x_O') on them             given the entries O' of another row of the batch, at an angle
                                                a that is uniform:   |F - (sin(a) r - cos(a) z)|^2 / D

This is stochastic EM: at a fixed point the law of the completed rows has the conditionals that completed
them, which is where the likelihood of the observed entries is stationary; the true law is one.  The first
draws, of an untrained network, are those of the Gaussian that EM finds.  The set O' comes from another row,
so that it says nothing about the values: p(x_M | x_O, row observed like this) would be another law where
entries are not missing completely at random.

What is not done: to train on the observed entries alone with the loss of the others left out (MissDiff,
2307.00467), whose minimiser is the score of the complete data only where nothing is missing; or on the
complete rows alone, which is biased where missingness depends on values, and wasteful in any case.

In a batch that is shared by processes (``training.Parallel``) every call has the rows of the whole batch.

Not promised: anything for entries that are missing because of their own hidden value.

References: Rubin, "Inference and Missing Data" (1976); Celeux and Diebolt, "The SEM Algorithm" (1985); Rozet
et al., "Learning Diffusion Priors from Observations by Expectation Maximization" (2405.13712); Zhang et al.,
"DiffPuter: Empowering Diffusion Models for Missing Data Imputation" (2405.20690).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit.models import (
    DRAW_STEPS,
    GivenEntries,
    ModuleModel,
    NetworkModel,
    OwnRows,
    check_entries,
    check_states,
    draw_missing,
    evaluating,
    known_moments,
    predict_turn,
    turn_angles,
)
from sde_toolkit.training.objective.chain import ChainLoss
from sde_toolkit.training.objective.denoising import DenoisingLoss, normals_like
from sde_toolkit.training.objective.times import uniforms
from sde_toolkit.utils import check_fields, checked, integer


def check_missing_entries(model: ModuleModel, loss: object) -> None:
    """Refuse, with a ValueError, a network or a loss that cannot see data whose entries may be missing."""
    check_entries(model)
    if isinstance(loss, (DenoisingLoss, ChainLoss)):
        raise ValueError(
            f"the data may have missing entries, which {type(loss).__name__} cannot see; give the loss "
            "IncompleteLoss(DenoisingLoss())"
        )


@dataclass(frozen=True)
class IncompleteLoss:
    """Denoising score matching for rows with missing entries, by stochastic EM: the module's head.

    Args:
        complete: the loss of complete rows.
        draw_steps: evaluations of the network for a draw of missing entries.

    Raises:
        ValueError: ``draw_steps`` below 1; when called: a network without ``condition_shape`` of one number
            per entry, or a row without any observed entry.
    """

    complete: DenoisingLoss = field(default_factory=DenoisingLoss)
    draw_steps: int = DRAW_STEPS

    def __post_init__(self) -> None:
        check_fields(self)
        integer("draw_steps", self.draw_steps, 1)
        if self.complete.learned_parts:
            raise ValueError(
                "complete must be a loss without memory, got one that learns its weights or times; take "
                "DenoisingLoss() with names"
            )

    @checked
    def __call__(
        self, model: NetworkModel, x0: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """The loss of every row, with shape (B,).

        Args:
            model: what is trained; its network is told which entries are known (``check_entries``).
            x0: rows with shape (B, D), nan where an entry is missing.
            generator: of all draws.
            condition: None.
        """
        check_entries(model)
        if condition is not None:
            raise ValueError("condition must be left out where entries are missing, got one; it tells them")
        check_states(model, x0, "x0", finite=False)
        missing = x0.isnan()
        if bool(x0.isinf().any()) or bool(missing.all(1).any()):
            raise ValueError(
                "x0 must have an observed entry in every row, and finite ones or nan, got a row without "
                "or inf"
            )
        shared = isinstance(model.network, OwnRows)  # which is called with whole batches
        hit = missing.any(1)
        rows = (hit | shared).nonzero()[:, 0]
        z = normals_like(x0, generator)
        if len(rows):
            with evaluating(model):
                drawn = draw_missing(model, x0[rows], z[rows], self.draw_steps)
            x0 = x0.index_copy(0, rows, drawn)
        losses = self.complete(model, x0, generator)
        order = torch.randperm(len(x0), generator=generator, device=generator.device).to(x0.device)
        angle, z = uniforms(len(x0), generator, stratified=True).to(x0.device), normals_like(x0, generator)
        low, high = turn_angles(model)
        others = order if shared else order[hit]  # the row that others[k] is given as row k was
        if len(others):
            given, a = ~missing[rows], low + (high - low) * angle[others]
            if shared:
                given = given.new_empty(given.shape).index_copy(0, order, given)
                others, a = torch.arange(len(x0), device=x0.device), low + (high - low) * angle
            losses = losses.index_add(
                0, others, self._turn(model, x0[others], given, a, z[others]).to(losses)
            )
        return losses

    def _turn(self, model: NetworkModel, x: Tensor, given: Tensor, angle: Tensor, z: Tensor) -> Tensor:
        """The loss of F with shape (B,), for complete rows of which some entries are given."""
        known = GivenEntries.of(known_moments(model), x, given)
        r, a, z = known.whiten(x), angle[:, None], torch.where(given, 0.0, z.double())
        F = predict_turn(model, a.cos() * r + a.sin() * z, angle, known)
        return (F - (a.sin() * r - a.cos() * z)).square().mean(1)
