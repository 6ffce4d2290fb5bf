"""Any callable as a score model: what it is called with, and what it returns.

A network of another library differs from ours in three conventions: the state that it sees, the number that
tells it the noise level, and what it puts out.  In terms of x_t = alpha x0 + sigma z and n = sigma / alpha:

    state       "x_t"           x_t itself                                  DDPM, score_sde, flow matching
                "x_t / alpha"   x0 + n z                                    EDM, k-diffusion: "D(x; sigma)"
                "unit"          x_t (alpha^2 d^2 + sigma^2)^(-1/2)          the inside of EDM's D: c_in x
    time        "t"             t of the process                            flow matching
                "sigma"         n, the sigma of EDM and of k-diffusion
                "log_sigma/4"   log(n) / 4, EDM's c_noise
                "log_snr"       -2 log n                                    VDM
                "1000t", "999t" 1000 t / T, 999 t / T                       ours; score_sde
                a function      of t with shape (B,)
    output      a name of ``PREDICTIONS``

For x_t / alpha the process is the one with alpha = 1 and sigma = n.  Noise and data are the same in both,
and EDM's F; a score with respect to x_t / alpha is alpha times the one with respect to x_t, a velocity
1 / alpha times, and dy/dn of the probability flow is the noise.  So a denoiser of EDM's kind runs under
every process that reaches its noise levels, VP and rectified flow as well.

References: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364),
table 1; Kingma et al., "Variational Diffusion Models" (2107.00630) for the log-SNR as time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_toolkit.models import Condition, ModuleModel, Moments, Prediction, embeds_real_times, prediction_name
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import checked
from solvers import expand_like

State = Literal["x_t", "x_t / alpha", "unit"]
"""What a foreign network sees."""

TimeName = Literal["t", "sigma", "log_sigma/4", "log_snr", "1000t", "999t"]
"""Names of the number that tells a foreign network the noise level."""

Time = TimeName | Callable[[Tensor], Tensor]
"""A name, or a function of t with shape (B,)."""


def time_number(time: Time, sde: ForwardSDE, t: Tensor) -> Tensor:
    """The number of the module's head, in float64, for t with shape () or (B,)."""
    t = t.double()
    if callable(time):
        return time(t)
    if time == "t":
        return t
    if time == "sigma":
        return sde.nsr(t)
    if time == "log_sigma/4":
        return 0.25 * sde.nsr(t).log()
    if time == "log_snr":
        return -2 * sde.nsr(t).log()
    return (1000.0 if time == "1000t" else 999.0) / sde.T * t


def num_rows(condition: Condition) -> int:
    """Number of rows of a condition; 0 for a class that all samples share."""
    try:
        return len(condition)  # type: ignore[arg-type]
    except TypeError:  # a number, or a tensor without dimensions
        return 0


class CalledNetwork(nn.Module):
    """A callable with its conditions in the form that it takes.

    Args:
        network: the callable; as a module, its parameters are those of this one.
        num_classes: number K of classes; 0 for none.
        one_hot: whether labels go in as rows (B, K) of zeros and a one, all zeros for "no label".
        argument: the name of the argument that takes a condition; the third by position when None.
        halved: whether the second half of its channels is left out.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        num_classes: int,
        one_hot: bool,
        argument: str | None,
        halved: bool = False,
    ) -> None:
        super().__init__()
        self.halved = halved
        self.network, self.num_classes, self.one_hot, self.argument = network, num_classes, one_hot, argument
        self.condition_shape = getattr(network, "condition_shape", None)
        self.embeds_real_times = isinstance(network, nn.Module) and embeds_real_times(network)

    def forward(self, x: Tensor, number: Tensor, condition: Tensor | None = None) -> Tensor:
        """The callable's output for states with shape (B, *) and numbers with shape (B,)."""
        if condition is None:
            return self._kept(self.network(x, number), x)
        if self.one_hot:
            condition = F.one_hot(condition, self.num_classes + 1)[:, :-1].to(x.dtype)
        if self.argument is None:
            return self._kept(self.network(x, number, condition), x)
        return self._kept(self.network(x, number, **{self.argument: condition}), x)

    def _kept(self, output: Any, x: Tensor) -> Any:
        """The prediction in the output; raises ValueError where half of the channels is not the state's."""
        output = _tensor(output)
        if not self.halved or not isinstance(output, Tensor):
            return output
        if output.ndim != x.ndim or output.shape[1] != 2 * x.shape[1]:
            raise ValueError(
                "learned_variance needs a network with twice the channels of its input, "
                f"{2 * x.shape[1]}, got an output with shape {tuple(output.shape)}; leave it out"
            )
        return output[:, : x.shape[1]]


def _tensor(output: Any) -> Any:
    """The first of a tuple, or the field ``sample`` of a dataclass; anything else as it is."""
    if isinstance(output, (tuple, list)) and len(output) == 1:
        return output[0]
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, Tensor) else output


class ForeignModel(ModuleModel):
    """A network of other conventions as a score model, see the module's head.

    Args:
        network: called as ``network(state, number)`` or ``network(state, number, condition)``, the number
            with shape (B,) and the type of the state.
        sde: the forward process.
        predicts: what it returns; of "x_t / alpha" and its noise level where that is the state.
        event_shape: the shape D of one sample.
        state: what it sees.
        time: what tells it the noise level.
        data_std, moments, class_moments, condition_shape, dtype, device: as for ``ModuleModel``.

    Raises:
        ValueError, TypeError: as for ``ModuleModel``; ValueError also for an unknown state or time, and for
            the prediction "residual".
    """

    @checked
    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        sde: ForwardSDE,
        predicts: Prediction | str,
        event_shape: tuple[int, ...],
        state: State = "x_t",
        time: Time = "t",
        data_std: float = 1.0,
        moments: Moments | None = None,
        class_moments: Sequence[Moments] | None = None,
        condition_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        predicts = prediction_name(predicts)
        if predicts == "residual":
            raise ValueError(
                'predicts must be what the network says of x_t, got "residual", read by moments; use '
                "a NetworkModel"
            )
        if not callable(time) and time not in get_args(TimeName):
            raise ValueError(
                f"time must be a function of t or one of {', '.join(get_args(TimeName))}, got {time!r}"
            )
        if state == "x_t / alpha" and predicts == "flow":
            predicts = "noise"  # dy/dn
        self.state, self.time = state, time
        super().__init__(
            network, sde, predicts, event_shape, data_std, moments, class_moments, condition_shape, dtype,
            device,
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        """The arguments that it was made with, but for the network and its place."""
        return super()._options() | {"state": self.state, "time": self.time}

    def arguments(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state that the network sees, with shape (B, *), and the number, with shape (B,)."""
        number = time_number(self.time, self.sde, t).to(x_t.device, x_t.dtype).expand(len(x_t))
        if self.state == "x_t":
            return x_t, number
        alpha_t = self.sde.alpha(t)
        if self.state == "x_t / alpha":
            return x_t / expand_like(alpha_t, x_t), number
        c_in = (alpha_t.square() * self.data_std**2 + self.sde.sigma(t).square()).rsqrt()
        return expand_like(c_in, x_t) * x_t, number

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's output as the prediction ``predicts`` of x_t.

        Raises:
            TypeError: the network returned something else than a tensor with the shape and type of x_t.
        """
        raw = super().raw(x_t, t, condition)
        if self.state != "x_t / alpha" or self.predicts not in ("score", "velocity"):
            return raw
        alpha_t = expand_like(self.sde.alpha(t), raw)
        return raw / alpha_t if self.predicts == "score" else alpha_t * raw
