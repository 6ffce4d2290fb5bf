"""Forward processes in words: what a file says of one, and the process for the words.

A process of this library is its name and its parameters, a chain its tables.  A process of yours is its name
alone, so whoever reads the file must have it.  Every description also holds

    t, alpha(t), sigma(t)      at 17 times from 0 to T

by which a process that is given is known to be the right one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.sdes.beta import Beta, CosineBeta, LinearBeta
from sde_toolkit.sdes.chain import Chain
from sde_toolkit.sdes.chain_sde import ChainSDE
from sde_toolkit.sdes.rectified import RectifiedFlow
from sde_toolkit.sdes.sde import VESDE, VPSDE, ForwardSDE, SubVPSDE

_NUM_TIMES = 17
_TOLERANCE = 1e-6
_RATES: dict[str, type[Beta]] = {"LinearBeta": LinearBeta, "CosineBeta": CosineBeta}
_WITH_RATE: dict[str, type[VPSDE | SubVPSDE]] = {"VPSDE": VPSDE, "SubVPSDE": SubVPSDE}
_TABLES = ("alphas", "sigmas", "times")


def describe_process(sde: ForwardSDE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a process, as JSON holds it, and its tables."""
    t = torch.linspace(0, sde.T, _NUM_TIMES, dtype=torch.float64)
    levels = torch.stack([t, sde.alpha(t), sde.sigma(t)], 1).tolist()
    found: dict[str, Any] = {"name": type(sde).__name__, "known": True, "text": repr(sde), "levels": levels}
    if type(sde) in (VPSDE, SubVPSDE):
        beta = sde.beta  # type: ignore[attr-defined]
        if type(beta) in (LinearBeta, CosineBeta):
            rate = {field.name: float(getattr(beta, field.name)) for field in dataclasses.fields(beta)}
            return found | {"rate": {"name": type(beta).__name__, **rate}}, {}
    elif type(sde) is VESDE:
        return found | {"sigma_min": sde.sigma_min, "sigma_max": sde.sigma_max}, {}
    elif type(sde) is RectifiedFlow:
        return found | {"T": sde.T}, {}
    elif type(sde) is ChainSDE:
        return found, {name: getattr(sde.chain, name) for name in _TABLES}
    return found | {"known": False}, {}


def described_process(
    description: Mapping[str, Any], tables: Mapping[str, Tensor], sde: ForwardSDE | None = None
) -> ForwardSDE:
    """The process that ``describe_process`` described; ``sde``, where it is given, if it is that one.

    Raises:
        ValueError: the description is broken, that of a process of yours and ``sde`` is None, or ``sde`` is
            another one.
    """
    try:
        text = str(description["text"])[:200]
        if sde is None:
            if not description["known"]:
                raise _Unknown(
                    f"sde must be given for a process that is not of this library, {text}; pass it as sde="
                )
            return _rebuilt(description, tables)
        t, alpha, sigma = torch.tensor(description["levels"], dtype=torch.float64).unbind(1)
    except _Unknown:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        raise ValueError(f"the description of the process is broken ({error})") from error
    fits = math.isclose(float(t[-1]), sde.T, rel_tol=_TOLERANCE)
    for wanted, got in ((alpha, sde.alpha(t)), (sigma, sde.sigma(t))):
        fits = fits and torch.allclose(wanted, got.double(), rtol=_TOLERANCE, atol=1e-12, equal_nan=True)
    if not fits:
        raise ValueError(f"sde must be the process of the model, {text}, got {sde!r}, which has other levels")
    return sde


class _Unknown(ValueError):
    pass


def _rebuilt(description: Mapping[str, Any], tables: Mapping[str, Tensor]) -> ForwardSDE:
    name = description["name"]
    if name in _WITH_RATE:
        rate = dict(description["rate"])
        return _WITH_RATE[name](_RATES[rate.pop("name")](**rate))
    if name == "VESDE":
        return VESDE(description["sigma_min"], description["sigma_max"])
    if name == "RectifiedFlow":
        return RectifiedFlow(description["T"])
    if name == "ChainSDE":
        return ChainSDE(Chain(*(tables[table] for table in _TABLES)))
    raise ValueError(f"there is no process {name!r}")
