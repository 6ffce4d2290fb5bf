"""Classifier-free guidance and autoguidance: away from one prediction, along another.

With the predictions of one network given a condition c and given none, and the scale w,

    raw(x_t, t) + w (raw(x_t, t, c) - raw(x_t, t)),        w = 1 for the conditional model, 0 for the other.

Autoguidance has a weaker model, smaller or trained less, given the same c, in the place of that without one:

    weak(x_t, t, c) + w (raw(x_t, t, c) - weak(x_t, t, c))

Every prediction is linear in x0_hat at a given state, so it does not matter which of them is combined.

    interval    guide for low < sigma / alpha <= high only; outside, the prediction given c alone, which is
                one evaluation and not two
    rescale     phi in [0, 1]: the guided prediction g is pulled to the standard deviation of that given c,
                over the elements of a sample, g (phi std(raw(x_t, t, c)) / std(g) + 1 - phi).  It is the
                network's own prediction that is rescaled, so the result depends on which one that is

For classes, and for the vectors and tokens of networks that know a row of nan as "none", both predictions are
found in one call, on twice as many rows; for other networks in two calls, the second one without a condition.
Either way an evaluation counts as two; so does one of a model and a weaker one.  With w = 1 or 0 one of the
two is all there is, and one evaluation.

Not promised: the guided prediction is no score of a forward process, unless w is 0 or 1.  At every t it is
the score of p_t(x | c)^w p_t(x)^(1 - w) up to normalisation, but these densities are not the marginals of any
process: samples do not have the law p_0(x | c)^w p_0(x)^(1 - w).  Measured on a mixture of two Gaussians
(``python -m benchmarks guidance``): at w = 3 that law has the mean 1.108 and the std .433, the flow gives
1.617 and .303, the reverse SDE 1.306 and .405; the flow overshoots most, and an interval halves the error.

References: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2207.12598), eq. 6, where w is 1 + w;
Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
Diffusion Models" (2404.07724), eq. 5; Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are
Flawed" (2305.08891), eqs. 14-16; Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself"
(2406.02507), eq. 3; Bradley and Nakkiran, "Classifier-Free Guidance is a Predictor-Corrector" (2408.09000),
for what is not promised.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.guidance.shifts import Branch, as_prediction, charge, guided_by, predictions
from sde_toolkit.models import ScoreModel, Wrapper, in_run
from sde_toolkit.samplers import Sampler
from sde_toolkit.utils import check_fields, checked
from solvers import expand_like

Interval = tuple[float, float]
"""Noise-to-signal ratios (low, high]."""


def _check(scale: float, interval: Interval | None, rescale: float, event_shape: tuple[int, ...]) -> None:
    """Refuse, with ValueError, numbers that cannot guide."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}; 1 is no guidance")
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"interval must be two noise-to-signal ratios 0 <= low < high, got {interval}; None guides at all"
        )
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1], got {rescale}; 0 is none")
    if rescale and math.prod(event_shape) < 2:
        raise ValueError(
            f"rescale needs samples of at least two elements, got the shape {event_shape}; leave it out"
        )


class _Extrapolated(Wrapper):
    """A model that is guided away from another prediction; a subclass finds the two."""

    def __init__(
        self, model: ScoreModel, scale: float, interval: Interval | None = None, rescale: float = 0.0
    ) -> None:
        super().__init__(model)
        _check(scale, interval, rescale, model.event_shape)
        self.scale, self.interval, self.rescale = float(scale), interval, float(rescale)

    @abstractmethod
    def _both(self, x_t: Tensor, t: Tensor, condition: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The model's prediction with shape (B, *), and the other at ``rows`` (R,) with shape (R, *)."""

    @abstractmethod
    def _other(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The other prediction with shape (B, *)."""

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether it is an exact score: that of the model inside, and only without guidance."""
        return self.model.exact and self.scale == 1

    def _rows(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Which rows are guided, int64 with shape (R,)."""
        count = len(x_t)
        if self.interval is None:
            return torch.arange(count, device=x_t.device)
        nsr = self.sde.nsr(t)
        inside = (nsr > self.interval[0]) & (nsr <= self.interval[1])
        return inside.expand(count).nonzero()[:, 0].to(x_t.device)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction with shape (B, *)."""
        if self.scale == 1:
            return self.model.raw(x_t, t, condition)
        if self.scale == 0 and self.interval is None and not self.rescale:
            return self._other(x_t, t, condition)
        rows = self._rows(x_t, t)
        if not len(rows):
            return self.model.raw(x_t, t, condition)
        own, other = self._both(x_t, t, condition, rows)
        mine = own if len(rows) == len(own) else own[rows]
        made = other + self.scale * (mine - other)
        if self.rescale:
            ratio = mine.flatten(1).std(1) / made.flatten(1).std(1)
            made = made * expand_like(self.rescale * ratio + (1 - self.rescale), made)
        return made if len(rows) == len(own) else own.index_copy(0, rows, made)


class ClassifierFree(_Extrapolated):
    """A model whose prediction given a condition is guided by that without one.

    Args:
        model: of K classes, with label K for "no class"; or of rows of ``condition_shape``, whose network can
            be called without one.
        scale: w.
        interval: noise-to-signal ratios (low, high] that are guided; all when None.
        rescale: phi.

    Raises:
        ValueError: a model without conditions, a scale that is not finite, an interval that is none, or a
            rescale outside [0, 1].
    """

    @checked
    def __init__(
        self, model: ScoreModel, scale: float, interval: Interval | None = None, rescale: float = 0.0
    ) -> None:
        super().__init__(model, scale, interval, rescale)
        if not model.num_classes and model.condition_shape is None:
            raise ValueError(
                "guidance needs a model with classes or other conditions, got one without; build its "
                "network with num_classes or condition_shape"
            )

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction with shape (B, *); that without a condition for none."""
        return self.model.raw(x_t, t) if condition is None else super().raw(x_t, t, condition)

    def _other(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.model.raw(x_t, t)

    def _both(self, x_t: Tensor, t: Tensor, condition: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert condition is not None
        x, times = x_t[rows], t if t.ndim == 0 else t[rows.to(t.device)]
        own, other = predictions(self.model, [Branch(x_t, t, condition), Branch(x, times, None)])
        return own, other


class AutoGuided(_Extrapolated):
    """A model that is guided by a weaker one (2406.02507).

    Args:
        model: what is guided, with or without conditions.
        weak: of the same process and event shape; given the same condition, or none where it takes none.
        scale: w; 1 is no guidance.
        interval: noise-to-signal ratios (low, high] that are guided; all when None.
        rescale: phi.

    Raises:
        ValueError: a weak model of another process or event shape, or numbers out of range.
    """

    @checked
    def __init__(
        self,
        model: ScoreModel,
        weak: ScoreModel,
        scale: float,
        interval: Interval | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(model, scale, interval, rescale)
        if weak.event_shape != model.event_shape or weak.sde != model.sde:
            raise ValueError(
                f"weak must be a model of samples with shape {model.event_shape} under {model.sde!r}, got "
                f"{weak.event_shape} under {weak.sde!r}"
            )
        self.weak = in_run(weak)

    def _other(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        takes = self.weak.num_classes or self.weak.condition_shape is not None
        charge(self.model, len(x_t))
        return as_prediction(self.weak, self.model, x_t, t, condition if takes else None)

    def _both(self, x_t: Tensor, t: Tensor, condition: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
        times = t if t.ndim == 0 else t[rows.to(t.device)]
        given = None if condition is None else condition[rows]
        return self.model.raw(x_t, t, condition), self._other(x_t[rows], times, given)


def _told(name: str, interval: Interval | None, rescale: float, *first: str) -> str:
    """What records say of guidance: what differs from the defaults."""
    said = [*first]
    said += [] if interval is None else [f"interval={interval}"]
    said += [f"rescale={rescale}"] if rescale else []
    return f"{name}({', '.join(said)})"


@dataclass(frozen=True, repr=False)
class ClassifierFreeGuidance:
    """model -> the model guided with ``scale``, as ``ClassifierFree``."""

    scale: float
    interval: Interval | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        return _told("ClassifierFreeGuidance", self.interval, self.rescale, f"scale={self.scale}")

    def __call__(self, model: ScoreModel) -> ClassifierFree:
        """The guided model."""
        return ClassifierFree(model, self.scale, self.interval, self.rescale)


@dataclass(frozen=True, repr=False)
class AutoGuidance:
    """model -> the model guided by a weaker one, as ``AutoGuided``."""

    weak: ScoreModel
    scale: float
    interval: Interval | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        words = (f"scale={self.scale}", f"weak={type(self.weak).__name__}")
        return _told("AutoGuidance", self.interval, self.rescale, *words)

    def __call__(self, model: ScoreModel) -> AutoGuided:
        """The guided model."""
        return AutoGuided(model, self.weak, self.scale, self.interval, self.rescale)


@checked
def guided(
    sampler: Sampler,
    scale: float,
    *,
    interval: Interval | None = None,
    rescale: float = 0.0,
    weak: ScoreModel | None = None,
) -> Sampler:
    """Any sampler on the guided prediction (2207.12598); give ``sample`` a condition.

    Args:
        sampler: what to guide; a threshold that it has stays.
        scale: w; 1 is no guidance.
        interval: noise-to-signal ratios (low, high] that are guided (2404.07724); all when None.
        rescale: phi of 2305.08891.
        weak: a weaker model to be guided by (2406.02507), instead of the prediction without a condition.

    Raises:
        ValueError: an interval or a rescale out of range; when sampling: a model without conditions, or a
            scale that is not finite.
    """
    _check(scale if weak is not None else 1.0, interval, rescale, (2,))
    if weak is None:
        return guided_by(sampler, ClassifierFreeGuidance(scale, interval, rescale))
    return guided_by(sampler, AutoGuidance(weak, scale, interval, rescale))
