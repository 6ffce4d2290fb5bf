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

What is exact.  If the c_i are independent given x, q for w = 1 is p(x | c_1, ..., c_K).  ``product_law``
gives prod_i p_i^a_i in closed form where every p_i is a Gaussian, of any power a_i, or a mixture of Gaussians
with a power that is a whole number: a product of Gaussians is one, with the precision and the shift

    P = sum_i a_i C_i^-1,      P m = sum_i a_i C_i^-1 m_i,

and a product of mixtures is the mixture of the products of their components.  ``Composed.law`` is q so.

Not promised: samples of the law q.  At t > 0 the composition is the score of p_t prod (p_i,t / p_t)^w_i, and
this is not the law of q's data with noise, for which the noise would have to be put into the product and not
into its factors.  So neither the flow nor the reverse SDE ends at q (2302.11552, section 3).  Langevin steps
at every level bring the samples nearer to q, because the composed score of the last levels is right: take
``samplers.predictor_corrector`` with several steps, at more evaluations.  ``python -m benchmarks
compositions`` measures the distance.  Powers that are no density, such as those of a negation that outweighs
the rest, are refused by ``product_law``, but no sampler can tell.

References: Liu et al., "Compositional Visual Generation with Composable Diffusion Models" (2206.01714); Du et
al., "Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC"
(2302.11552).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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

MOST_COMPONENTS = 4096
"""Most Gaussians that a product may be made of."""


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
        exact = _exact(self.model)
        laws = [exact.data]
        for term in self.terms:
            if isinstance(term, ScoreModel):
                laws.append(_exact(term).data)
            else:
                laws.append(exact.given(int(_row(exact, term))).data)
        return product_law(laws, [1 - math.fsum(self.weights), *self.weights])


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


@checked
def product_law(laws: Sequence[ExactData], powers: Sequence[float]) -> GaussianMixture:
    """The law prod_i p_i^a_i, normalised, in closed form.

    Args:
        laws: p_i, of one event shape.
        powers: a_i: any number for a Gaussian, a whole number >= 0 for a mixture.

    Raises:
        ValueError: no law, laws of several event shapes, another number of powers, a power that a mixture
            cannot have, a law without a density, a product that has no finite mass, or one of more than
            ``MOST_COMPONENTS`` Gaussians.
    """
    if not len(laws) or len({law.event_shape for law in laws}) != 1 or len(powers) != len(laws):
        raise ValueError(
            f"laws must be one or more of one event shape, with a power for each, got "
            f"{[law.event_shape for law in laws]} and {len(powers)} powers"
        )
    factors, count = [], 1
    for law, power in zip(laws, map(float, powers), strict=True):
        single = len(law.components.weights) == 1
        if not (math.isfinite(power) if single else power >= 0 and power == int(power)):
            raise ValueError(
                f"powers must be finite for a Gaussian, and 0, 1, 2, ... for a mixture, got {power} for "
                f"{law!r}"
            )
        if power == 0:
            continue
        count *= len(law.components.weights) ** (1 if single else int(power))
        if count > MOST_COMPONENTS:
            raise ValueError(f"laws must have a product of at most {MOST_COMPONENTS} Gaussians, got more")
        factors += [_naturals(law, power)] if single else [_naturals(law, 1.0)] * int(power)
    shape = laws[0].event_shape
    if not factors:
        raise ValueError("powers must not all be 0: the product 1 is no density")
    made = [_multiplied(chosen) for chosen in itertools.product(*factors)]
    log_weights = torch.stack([log for log, _, _ in made])
    means = torch.stack([mean for _, mean, _ in made])
    covariances = torch.stack([covariance for _, _, covariance in made])
    weights = log_weights.softmax(0)
    kept = weights > 0  # those that underflow are nothing
    return GaussianMixture(
        weights[kept] / weights[kept].sum(), means[kept].unflatten(-1, shape), covariances[kept]
    )


_Natural = tuple[Tensor, Tensor, Tensor]
"""c, h, P of a factor exp(c + h . x - x . P x / 2)."""


def _naturals(law: ExactData, power: float) -> list[_Natural]:
    """The components of a law to a power; its only one, if the power is not 1."""
    c, found = law.components, []
    if not bool((c.variances > 0).all()):
        raise ValueError(f"laws must have densities, got {law!r} with a covariance that is singular")
    for k, mean in enumerate(c.means):
        axes = torch.eye(len(mean), dtype=mean.dtype) if c.axes is None else c.axes[k]
        P = axes / c.variances[k] @ axes.mT
        h = P @ mean
        log_norm = 0.5 * (c.variances[k].log().sum() + len(mean) * math.log(2 * math.pi))
        found.append((power * (-log_norm - 0.5 * mean @ h) + c.weights[k].log(), power * h, power * P))
    return found


def _multiplied(factors: Sequence[_Natural]) -> _Natural:
    """The logarithm of the mass of a product of Gaussian factors, its mean and its covariance."""
    c, h, P = (torch.stack(parts).sum(0) for parts in zip(*factors, strict=True))
    values, axes = torch.linalg.eigh(0.5 * (P + P.mT))
    if not float(values.min()) > 1e-12 * float(values.abs().max()):
        raise ValueError(
            "powers must make a density, got a product without a finite mass: one of its Gaussians has the "
            f"precision {float(values.min()):.4g}; take a smaller negative power"
        )
    covariance = axes / values @ axes.mT
    mean = covariance @ h
    log_mass = c + 0.5 * (mean @ h - values.log().sum() + len(h) * math.log(2 * math.pi))
    return log_mass, mean, 0.5 * (covariance + covariance.mT)


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
