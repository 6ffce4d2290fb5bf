"""Networks as score models.

A network of a ``NetworkModel`` sees the state scaled to unit variance and a time feature,

    raw = network(c_in x_t, 1000 t / T [, condition]),    c_in = (alpha^2 d^2 + sigma^2)^(-1/2), d = data_std.

Where it predicts the "residual" it sees the state whitened by the data's mean and covariance instead, and its
output is joined to the Gaussian with these moments (``sde_toolkit.models.Whitening``): they are part of the
model then, and do not change once they are set.

Both are ``nn.Module`` objects: ``.to``, ``state_dict``, ``copy.deepcopy``, ``model.compile()`` and
``DistributedDataParallel`` work on them as on any other module.

Networks at the indices of a chain are in the module ``indexed``.

Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364),
for the input scale.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sde_toolkit.models.moments import Moments
from sde_toolkit.models.products import is_autocast
from sde_toolkit.models.score import (
    READ_AS,
    TIME_SCALE,
    Condition,
    Prediction,
    ScoreModel,
    check_states,
    class_labels,
    flow_as_velocity,
    known_moments,
    prediction_name,
)
from sde_toolkit.models.whitening import Preconditioner
from sde_toolkit.models.wrappers import GivenModel, as_module, inner_network
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import as_device, check_fields, checked, shown
from solvers import expand_like

M = TypeVar("M", bound="ModuleModel")

_WORK = torch.float32
"""The narrowest type in which states are whitened."""


@dataclass(frozen=True)
class NoiseLevel:
    """Time feature -> standard deviation of the noise in a state that is scaled to unit variance.

    Args:
        sde: the forward process.
        data_std: root-mean-square standard deviation of the data.
    """

    sde: ForwardSDE
    data_std: float

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, c: Tensor) -> Tensor:
        """nsr / (data_std^2 + nsr^2)^(1/2) with shape (B,), for c = 1000 t / T with shape (B,)."""
        nsr = self.sde.nsr(c.double() * (self.sde.T / TIME_SCALE))
        return nsr / (self.data_std**2 + nsr.square()).sqrt()


def _condition_shape(network: nn.Module, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape of a condition: as given, else the network's own; raises ValueError where they differ."""
    own = getattr(inner_network(network), "condition_shape", None)
    own = tuple(own) if isinstance(own, (tuple, list)) and own else None
    if own is not None and given is not None and tuple(given) != own:
        raise ValueError(
            f"condition_shape must be the network's own, {own}, got {tuple(given)}; leave it out"
        )
    return own if given is None else tuple(given)


class ModuleModel(ScoreModel, nn.Module):
    """A score model that is a module around a network; ``arguments`` says how the network is called.

    ``network_predicts`` is what the network puts out and ``predicts`` what ``raw`` returns, the same but for
    "residual", of which ``raw`` makes "edm", and "flow", of which it makes "velocity".

    Args:
        network: a module or a function that returns a tensor with the shape and type of its first argument.
            It takes a condition as third argument if it has an attribute ``num_classes`` > 0, or where
            ``condition_shape`` is given.
        sde: the forward process.
        predicts: what the network puts out, a name of ``PREDICTIONS`` or of diffusers.
        event_shape: the shape D of one sample.
        data_std: root-mean-square standard deviation of the data.
        moments: mean and covariance of the data, for the samplers that use them, and for "residual": without
            them that is "edm", with mean 0.
        class_moments: those of every class.
        condition_shape: the shape of one sample's condition, for conditions that are no classes; the
            network's own attribute ``condition_shape`` when None.
        dtype, device: of the states, for networks without parameters and buffers of real numbers; the default
            type and the host when None.

    Raises:
        ValueError: an unknown prediction, ``data_std`` not positive, moments of another event shape, or of
            another number of classes than the network has, another ``condition_shape`` than the network's, or
            a type that is not the network's own.
        TypeError: a network that is neither a module nor a function.
    """

    _like: Tensor
    _preconditioner: Preconditioner | None = None

    @checked
    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        sde: ForwardSDE,
        predicts: Prediction | str,
        event_shape: tuple[int, ...],
        data_std: float = 1.0,
        moments: Moments | None = None,
        class_moments: Sequence[Moments] | None = None,
        condition_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if not 0 < data_std < float("inf"):
            raise ValueError(f"data_std must be a finite positive number, got {data_std}")
        if not event_shape or min(event_shape) < 1:
            raise ValueError(f"event_shape must have dimensions of at least 1, got {tuple(event_shape)}")
        self.network, self.sde, self.network_predicts = as_module(network), sde, prediction_name(predicts)
        self.predicts = READ_AS.get(self.network_predicts, self.network_predicts)
        self.event_shape, self.data_std = tuple(event_shape), float(data_std)
        self._place(dtype, device)
        self.condition_shape = _condition_shape(self.network, condition_shape)
        self.set_moments(moments, class_moments)

    def _place(self, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        """Keep the type and the device of states; refuse a type that is not the network's own."""
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a type of real numbers such as torch.float32, got {dtype}")
        like = torch.empty(0, dtype=dtype, device=None if device is None else as_device("device", device))
        self.register_buffer("_like", like, persistent=False)
        if dtype is not None and self.dtype != dtype:
            raise ValueError(
                f"dtype must be the network's own, {self.dtype}, got {dtype}; use network.to({dtype})"
            )
        if device is not None and self.device != like.device:
            raise ValueError(
                f"device must be the network's own, {self.device}, got {device}; use "
                f"network.to({str(device)!r})"
            )

    @checked
    def set_moments(self, moments: Moments | None, class_moments: Sequence[Moments] | None = None) -> None:
        """Set the moments of the data and of every class.

        Raises:
            ValueError: those of other data, or of another number of classes; or others than the model has
                and its network's output is read by.
        """
        for law in (*([] if moments is None else [moments]), *(class_moments or ())):
            if law.event_shape != self.event_shape:
                raise ValueError(
                    f"moments must have the event shape {self.event_shape}, got {law.event_shape}"
                )
        if class_moments is not None and len(class_moments) != self.num_classes:
            raise ValueError(
                f"class_moments must be those of {self.num_classes} classes, got {len(class_moments)}"
            )
        if self.network_predicts == "residual" and self.moments is not None and moments != self.moments:
            raise ValueError(
                "moments must be those that the network was trained with, which its residual is read by, got "
                f"others; make a new model to train it anew, got {moments!r} for {self.moments!r}"
            )
        self.moments, self._preconditioner = moments, None
        self.class_moments = None if class_moments is None else tuple(class_moments)

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"{type(self).__name__}({type(self.network).__name__} with {size:,} parameters, {self.sde!r}, "
            f"predicts={self.network_predicts!r}, event_shape={self.event_shape})"
        )

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Type of the network's parameters, else of its buffers, else the one given; and so of the states."""
        return self._any_tensor().dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device of the network's parameters, else of its buffers, else the one given."""
        return self._any_tensor().device

    def _any_tensor(self) -> Tensor:
        """The network's first parameter, else its first buffer of real numbers, else that of the model."""
        parameter = next(self.network.parameters(), None)
        if parameter is not None:
            return parameter
        buffers = (buffer for buffer in self.network.buffers() if buffer.is_floating_point())
        return next(buffers, self._like)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes K that the network knows; 0 for one without labels."""
        return int(getattr(inner_network(self.network), "num_classes", 0))

    def preconditioner(self, x: Tensor) -> Preconditioner:
        """The Gaussian that a "residual" is read by, for states x; N(0, data_std^2) without moments."""
        like = x if x.dtype.itemsize >= _WORK.itemsize else x.to(_WORK)
        made = self._preconditioner
        if made is None or made.dtype != like.dtype or made.device != like.device:
            made = self._preconditioner = Preconditioner(known_moments(self), like)
        return made

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """Labels with shape (count,), K for the null class ("no label"); or rows of ``condition_shape``."""
        if condition is None or not (self.num_classes or self.condition_shape is not None):
            return ScoreModel.conditions(self, condition, count)
        if self.condition_shape is None:
            return class_labels(condition, count, self.num_classes, self.device, null=True)
        wanted = (count, *self.condition_shape)
        if not isinstance(condition, Tensor) or tuple(condition.shape) != wanted:
            got = tuple(condition.shape) if isinstance(condition, Tensor) else shown(condition)
            raise ValueError(f"condition must be a tensor with shape {wanted}, one row per sample, got {got}")
        return condition.to(self.device, self.dtype if condition.is_floating_point() else None)

    def given(self, condition: Condition) -> GivenModel:
        """The score model of one condition that all samples share, with its moments where they are known.

        Args:
            condition: 0 to K - 1, or K for the null class, with the moments of all data; or a tensor with
                ``condition_shape``.

        Raises:
            ValueError, TypeError: a condition that the network does not take.
        """
        law = None
        if (
            isinstance(condition, int)
            and self.class_moments is not None
            and condition in range(self.num_classes)
        ):
            law = self.class_moments[condition]
        return GivenModel(self, condition, law)

    def with_network(self: M, network: nn.Module | Callable[..., Tensor]) -> M:
        """The same model around another network; one without tensors takes its type and device."""
        made = type(self)(network, **self._options())
        made._like = torch.empty(0, dtype=self.dtype, device=self.device)
        made.scaling = self.scaling
        return made

    def _options(self) -> dict[str, Any]:
        """The arguments that it was made with, but for the network and its place."""
        names = ("sde", "event_shape", "data_std", "moments", "class_moments", "condition_shape")
        return {"predicts": self.network_predicts} | {name: getattr(self, name) for name in names}

    @abstractmethod
    def arguments(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is called with: a state with shape (B, *) and a number per sample (B,)."""

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's output at x_t with shape (B, *) and t with shape () or (B,)."""
        arguments = self.arguments(x_t, t)
        return self.network(*arguments) if condition is None else self.network(*arguments, condition)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's output, checked for shape and type, as the prediction ``predicts``.

        Raises:
            TypeError: the network returned something else than a tensor with the shape and type of x_t.
        """
        raw = self._output(x_t, t, condition)
        if self.network_predicts == "residual":
            return self._joined(raw, x_t, t)
        if self.network_predicts == "flow":
            keep, factor = flow_as_velocity(self.sde, t)
            return expand_like(keep, x_t) * x_t + expand_like(factor, raw) * raw
        return raw

    def _output(self, x_t: Tensor, t: Tensor, condition: Tensor | None, parts: int = 1) -> Tensor:
        """The network's output with shape (B, parts C, *) and the type of x_t with shape (B, C, *)."""
        if x_t.shape[1:] != self.event_shape:
            check_states(self, x_t, "x_t")
        raw = self(x_t, t, condition)
        if not isinstance(raw, Tensor) and isinstance(getattr(raw, "sample", None), Tensor):
            raw = raw.sample  # what diffusers' networks return
        if (
            isinstance(raw, Tensor)
            and raw.is_floating_point()
            and raw.dtype != x_t.dtype
            and is_autocast(raw)
        ):
            raw = raw.to(x_t.dtype)
        wanted = x_t.shape if parts == 1 else (len(x_t), parts * x_t.shape[1], *x_t.shape[2:])
        if not isinstance(raw, Tensor) or raw.shape != wanted or raw.dtype != x_t.dtype:
            self._refuse(raw, tuple(wanted), x_t.dtype)
        return cast(Tensor, raw)

    def _joined(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """A residual as EDM's prediction."""
        made = self.preconditioner(x_t)
        F, x = raw.to(made.dtype), x_t.to(made.dtype)
        return made.edm(F, x, self.sde.alpha(t), self.sde.sigma(t), self.data_std).to(x_t.dtype)

    def _refuse(self, raw: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        wanted = f"network must return a tensor of shape {shape} and type {dtype}"
        if isinstance(raw, Tensor):
            raise TypeError(f"{wanted}, got shape {tuple(raw.shape)} and type {raw.dtype}")
        if isinstance(raw, (tuple, list)):
            raise TypeError(
                f"{wanted}, got a {type(raw).__name__} of {len(raw)}; return the prediction alone"
            )
        more = "; does its forward lack a return?" if raw is None else "; return the tensor inside"
        raise TypeError(f"{wanted}, got {type(raw).__name__}{more}")


class NetworkModel(ModuleModel):
    """A score model whose network is called as ``network(x, c)`` or ``network(x, c, condition)``.

    x is the scaled state with shape (B, *), c the time feature with shape (B,), from 0 at t = 0 to 1000 at T,
    and ``condition`` has one row per sample: labels (B,) from 0 to K, K for "no label", or rows of
    ``condition_shape``.  Arguments and errors are those of ``ModuleModel``.
    """

    def arguments(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in x_t, or the whitened state, with shape (B, *), and 1000 t / T with shape (B,)."""
        alpha_t, sigma_t = self.sde.alpha(t), self.sde.sigma(t)
        c_noise = (TIME_SCALE / self.sde.T * t).to(device=x_t.device, dtype=x_t.dtype).expand(x_t.shape[0])
        if self.network_predicts == "residual":
            made = self.preconditioner(x_t)
            return made.inputs(x_t.to(made.dtype), alpha_t, sigma_t).to(x_t.dtype), c_noise
        c_in = (alpha_t.square() * self.data_std**2 + sigma_t.square()).rsqrt()
        return expand_like(c_in, x_t) * x_t, c_noise
