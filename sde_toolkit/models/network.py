"""Score models, and the one place where predictions are converted into each other.

At x_t = alpha x0 + sigma z a model estimates posterior means given x_t: x0_hat = E[x0 | x_t] and z_hat = E[z
| x_t], with alpha x0_hat + sigma z_hat = x_t and score = -z_hat / sigma (Tweedie).  Every prediction in use
is a linear combination  raw = a x0_hat + b z_hat  with coefficients that depend on (alpha, sigma) only:

    noise      z_hat                              a = 0         b = 1
    data       x0_hat                             a = 1         b = 0
    score      -z_hat / sigma                     a = 0         b = -1 / sigma
    velocity   alpha z_hat - sigma x0_hat         a = -sigma    b = alpha
    edm        (x0_hat - c_skip x_t/alpha) / c_out,  nsr = sigma / alpha, d = data_std,
               c_skip = d^2 / (nsr^2 + d^2), c_out = d nsr / sqrt(nsr^2 + d^2)
                                                  a = (1 - c_skip) / c_out     b = -c_skip nsr / c_out

so one formula inverts them all: with D = a sigma - alpha b,

    x0_hat = (sigma raw - b x_t) / D,             z_hat = (a x_t - alpha raw) / D

A network sees the state scaled to unit variance, c_in x_t with c_in = 1 / sqrt(alpha^2 d^2 + sigma^2), and
the time feature 1000 t / T.  One of K classes estimates posterior means given the class as well, E[z | x_t,
k]; ``model.given(k)`` is the score model of p_t(x_t | k).

References: Salimans and Ho, "Progressive Distillation" (2202.00512) for the velocity; Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364) for the preconditioning.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_toolkit.models.moments import Moments
from sde_toolkit.models.score import PREDICTIONS, TIME_SCALE, Prediction, ScoreModel
from sde_toolkit.sdes import ForwardSDE
from solvers.terms import expand_like


class NetworkModel(ScoreModel):
    """A score model whose prediction comes from a network.

    Args:
        network: called as ``network(x, c)`` with x of shape (B, *) and the time feature c of shape (B,), 0 to
            1000; returns the shape of x.  With an attribute ``num_classes`` > 0 it is also called as
            ``network(x, c, labels)`` with labels of shape (B,).
        sde: the forward process that the network was (or will be) trained under.
        predicts: what the network puts out.
        event_shape: the shape D of one sample.
        data_std: root-mean-square standard deviation of the data.
        moments: mean and covariance of the data, for the samplers that use them.
        class_moments: those of every class.

    Attributes:
        label: the class, or classes with shape (B,), of a view that ``given`` made; None before.

    Raises:
        ValueError: an unknown prediction, ``data_std`` not positive, moments of another event shape, or of
            another number of classes than the network has.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: ForwardSDE,
        predicts: Prediction,
        event_shape: tuple[int, ...],
        data_std: float = 1.0,
        moments: Moments | None = None,
        class_moments: Sequence[Moments] | None = None,
    ) -> None:
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {predicts!r}")
        if not 0 < data_std < float("inf"):
            raise ValueError(f"data_std must be a finite positive number, got {data_std}")
        self.network, self.sde, self.predicts = network, sde, predicts
        self.class_moments = None if class_moments is None else tuple(class_moments)
        for law in (*([] if moments is None else [moments]), *(self.class_moments or ())):
            if law.event_shape != tuple(event_shape):
                raise ValueError(
                    f"moments must have the event shape {tuple(event_shape)}, got {law.event_shape}"
                )
        if self.class_moments is not None and len(self.class_moments) != self.num_classes:
            raise ValueError(
                f"class_moments must be those of {self.num_classes} classes, got {len(self.class_moments)}"
            )
        self.event_shape, self.data_std, self.moments = tuple(event_shape), float(data_std), moments
        self.label: int | Tensor | None = None
        self._moments_of_all = moments

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Type of the network's parameters, and so of the states."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device of the network's parameters."""
        return next(self.network.parameters()).device

    @property
    def num_classes(self) -> int:
        """Number of classes K that the network knows; 0 for one without labels."""
        return int(getattr(self.network, "num_classes", 0))

    def given(self, label: int | Tensor) -> NetworkModel:
        """The score model of one class, with its moments where they are known.

        Args:
            label: 0 to K - 1, or K for the null class ("no label"), with the moments of all data; or labels
                with shape (B,), integers, for states of exactly these B samples (as in training).

        Raises:
            ValueError: a network without classes, a label out of range, or labels of another shape or type.
        """
        count = self.num_classes
        if count == 0:
            raise ValueError("label needs a network with classes, got one without; build it with num_classes")
        if isinstance(label, Tensor):
            if label.ndim != 1 or label.dtype.is_floating_point or label.dtype == torch.bool:
                raise ValueError(
                    f"labels must be integers with shape (B,), got {label.dtype} with shape "
                    f"{tuple(label.shape)}"
                )
            low, high = (int(label.min()), int(label.max())) if len(label) else (0, 0)
        else:
            low = high = label = operator.index(label)
        if low < 0 or high > count:
            wrong = low if low < 0 else high
            raise ValueError(
                f"label must be one of the classes 0 .. {count - 1}, or {count} for none, got {wrong}"
            )
        view = copy.copy(self)
        view.label, view.moments = label, self._moments_of_all
        if isinstance(label, int) and label < count and self.class_moments is not None:
            view.moments = self.class_moments[label]
        return view

    def raw(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output at x_t with shape (B, *) and t with shape () or (B,)."""
        alpha_t, sigma_t = self.sde.alpha(t), self.sde.sigma(t)
        c_in = (alpha_t.square() * self.data_std**2 + sigma_t.square()).rsqrt()
        c_noise = (TIME_SCALE / self.sde.T * t).to(device=x_t.device, dtype=x_t.dtype).expand(x_t.shape[0])
        if self.label is None:
            return self.network(expand_like(c_in, x_t) * x_t, c_noise)
        labels = torch.as_tensor(self.label, device=x_t.device)
        labels = labels.expand(x_t.shape[0]) if labels.ndim == 0 else labels
        return self.network(expand_like(c_in, x_t) * x_t, c_noise, labels)
