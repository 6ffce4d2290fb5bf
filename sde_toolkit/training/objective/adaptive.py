"""Laws and a weight that learn from the losses; ``learned`` says how they remember.

    AdaptiveTimes       density of lam = log(alpha / sigma) in proportion to a moving average of the loss
                        there, as it enters the integral over lam (2303.00848, appendix F)
    ImportanceIndices   p_i in proportion to E[L_i^2]^(1/2) over the last ten losses of index i; uniform until
                        every index has ten (2102.09672, eq. 18)
    LearnedWeight       w exp(-u(t)), u trained beside on exp(-u) L + u, so that u tends to log E[L | t] and
                        all times weigh alike (2312.02696, eq. 14 and 15)

A loss is divided by the density of its law, so that the laws change its spread alone.  Its weight does change
its minimum for a network that cannot reach the exact score at all times; that score stays the minimiser.

References: Kingma and Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation"
(2303.00848); Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672); Karras et
al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.training.objective.learned import LearnedPart
from sde_toolkit.training.objective.times import lam_rate
from sde_toolkit.training.objective.weightings import WEIGHTS, Weight, Weighting, weights_at
from sde_toolkit.utils import checked, integer

_LEAST_WIDTH = 0.001
"""Of bins."""
_MOST_LAM = 15.0
"""The bins of AdaptiveTimes lie between this and minus this; beyond, the last bin goes on."""


def _host(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


class AdaptiveTimes(LearnedPart):
    """Times drawn in proportion to a moving average of the loss at their noise level (2303.00848).

    Args:
        width: of the bins, in lam = log(alpha / sigma).
        decay: of the moving average, per batch with a time in the bin.

    A bin without a loss so far has the mean of the others.

    Raises:
        ValueError: ``width`` not in [0.001, 15], or ``decay`` not in [0, 1).
    """

    @checked
    def __init__(self, width: float = 0.2, decay: float = 0.99) -> None:
        if not _LEAST_WIDTH <= width <= _MOST_LAM:
            raise ValueError(f"width must lie in [{_LEAST_WIDTH}, {_MOST_LAM:g}], got {width}; try 0.2")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}; try 0.99")
        self.width, self.decay = width, decay
        super().__init__()

    def __repr__(self) -> str:
        return f"AdaptiveTimes(width={self.width}, decay={self.decay})"

    def fresh(self) -> dict[str, Tensor]:
        """Sums of the losses and of their weights, with a number for every bin."""
        count = math.ceil(2 * _MOST_LAM / self.width)
        return {name: torch.zeros(count, dtype=torch.float64) for name in ("sums", "weights")}

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """The density of t up to a factor, with the shape of t."""
        sums, weights = self._memory["sums"], self._memory["weights"]
        seen = weights > 0
        means = sums / torch.where(seen, weights, 1.0)
        rest = means[seen].mean() if bool(seen.any()) else torch.ones((), dtype=torch.float64)
        means = torch.where(seen, means, rest).to(t)
        return means[self._bins(model, t)] * lam_rate(model.sde, t)

    def observe(self, model: ScoreModel, place: Tensor, losses: Tensor) -> None:
        """Take a batch into the averages: times and losses with shape (B,)."""
        values, bins = _host(losses / lam_rate(model.sde, place)), self._bins(model, place).cpu()
        sums, weights = self._memory["sums"], self._memory["weights"]
        count = torch.zeros_like(sums).index_add_(0, bins, torch.ones_like(values))
        mean = torch.zeros_like(sums).index_add_(0, bins, values) / count.clamp(min=1)
        hit = count > 0
        self._memory = {
            "sums": torch.where(hit, self.decay * sums + (1 - self.decay) * mean, sums),
            "weights": torch.where(hit, self.decay * weights + (1 - self.decay), weights),
        }

    def _bins(self, model: ScoreModel, t: Tensor) -> Tensor:
        place = ((model.sde.lam(t) + _MOST_LAM) / self.width).floor()
        return place.clamp(0, len(self._memory["sums"]) - 1).long()


class ImportanceIndices(LearnedPart):
    """Indices of a chain by the size of their last losses (2102.09672, section 3.3).

    Args:
        num_steps: N of the chain.
        history: losses of every index that are kept.
        uniform: share of the draws that are uniform in any case.

    Raises:
        ValueError: a count below 1, or ``uniform`` not in (0, 1].
    """

    @checked
    def __init__(self, num_steps: int, history: int = 10, uniform: float = 0.001) -> None:
        self.num_steps, self.history = integer("num_steps", num_steps, 1), integer("history", history, 1)
        if not 0 < uniform <= 1:
            raise ValueError(f"uniform must lie in (0, 1], got {uniform}; try 0.001")
        self.uniform = uniform
        super().__init__()

    def __repr__(self) -> str:
        return f"ImportanceIndices({self.num_steps}, history={self.history}, uniform={self.uniform})"

    def fresh(self) -> dict[str, Tensor]:
        """The last losses, the newest first, and how many there are."""
        rows = torch.zeros(self.num_steps, self.history, dtype=torch.float64)
        return {"losses": rows, "counts": torch.zeros(self.num_steps, dtype=torch.float64)}

    def probabilities(self) -> Tensor:
        """p_i for i = 1 .. N, float64 with shape (N,)."""
        even = torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)
        size = self._memory["losses"].square().mean(1).sqrt()
        if bool((self._memory["counts"] < self.history).any()) or not float(size.sum()) > 0:
            return even
        return (1 - self.uniform) * size / size.sum() + self.uniform * even

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Indices in 1 .. N and 1 / (N p_i), each with the shape (B,) of the uniforms u."""
        p = self.probabilities().to(u.device)
        i = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=self.num_steps - 1)
        return 1 + i, 1 / (self.num_steps * p[i])

    def observe(self, model: ScoreModel, place: Tensor, losses: Tensor) -> None:
        """Push losses with shape (B,), one after the other, to the histories of their indices."""
        rows, counts = (self._memory[name].clone() for name in ("losses", "counts"))
        for i, value in zip((place.cpu() - 1).tolist(), _host(losses).tolist(), strict=True):
            rows[i] = torch.cat([rows.new_tensor([value]), rows[i, :-1]])
            counts[i] = min(self.history, int(counts[i]) + 1)
        self._memory = {"losses": rows, "counts": counts}


class LearnedWeight(LearnedPart):
    """A weight divided by exp(u), u a function of the noise level that learns log E[L | t] (2312.02696).

    u is a linear function of random Fourier features of log(sigma / alpha) / 4, trained by Adam on the
    losses of the batches after every update; it starts at 0.

    Args:
        weighting: w, a name or a function, as for ``DenoisingLoss``; not "residual".
        num_features: of the noise level.
        learning_rate: of u.
        seed: of the features.

    Raises:
        ValueError: an unknown or "residual" weight, or a number out of range.
    """

    @checked
    def __init__(
        self,
        weighting: Weighting | Weight = "edm",
        num_features: int = 64,
        learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        if isinstance(weighting, str) and weighting not in WEIGHTS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTS)}, got {weighting!r}")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite positive number, got {learning_rate}; try 0.01")
        self.weighting, self.learning_rate = weighting, learning_rate
        generator = torch.Generator().manual_seed(integer("seed", seed, 0))
        count = integer("num_features", num_features, 1)
        self._frequencies = torch.randn(count, dtype=torch.float64, generator=generator)
        self._phases = torch.rand(count, dtype=torch.float64, generator=generator)
        super().__init__()

    def __repr__(self) -> str:
        return f"LearnedWeight({self.weighting!r}, num_features={len(self._phases)})"

    def fresh(self) -> dict[str, Tensor]:
        """Coefficients of u, a constant last, Adam's moments, and its step."""
        zeros = torch.zeros(len(self._phases) + 1, dtype=torch.float64)
        return {"u": zeros, "first": zeros, "second": zeros, "step": torch.zeros(1, dtype=torch.float64)}

    def u(self, model: ScoreModel, t: Tensor) -> Tensor:
        """u(t) with the shape of t."""
        return (self._features(model, t) @ self._memory["u"]).to(t)

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """w exp(-u), with the shape of t."""
        return weights_at(self.weighting, model, t) * (-self.u(model, t)).exp()

    def observe(self, model: ScoreModel, place: Tensor, losses: Tensor) -> None:
        """A step of Adam on the mean of exp(-u) L + u: times and losses L with shape (B,)."""
        phi, memory = self._features(model, place), self._memory
        ratio = (-(phi @ memory["u"])).exp() * _host(losses)
        slope = phi.T @ (1 - ratio) / len(ratio)
        step = memory["step"] + 1
        first = 0.9 * memory["first"] + 0.1 * slope
        second = 0.99 * memory["second"] + 0.01 * slope.square()
        size = (second / (1 - 0.99**step)).sqrt() + 1e-8
        u = memory["u"] - self.learning_rate * first / (1 - 0.9**step) / size
        self._memory = {"u": u, "first": first, "second": second, "step": step}

    def _features(self, model: ScoreModel, t: Tensor) -> Tensor:
        """With shape (B, K + 1), on the host."""
        c = _host(-model.sde.lam(t)) / 4
        waves = (2 * math.pi * (self._frequencies * c[:, None] + self._phases)).cos()
        waves = waves * math.sqrt(2 / len(self._phases))
        return torch.cat([waves, torch.ones_like(waves[:, :1])], 1)
