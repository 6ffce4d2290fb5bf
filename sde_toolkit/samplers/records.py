"""What a run of a sampler returns: its samples, its steps, and the number of its evaluations; and what it is
given in place of its noise where a draw is left out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_toolkit.models import Condition, DataScale, ScoreModel, Wrapper
from sde_toolkit.utils import Stream
from solvers import BrownianMotion, Interval, NoiseSource, StepNormals

_MOST = 64
"""Images in the picture."""

_WIDTH = 640


@dataclass(frozen=True)
class Samples:
    """Samples and how they were made.

    Attributes:
        x: the samples with shape (B, *).
        nfe: network evaluations per sample, counted (a mean where samples choose their own steps).
        seconds: wall time.
        seed: of the noise; sample i of the batch has the global index first_sample + i.
        settings: the sampler's options, as plain values.
        scaling: of the model, from its scale to raw data; None where it is not known.
        failed: global index -> why, of samples whose run did not reach its end; only with ``throw=False``.
    """

    x: Tensor
    nfe: float
    seconds: float
    seed: int
    first_sample: int
    settings: Mapping[str, Any]
    scaling: DataScale | None = field(default=None, repr=False)
    failed: Mapping[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        name = self.settings.get("sampler", "a sampler")
        first = f" from index {self.first_sample}" if self.first_sample else ""
        return (
            f"Samples({len(self.x):,} of shape {tuple(self.x.shape[1:])}{first} by {name}, {self.nfe:.4g} "
            f"evaluations each, {self.seconds:.3g} s, seed {self.seed}"
            + (f", {len(self.failed)} failed)" if self.failed else ")")
        )

    def _repr_png_(self) -> bytes | None:
        """The first samples as a picture where they are images, for notebooks."""
        return _picture(self.x if self.scaling is None else self.data)

    @property
    def data(self) -> Tensor:
        """The samples as raw data with shape (B, *): integers for grey levels, else numbers in the type of x.

        Raises:
            ValueError: the model that was sampled knows no scaling.
        """
        if self.scaling is None:
            raise ValueError(
                "samples on the scale of the data need the model's scaling, got a model without; set "
                "model.scaling = dataset.scaling before sampling (fit does so), or use samples.x"
            )
        return self.scaling.to_data(self.x)


def _picture(x: Tensor) -> bytes | None:
    """A PNG of the first images of x with shape (B, C, H, W), C = 1 or 3, lowest value black, highest white;
    None for samples of another shape."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        return None
    from PIL import Image

    images = x[:_MOST].detach().cpu().double()
    low, high = images.amin(), images.amax()
    levels = ((images - low) / (high - low).clamp(min=1e-300) * 255).round().to(torch.uint8)
    side = math.ceil(math.sqrt(len(levels)))
    blank = levels.new_zeros(side**2 - len(levels), *levels.shape[1:])
    framed = torch.nn.functional.pad(torch.cat([levels, blank]), (0, 1, 0, 1))
    rows = framed.unflatten(0, (side, side)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = rows.squeeze(2).numpy()
    made = Image.fromarray(pixels)
    zoom = max(1, _WIDTH // made.width)
    stream = io.BytesIO()
    made.resize((zoom * made.width, zoom * made.height), Image.Resampling.NEAREST).save(stream, format="PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees of one step.

    Attributes:
        number, num_steps: the step, from 0, of how many.
        t, s: where it started and ended, tensors with shape ().
        x: the state at s with shape (B, *), after a corrector; a copy, which the run does not see again.
        x0_hat: the clean prediction of the latest evaluation, with shape (B, *); None where a first step in
            closed form needed none.
        nfe: evaluations per sample so far.
        first_sample: global index of the first sample of the batch.
    """

    number: int
    num_steps: int
    t: Tensor
    s: Tensor
    x: Tensor
    x0_hat: Tensor | None
    nfe: float
    first_sample: int


Callback = Callable[[StepInfo], Tensor | None]
"""Called after every step; the run goes on from the state that it returns, or from its own for None."""


Guidance = Callable[[ScoreModel], ScoreModel]
"""What changes a model's prediction while sampling: model -> model, see ``sde_toolkit.guidance``."""


class Observed(Protocol):
    """What was observed of samples, see ``sde_toolkit.guidance.Observed``."""

    def on(self, sampler: Any, /) -> Any:
        """The sampler with what an observation adds to its steps."""
        ...

    def model(self, model: ScoreModel, /) -> ScoreModel:
        """The model given what was observed."""
        ...

    def conditions(self, posed: ScoreModel, condition: Condition | None, count: int, /) -> Tensor | None:
        """The condition of that model with one row for each of ``count`` samples."""
        ...


class CountedModel(Wrapper):
    """A model that counts its evaluations, one for every row of a batch, and may remember the latest."""

    def __init__(self, model: ScoreModel, remember: bool = False) -> None:
        super().__init__(model)
        self._remember, self.rows = remember, 0
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The model's own prediction at x_t with shape (B, *)."""
        self.rows += x_t.shape[0]
        raw = self.model.raw(x_t, t, condition)
        if self._remember:
            self._latest = x_t, t, raw
        return raw

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The model's own prediction and fraction at x_t with shape (B, *), from one evaluation."""
        self.rows += x_t.shape[0]
        raw, fraction = self.model.raw_and_fraction(x_t, t, condition)
        if self._remember:
            self._latest = x_t, t, raw
        return raw, fraction

    def latest_x0_hat(self) -> Tensor | None:
        """The clean prediction of the latest evaluation, with shape (B, *), if there was one."""
        if self._latest is None:
            return None
        x_t, t, raw = self._latest
        return _Known(self, raw).denoise(x_t, t)


class _Known(Wrapper):
    """A model that answers with one prediction made before."""

    def __init__(self, model: ScoreModel, raw: Tensor) -> None:
        super().__init__(model)
        self._raw = raw

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction with shape (B, *)."""
        return self._raw


class WithoutDraw(BrownianMotion):
    """A noise source in which one step draws zeros.

    Args:
        source: of the other draws; a path, or normals for one path.
        number: of the step.
    """

    def __init__(self, source: NoiseSource, number: int) -> None:
        self._path = source if isinstance(source, BrownianMotion) else StepNormals(source)
        self._number = number

    def _kept(self, number: int, z: Tensor) -> Tensor:
        return torch.zeros_like(z) if number == self._number else z

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        """The source's own draw with shape (B, *), zeros for the step."""
        return self._kept(index, self._path.draw(index, stream))

    def increment(self, interval: Interval) -> Tensor:
        """W / sqrt|h| over the interval with shape (B, *), zeros for the step."""
        return self._kept(interval.number, self._path.increment(interval))

    def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
        """W and H over the interval, each with shape (B, *), zeros for the step."""
        w, h = self._path.increment_and_area(interval)
        return self._kept(interval.number, w), self._kept(interval.number, h)
