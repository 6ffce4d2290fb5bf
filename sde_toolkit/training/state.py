"""The state of a training run: network theta, its moving average, the optimiser's moments, the step number n.

Everything random in a training step is a function of (seed, n), so there are no generators and no data
position to save: n is both, and a resumed run equals the uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sde_toolkit.models import IndexedModel, NetworkModel, plain_parameters, plain_tensors, recording
from sde_toolkit.training.averages import (
    EMA_PROFILES,
    EmaProfile,
    averaged_copy,
    gamma_of,
    is_narrow,
    need_length,
    power_decay,
    update_average,
    warmed_decay,
)
from sde_toolkit.training.parallel import Parallel, SharedNetwork, shard, whole_tensor
from sde_toolkit.utils import check_fields, checked, integer

LearningRateSchedule = Literal["linear", "constant", "cosine", "inverse_sqrt"]
SCHEDULES: tuple[str, ...] = get_args(LearningRateSchedule)
"""Falls of the learning rate, see ``Optimization``."""

_LOWEST = 0.01
"""Of the learning rate that falls, as a share of the first."""

_TRAINABLE = (torch.bfloat16, torch.float32, torch.float64)


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or a weight is not finite.

    After a loss or a gradient the state is the one before the step, whole; after a weight it is ``updating``,
    is not saved, and goes on once a checkpoint has been restored into it.
    """


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and decay, gradient clipping and a moving average of the weights.

    Args:
        learning_rate: after the warm-up.
        warmup_steps: updates over which the learning rate rises linearly; 0 for none.
        decay_steps: updates over which it falls to a hundredth, where it stays; 0 for a rate that does not
            fall.
        schedule: how it falls: "linear" or "cosine" (half a period) over ``decay_steps``; "inverse_sqrt",
            like 1 / sqrt(update) from update ``decay_steps`` on, as in 2312.02696; "constant", not at all.
        betas: decay of the first and second moment.
        weight_decay: decoupled, per unit of learning rate.
        max_grad_norm: the gradient is scaled down to this Euclidean norm; infinity for no clipping.
        ema_decay: largest decay of the moving average, in [0, 1), for "warmup" and "constant".
        ema_profile: what the average weighs, "warmup", "constant" or "power" (``training.averages``).
        ema_sigma_rel: length of the average for "power", as a share of the run.
        ema_traces: lengths of further power-function averages that are tracked beside it; combinations of
            what ``fit`` stores of them give an average of any length later (``reconstruct``).

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 0
    schedule: LearningRateSchedule = "linear"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9995
    ema_profile: EmaProfile = "warmup"
    ema_sigma_rel: float = 0.1
    ema_traces: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        integer("warmup_steps", self.warmup_steps, 0)
        integer("decay_steps", self.decay_steps, 0)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.schedule != "linear" and (self.schedule == "constant") == (self.decay_steps > 0):
            wanted = (
                "0" if self.schedule == "constant" else "the number of updates of the fall, such as 10000"
            )
            raise ValueError(
                f"decay_steps must be {wanted}, under the schedule {self.schedule!r}, got {self.decay_steps}"
            )
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.learning_rate == math.inf:
            raise ValueError("learning_rate must be finite, got inf; try 1e-3")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}; try 0")
        if not all(0 <= value < 1 for value in (*self.betas, self.ema_decay)):
            raise ValueError(f"betas and ema_decay must be in [0, 1), got {self.betas} and {self.ema_decay}")
        if self.ema_profile not in EMA_PROFILES:
            raise ValueError(
                f"ema_profile must be one of {', '.join(EMA_PROFILES)}, got {self.ema_profile!r}"
            )
        need_length("ema_sigma_rel", self.ema_sigma_rel)
        for length in self.ema_traces:
            need_length("ema_traces", length)
        if len(set(self.ema_traces)) < len(self.ema_traces) or len(self.ema_traces) == 1:
            raise ValueError(
                "ema_traces must be two or more different lengths, as in (0.05, 0.1), or empty, got "
                f"{self.ema_traces}"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return self.learning_rate * rise * (self._fall(step) if self.decay_steps else 1.0)

    def _fall(self, step: int) -> float:
        if self.schedule == "cosine":
            half = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.decay_steps)))
            return _LOWEST + (1 - _LOWEST) * half
        if self.schedule == "inverse_sqrt":
            return math.sqrt(self.decay_steps / max(step, self.decay_steps))
        return max(_LOWEST, 1 - step / self.decay_steps)

    def ema_decay_at(self, step: int) -> float:
        """The decay of the moving average at update ``step``, counted from 0."""
        if self.ema_profile == "power":
            return power_decay(step, gamma_of(self.ema_sigma_rel))
        return self.ema_decay if self.ema_profile == "constant" else warmed_decay(step, self.ema_decay)


@dataclass(frozen=True)
class UpdateInfo:
    """What one update was.

    Attributes:
        step: number of updates made, this one included.
        loss: mean of the batch.
        grad_norm: Euclidean norm of the gradient, before clipping.
        learning_rate: of this update.
        batch_size: number of examples.
        seconds: wall time of the update.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    batch_size: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Examples per second of wall time in this update."""
        return self.batch_size / self.seconds


class TrainState:
    """A training run: the model, its moving average, the optimiser and the step number.

    Args:
        model: the network to train, under its forward process; trained in place.
        optimization: the rule of the updates.
        seed: of all randomness of the run, with the step number.
        config: a nested mapping of JSON values that says what the run is; stored in every checkpoint.
        parallel: how batches are shared by processes and parts; not at all when None.

    Attributes:
        model, ema: the trained model and, for sampling, the model of the averaged weights.
        parallel, shared: how batches are shared, and the network as it is evaluated.
        traces: networks of the power-function averages, one for each length in ``optimization.ema_traces``.
        optimizer: AdamW on the parameters of ``model.network``.
        step: number of updates made.
        data: moments of the training data, "mean" and "std", shaped as an event, and "covariance" where it is
            known in full, for a network with classes also "class_mean", ... (``sde_toolkit.models.moments``);
            empty until ``fit`` fills it.
        notes: JSON values that go into every checkpoint and come back with it, for what a caller counts from
            step to step.
        updating: whether an update is under way; such a state is not saved.
        losses: of the examples of the last batch, with shape (B,), or as the loss gave them; None before.

    Raises:
        TypeError: ``config`` holds something that JSON has no word for.
        ValueError: parameters that cannot be trained: float16, inference tensors, or the meta device.
    """

    @checked
    @recording()
    def __init__(
        self,
        model: NetworkModel | IndexedModel,
        optimization: Optimization | None = None,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        _check_trainable(model.network)
        self.model, self.seed, self.step = model, integer("seed", seed, 0), 0
        self.config = as_json(config or {})
        self.optimization = optimization or Optimization()
        self.ema = model.with_network(averaged_copy(model.network))
        self.traces = [averaged_copy(model.network) for _ in self.optimization.ema_traces]
        model.network.train()
        self.parallel = parallel or Parallel()
        self._whole: NetworkModel | IndexedModel | None = None
        if self.parallel.shard:
            self._whole = (
                None if self.parallel.processes.rank else self.ema.with_network(averaged_copy(model.network))
            )
            shard([model.network, self.ema.network, *self.traces], model.device)
        self.shared = SharedNetwork(self.parallel, model.network)
        rule = self.optimization
        self.optimizer = torch.optim.AdamW(
            model.network.parameters(),
            lr=rule.learning_rate,
            betas=rule.betas,
            weight_decay=rule.weight_decay,
            fused=_fuses(model.network),
        )
        # AdamW's own initial state, made now so that every tensor of the run always is there to save
        for parameter in model.network.parameters():
            wide = parameter.detach().float() if is_narrow(parameter) else parameter.detach()
            moments = {key: torch.zeros_like(wide) for key in ("exp_avg", "exp_avg_sq")}
            moments |= {"wide": wide} if is_narrow(parameter) else {}
            count = torch.zeros((), device=parameter.device if self.optimizer.defaults["fused"] else "cpu")
            self.optimizer.state[parameter] = {"step": count, **moments}
        self.data: dict[str, Tensor] = {}
        self.notes: dict[str, Any] = {}
        self.updating = False
        self.losses: Tensor | None = None

    def __repr__(self) -> str:
        return f"TrainState(step {self.step:,}, seed {self.seed}, {self.model!r})"

    @property
    def run(self) -> dict[str, Any]:
        """What decides the bits of the run besides its model: the seed and the rule of the updates."""
        return as_json({"seed": self.seed, "optimization": asdict(self.optimization)})

    def update(self) -> None:
        """Take one optimiser step with the gradients in place, average the weights, and count the step.

        Raises:
            NonFiniteError: a weight is not finite after the step; the average is the one before.
        """
        self.updating = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimization.learning_rate_at(self.step)
        network = self.model.network
        with self._widened():
            self.optimizer.step()
            self._require_finite_weights()
            update_average(self.ema.network, network, self.optimization.ema_decay_at(self.step))
            for trace, length in zip(self.traces, self.optimization.ema_traces, strict=True):
                update_average(trace, network, power_decay(self.step, gamma_of(length)))
        self.step += 1
        self.updating = False

    def _require_finite_weights(self) -> None:
        found = [parameter.detach() for parameter in self.model.network.parameters()]
        # the Euclidean norm is the cheaper one, and may overflow; an empty part of a tensor has no other
        for kind in (2.0,) if self.parallel.shard else (2.0, math.inf):
            if math.isfinite(float(whole_tensor(nn.utils.get_total_norm(found, kind)))):
                return
        weights = {name: parameter.detach() for name, parameter in plain_parameters(self.model.network)}
        bad = next(name for name, weight in weights.items() if not bool(weight.isfinite().all()))
        raise NonFiniteError(
            f"the weights must stay finite, got nan or inf in {bad!r} after step {self.step + 1}; restore "
            "the last checkpoint, and lower the learning rate or lengthen the warm-up"
        )

    @contextmanager
    def _widened(self) -> Iterator[None]:
        """Inside, narrow parameters and their gradients are the float32 ones that the optimiser keeps."""
        narrow = [p for p in self.model.network.parameters() if is_narrow(p)]
        types = [p.dtype for p in narrow]
        try:
            for parameter in narrow:
                gradient, parameter.grad = parameter.grad, None
                parameter.data = self.optimizer.state[parameter]["wide"]
                parameter.grad = None if gradient is None else gradient.float()
            yield
        finally:
            for parameter, dtype in zip(narrow, types, strict=True):
                parameter.grad = None
                parameter.data = parameter.data.to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the run under the names that they have in a checkpoint; this process's parts of
        sharded ones."""
        tensors = prefixed("model", plain_tensors(self.model.network))
        tensors |= prefixed("ema", plain_tensors(self.ema.network))
        tensors |= self.trace_tensors()
        for name, parameter in plain_parameters(self.model.network):
            tensors |= prefixed(f"optimizer.{name}", self.optimizer.state[parameter])
        return tensors | prefixed("data", self.data)

    def gather_average(self) -> NetworkModel | IndexedModel:
        """The model of the averaged weights, whole, in the first process; ``ema`` itself where nothing is
        sharded.  Where it is, every process has to call this, and the others get their parts, ``ema``."""
        if not self.parallel.shard:
            return self.ema
        tensors = {
            name: whole_tensor(tensor).detach() for name, tensor in plain_tensors(self.ema.network).items()
        }
        if self._whole is None:
            return self.ema
        targets = plain_tensors(self._whole.network)
        with torch.no_grad():
            for name, tensor in tensors.items():
                targets[name].copy_(tensor)
        self._whole = self.ema.with_network(self._whole.network)  # its moments and scaling of now
        return self._whole

    def trace_tensors(self) -> dict[str, Tensor]:
        """The tensors of the traces, under "traces.<number>.<name>"."""
        tensors: dict[str, Tensor] = {}
        for number, trace in enumerate(self.traces):
            tensors |= prefixed(f"traces.{number}", plain_tensors(trace))
        return tensors


def _fuses(network: nn.Module) -> bool:
    """Whether one kernel can update all parameters."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in network.parameters())


def _check_trainable(network: nn.Module) -> None:
    """Refuse parameters that cannot be trained."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in _TRAINABLE:
            raise ValueError(
                "network must have float32, bfloat16 or float64 parameters to be trained, got "
                f"{parameter.dtype} for {name!r}, whose gradients underflow; keep float32 parameters and use "
                "autocast: run the training inside `with torch.autocast(device_type, dtype):`"
            )
        if parameter.is_inference():
            raise ValueError(
                f"network must have ordinary parameters to be trained, got {name!r} made inside "
                "torch.inference_mode; build the network outside of it"
            )
        if parameter.is_meta:
            raise ValueError(
                f"network must hold its parameters to be trained, got {name!r} on the meta device; use "
                "network.to_empty(device=...) and initialise it"
            )


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under "prefix.name"."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as a reader of a checkpoint gets it: tuples become lists."""
    try:
        return json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"config must hold numbers, strings, lists and mappings only, got one with {error}"
        ) from error
