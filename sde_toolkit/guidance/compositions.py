"""Compositions: products and negations of conditions and of models.

With the law p(x) of a model, and terms that are conditions of it, p_i(x) = p(x | c_i), or other models of the
same data, the composed law is

    q(x)  ~  p(x) prod_i (p_i(x) / p(x))^w_i        w_i > 0: x has the property i, more so for larger w_i
                                                    w_i < 0: x has not, a negation

and its score at t = 0 is that of the composition at every t (2206.01714, eqs. 11 and 15),

    score(x_t, t)  +  sum_i w_i (score_i(x_t, t) - score(x_t, t))

One term with the weight w is classifier-free guidance.  If the weights sum to 1, as 1/2 and 1/2 do, the
model's own prediction is not asked for.  Every prediction is linear in the score, so it does not matter which
of them is combined.  The branches of one network are found in one call; each counts as an evaluation.

What is exact.  If the c_i are independent given x, q for w = 1 is p(x | c_1, ..., c_K).  Of exact models
``Composed.law`` is q in closed form where it has one, and ``Composed.grid_law`` on a grid, for one or two
features and any weights (``products``).

Not promised: samples of the law q.  At t > 0 the composition is the score of p_t prod (p_i,t / p_t)^w_i, and
this is not the law of q's data with noise, for which the noise would have to be put into the product and not
into its factors.  So neither the flow nor the reverse SDE ends at q (2302.11552, section 3).  Langevin steps
at every level bring the samples nearer to q, because the composed score of the last levels is right: take
``samplers.predictor_corrector`` with several steps, at more evaluations.  ``python -m benchmarks
compositions`` measures the distance.  Powers that are no density, such as those of a negation that outweighs
the rest, are refused by both laws, but no sampler can tell.

References: Liu et al., "Compositional Visual Generation with Composable Diffusion Models" (2206.01714); Du et
al., "Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC"
(2302.11552).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.products import POINTS, GridLaw, product_law, product_on_grid
from sde_toolkit.guidance.shifts import Branch, as_prediction, charge, guided_by, predictions
from sde_toolkit.models import (
    Condition,
    ExactData,
    ExactModel,
    GaussianMixture,
    ScoreModel,
    Wrapper,
    in_run,
)
from sde_toolkit.samplers import Sampler
from sde_toolkit.utils import check_fields, checked, shown

Term = ScoreModel | int | Tensor
"""A condition of the model, or another model."""


class Composed(Wrapper):
    """A model whose score is composed of its own and those of terms.

    Args:
        model: of p(x); called without a condition.
        terms: conditions of the model (a class, or a row with its ``condition_shape``), or models of the same
            process and event shape.
        weights: w_i, one for each term; below 0 for a negation; or one for all.

    Raises:
        ValueError: no term, another number of weights, weights that are not finite, a condition that the
            model does not take, or a model of another process or event shape.
    """

    exact = False
    num_classes = 0
    condition_shape = None
    class_moments = None

    @checked
    def __init__(
        self, model: ScoreModel, terms: Sequence[Term], weights: Sequence[float] | float = 1.0
    ) -> None:
        super().__init__(model)
        self.terms, self.weights = tuple(terms), checked_weights(terms, weights)
        self._rows: list[tuple[float, Tensor]] = []
        self._models: list[tuple[float, ScoreModel]] = []
        for term, weight in zip(self.terms, self.weights, strict=True):
            if not isinstance(term, ScoreModel):
                self._rows.append((weight, _row(model, term)))
            elif term.event_shape != model.event_shape or term.sde != model.sde:
                raise ValueError(
                    f"terms must be conditions, or models of samples with shape {model.event_shape} under "
                    f"{model.sde!r}, got {term.event_shape} under {term.sde!r}"
                )
            else:
                self._models.append((weight, in_run(term)))

    def __repr__(self) -> str:
        return f"Composed({self.model!r}, {_told(self.terms)}, {list(self.weights)})"

    def conditions(self, condition: Condition | None, count: int) -> None:
        """Refuses a condition: the terms are those."""
        if condition is not None:
            raise ValueError(
                f"condition must be left out for a composition, got {shown(condition)}; its terms are its "
                "conditions"
            )

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The composed prediction with shape (B, *)."""
        own = 1 - math.fsum(self.weights)
        parts = [] if own == 0 else [(own, Branch(x_t, t, None))]
        parts += [
            (weight, Branch(x_t, t, row.expand(len(x_t), *row.shape[1:])))
            for weight, row in self._rows
            if weight != 0
        ]
        found = predictions(self.model, [branch for _, branch in parts]) if parts else []
        weights = [weight for weight, _ in parts]
        for weight, model in self._models:
            if weight != 0:
                charge(self.model, len(x_t))
                found.append(as_prediction(model, self.model, x_t, t, None))
                weights.append(weight)
        return torch.stack([w * raw for w, raw in zip(weights, found, strict=True)]).sum(0)

    def law(self) -> GaussianMixture:
        """The composed law q in closed form.

        Raises:
            ValueError: models of data that are not known in closed form, and what ``product_law`` refuses.
        """
        return product_law(*self._factors())

    def grid_law(self, points: int = POINTS) -> GridLaw:
        """The composed law q on a grid, for data of one or two features and any weights.

        Raises:
            ValueError: models of data that are not known in closed form, and what ``product_on_grid``
            refuses.
        """
        return product_on_grid(*self._factors(), points)

    def _factors(self) -> tuple[list[ExactData], list[float]]:
        """The laws whose product q is, and their powers."""
        exact = _exact(self.model)
        laws = [exact.data]
        for term in self.terms:
            if isinstance(term, ScoreModel):
                laws.append(_exact(term).data)
            else:
                laws.append(exact.given(int(_row(exact, term))).data)
        return laws, [1 - math.fsum(self.weights), *self.weights]


def checked_weights(terms: Sequence[Term], weights: Sequence[float] | float) -> tuple[float, ...]:
    """The weight of every term; raises ValueError for another number of them, or for one that is none."""
    if isinstance(terms, Tensor) or not len(terms):
        raise ValueError(f"terms must be a list of one or more conditions or models, got {shown(terms)}")
    each = tuple(map(float, weights)) if isinstance(weights, Sequence) else (float(weights),) * len(terms)
    if len(each) != len(terms):
        raise ValueError(f"weights must be one for each of {len(terms)} terms, got {len(each)}")
    if not all(map(math.isfinite, each)):
        raise ValueError(f"weights must be finite, got {list(each)}; 0 leaves a term out")
    return each


def _row(model: ScoreModel, term: Condition) -> Tensor:
    """A condition as one row for the model, with shape (1, *)."""
    row = model.conditions(term[None] if isinstance(term, Tensor) else term, 1)
    assert row is not None
    return row


def _exact(model: Any) -> ExactModel:
    """The exact model inside the wrappers."""
    while isinstance(model, Wrapper):
        model = model.model
    if not isinstance(model, ExactModel):
        raise ValueError(f"law is known for exact models, got {model!r}")
    return model


def _told(terms: Sequence[Term]) -> str:
    """What records say of terms: conditions as they are, models by their type."""
    said = []
    for term in terms:
        if isinstance(term, ScoreModel):
            said.append(type(term).__name__)
        else:
            said.append(str(term.tolist()) if isinstance(term, Tensor) else repr(term))
    return f"[{', '.join(said)}]"


@dataclass(frozen=True, repr=False)
class Composition:
    """model -> the model composed with terms, as ``Composed``."""

    terms: Sequence[Term]
    weights: Sequence[float] | float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        checked_weights(self.terms, self.weights)

    def __repr__(self) -> str:
        return f"Composition({_told(self.terms)}, {list(checked_weights(self.terms, self.weights))})"

    def __call__(self, model: ScoreModel) -> Composed:
        """The composed model."""
        return Composed(model, self.terms, self.weights)


@checked
def composed(sampler: Sampler, terms: Sequence[Term], weights: Sequence[float] | float = 1.0) -> Sampler:
    """Any sampler on the composed prediction (2206.01714); ``sample`` needs no condition.

    Args:
        sampler: what to guide.
        terms: conditions of the model, or other models of its process.
        weights: w_i, one for each term; below 0 for a negation; or one for all.

    Raises:
        ValueError: no term, or weights that do not fit them; when sampling, as for ``Composed``.
    """
    return guided_by(sampler, Composition(terms, weights))
