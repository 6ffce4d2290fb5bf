"""One-liners that make a score model of a callable.

    from_denoiser(D, (3, 32, 32))                         D(x, sigma) -> x0_hat: EDM, k-diffusion
    from_edm(net)                                         net(x, sigma, class_labels), as in EDM's code
    from_epsilon(eps, VPSDE(), (3, 32, 32), time="999t")  eps(x_t, c) -> z_hat in continuous time
    from_epsilon(eps, Chain.cosine(1000), (3, 32, 32))    eps(x_t, i), i = 0 .. 999: DDPM, guided-diffusion
    from_epsilon(v, RectifiedFlow(), (2,), predicts="flow")                  flow matching

A denoiser sees x0 + n z whatever the process is, see the module ``denoisers``: under VP it is asked at
x_t / alpha and sigma / alpha.  guided-diffusion's networks with learned variances return twice the channels:
``learned_variance=True`` keeps the second half for the bounds and for ``ddpm(variance="learned")``; "log" and
"value" are other conventions of it (``variances``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import nn

from sde_toolkit.interop.denoisers import CalledNetwork, ForeignModel, Time
from sde_toolkit.interop.variances import FractionNetwork, VarianceKind
from sde_toolkit.models import IndexedModel, ModuleModel, Moments, Prediction
from sde_toolkit.sdes import VESDE, Chain, ForwardSDE
from sde_toolkit.utils import checked

EDM_RANGE = (0.002, 80.0)
"""EDM's noise levels, sigma_min and sigma_max."""


def _called(
    network: Callable[..., Any],
    num_classes: int | None,
    one_hot: bool,
    argument: str | None,
    halved: bool = False,
) -> CalledNetwork:
    """The callable as a network; raises ValueError for classes that it cannot have, TypeError for one that
    takes fewer than two arguments."""
    _check_call(network.forward if isinstance(network, nn.Module) else network)
    if num_classes is None:
        own = getattr(network, "num_classes", 0)
        num_classes = own if isinstance(own, int) else 0
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, got {num_classes}")
    if one_hot and not num_classes:
        raise ValueError("one_hot needs num_classes, the length of a row of labels, got none; give it")
    return CalledNetwork(network, num_classes, one_hot, argument, halved)


def _check_call(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin, whose arguments are not known
        return
    try:
        signature.bind_partial(None, None)
    except TypeError:
        raise TypeError(
            "network must take two arguments, the state and the number that tells it the noise level, got "
            f"one that is called as {signature}; wrap it, as in lambda x, c: network(x)"
        ) from None


@checked
def from_denoiser(
    denoiser: nn.Module | Callable[..., Any],
    event_shape: tuple[int, ...],
    sde: ForwardSDE | None = None,
    *,
    predicts: Prediction | str = "data",
    time: Time = "sigma",
    data_std: float = 1.0,
    num_classes: int | None = None,
    one_hot: bool = False,
    argument: str | None = None,
    learned_variance: bool = False,
    condition_shape: tuple[int, ...] | None = None,
    moments: Moments | None = None,
    class_moments: Sequence[Moments] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ForeignModel:
    """A score model around D(y, sigma), y = x0 + sigma z, as in EDM and k-diffusion.

    Args:
        denoiser: called as ``denoiser(y, sigma)`` with y of shape (B, *) and sigma of shape (B,), or with a
            condition as well.  It returns a tensor with the shape of y, alone, in a tuple of one or in a
            field ``sample``.
        event_shape: the shape D of one sample.
        sde: the process to run it under; VESDE(.002, 80), with EDM's levels, when None.  Any process will
            do whose noise-to-signal ratios the denoiser knows.
        predicts: what it returns of y at the noise level sigma: "data" (D itself), "noise" (which is also
            dy/dsigma, "flow"), "score", "velocity", or "edm" (the F of D = c_skip y + c_out F).
        time: the number it takes for the level, see ``Time``.
        data_std: sigma_data of "edm", and the scale of the data for samplers without moments.
        num_classes: number of classes; the network's own attribute when None.
        one_hot: whether it takes labels as rows (B, K), zeros for "no label".
        argument: the name of its argument for a condition; the third by position when None.
        learned_variance: whether it returns (B, 2 C, *), as guided-diffusion's networks; the second half is
            left out, since variances of steps have no place in continuous time (``from_epsilon`` keeps them
            for a chain).
        condition_shape, moments, class_moments, dtype, device: as for ``ModuleModel``.

    Raises:
        ValueError, TypeError: as for ``ForeignModel``.
    """
    return ForeignModel(
        _called(denoiser, num_classes, one_hot, argument, halved=learned_variance),
        VESDE(*EDM_RANGE) if sde is None else sde,
        predicts, event_shape, "x_t / alpha", time, data_std, moments, class_moments, condition_shape, dtype,
        device,
    )  # fmt: skip


@checked
def from_edm(
    network: nn.Module,
    sde: ForwardSDE | None = None,
    *,
    event_shape: tuple[int, ...] | None = None,
    moments: Moments | None = None,
    class_moments: Sequence[Moments] | None = None,
) -> ForeignModel:
    """A score model around a network of EDM's code, ``net(x, sigma, class_labels) -> D``.

    Args:
        network: with the attributes ``img_channels``, ``img_resolution``, ``sigma_data`` and ``label_dim``
            (0 for none) of EDM's classes, where they are not given.
        sde: as for ``from_denoiser``.
        event_shape: the shape (C, H, W) of one image; that of the attributes when None.
        moments, class_moments: of the data, and of every class.

    Raises:
        ValueError, TypeError: a network without these attributes, and what ``from_denoiser`` refuses.
    """
    channels, side = getattr(network, "img_channels", None), getattr(network, "img_resolution", None)
    if event_shape is None and not (isinstance(channels, int) and isinstance(side, int)):
        raise ValueError(
            "network must have the attributes img_channels and img_resolution of EDM's networks, got "
            f"{type(network).__name__} without them; give event_shape"
        )
    if event_shape is None:
        assert isinstance(channels, int)
        assert isinstance(side, int)
        event_shape = (channels, side, side)
    classes = getattr(network, "label_dim", 0)
    classes = classes if isinstance(classes, int) else 0
    data_std = getattr(network, "sigma_data", None)
    return from_denoiser(
        network, event_shape, sde, data_std=0.5 if data_std is None else float(data_std),
        num_classes=classes, one_hot=classes > 0, argument="class_labels" if classes else None,
        moments=moments, class_moments=class_moments,
    )  # fmt: skip


@checked
def from_epsilon(
    network: nn.Module | Callable[..., Any],
    sde: ForwardSDE | Chain,
    event_shape: tuple[int, ...],
    *,
    predicts: Prediction | str = "noise",
    time: Time = "t",
    data_std: float = 1.0,
    num_classes: int | None = None,
    one_hot: bool = False,
    argument: str | None = None,
    learned_variance: bool | VarianceKind = False,
    condition_shape: tuple[int, ...] | None = None,
    moments: Moments | None = None,
    class_moments: Sequence[Moments] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ModuleModel:
    """A score model around eps(x_t, c): a network that sees x_t itself.

    Args:
        network: called as ``network(x_t, c)`` with x_t of shape (B, *) and c of shape (B,), or with a
            condition as well; it returns as for ``from_denoiser``.
        sde: a process in continuous time; or the chain of levels at whose indices it was trained, where
            c = 0 .. N - 1 are integers, 0 with the least noise.
        event_shape: the shape D of one sample.
        predicts: what it returns; "flow" is dx_t/dt of the process.
        time: what c is in continuous time, see ``Time``; an index has no choice.
        learned_variance: whether it returns (B, 2 C, *), the second half of which is a learned variance;
            for chains.  True or "range": the fraction between two bounds, Improved DDPM's and
            guided-diffusion's LEARNED_RANGE; "log": the log variance, guided-diffusion's LEARNED; "value":
            the variance, diffusers' "learned".
        data_std, num_classes, one_hot, argument, condition_shape, moments, class_moments, dtype, device: as
            for ``from_denoiser``.

    Raises:
        ValueError, TypeError: as for ``ForeignModel`` or ``IndexedModel``; ValueError also for a time or a
            learned variance that the process has not.
    """
    called = _called(network, num_classes, one_hot, argument)
    if isinstance(sde, Chain):
        if time != "t":
            raise ValueError(f"time must be left out for a chain, whose networks take indices, got {time!r}")
        kinds = get_args(VarianceKind)
        if learned_variance not in (True, False, *kinds):
            raise ValueError(
                f"learned_variance must be a bool or one of {', '.join(kinds)}, got {learned_variance!r}"
            )
        network = called
        if isinstance(learned_variance, str) and learned_variance != "range":
            network = FractionNetwork(called, sde, learned_variance)
        return IndexedModel(
            network, sde, predicts, event_shape, None, None if data_std == 1.0 else data_std, moments,
            class_moments, condition_shape, dtype, device, bool(learned_variance),
        )  # fmt: skip
    if learned_variance:
        raise ValueError(
            "learned_variance needs the chain whose steps have these variances, got "
            f"{type(sde).__name__}; give the Chain as sde"
        )
    return ForeignModel(
        called, sde, predicts, event_shape, "x_t", time, data_std, moments, class_moments, condition_shape,
        dtype, device,
    )  # fmt: skip
