"""What a configuration of score_sde says of a model: its process, its data and its network.

    process     training.sde, training.continuous;  model.num_scales, beta_min, beta_max, sigma_min, sigma_max
    data        data.image_size, num_channels, centered: [-1, 1], or [0, 1] where that is False
    network     model.name and the fields of its architecture

Only these fields are read.  Each is checked for its type and its range, and what the networks here do not
have is refused.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendix H and its published configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.interop.score_sde.config_file import Unknown, read_fields
from sde_toolkit.utils import check_fields, checked, shown

NAMES = ("ncsnpp", "ddpm")
"""Networks that are rebuilt: NCSN++ and DDPM++ are both "ncsnpp", with the options of all published
configurations.  The published code itself fails with the others (progressive "residual", resblock_type
"ddpm"), which double the resolution by a layer of their own."""

PROCESSES = ("vpsde", "subvpsde", "vesde")
"""Names of the processes."""

_MOST = 1 << 16
_FILTER = (1, 3, 3, 1)
_ONE_OF = {
    "sde": PROCESSES,
    "name": NAMES,
    "nonlinearity": ("swish",),
    "resblock_type": ("biggan",),
    "progressive": ("none", "output_skip"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("positional", "fourier"),
}
_SECTIONS = {
    "sde": "training", "continuous": "training",
    "image_size": "data", "num_channels": "data", "centered": "data",
}  # fmt: skip
"""Sections of the fields that are not in "model"."""


@dataclass(frozen=True)
class ScoreSDEConfig:
    """The fields of a configuration of score_sde that make a model, by their names there.

    Those of NCSN++ alone have defaults, which are without effect on "ddpm".

    Raises:
        ValueError: a value that is out of range, or a network that is not rebuilt here.
    """

    sde: str
    continuous: bool
    name: str
    image_size: int
    num_channels: int
    centered: bool
    num_scales: int
    sigma_min: float
    sigma_max: float
    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float
    resamp_with_conv: bool
    conditional: bool
    scale_by_sigma: bool
    nonlinearity: str = "swish"
    beta_min: float = 0.1
    beta_max: float = 20.0
    fir: bool = False
    fir_kernel: tuple[int, ...] = _FILTER
    skip_rescale: bool = False
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    embedding_type: str = "positional"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in _ONE_OF.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"config: {_where(name)} must be one of {', '.join(allowed)}, got {value!r}")
        for name in ("image_size", "num_channels", "num_scales", "nf", "num_res_blocks"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise ValueError(
                    f"config: {_where(name)} must lie in 1 to {_MOST}, got {getattr(self, name)}"
                )
        if not self.ch_mult or min(self.ch_mult) < 1 or max(self.ch_mult) * self.nf > _MOST:
            raise ValueError(f"config: model.ch_mult must hold positive integers, got {self.ch_mult}")
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.beta_min <= self.beta_max):
            raise ValueError(
                "config: model must have 0 < sigma_min < sigma_max and 0 < beta_min <= beta_max, got "
                f"{self.sigma_min}, {self.sigma_max}, {self.beta_min} and {self.beta_max}"
            )
        self._check_network()

    def _check_network(self) -> None:
        """Refuse what cannot be built, or could not be trained."""
        divisor, groups = 2 ** (len(self.ch_mult) - 1), 32 if self.name == "ddpm" else 4
        if self.image_size % divisor or self.nf % groups:
            raise ValueError(
                f"config: data.image_size must be divisible by {divisor} for {len(self.ch_mult)} levels, "
                f"and model.nf by {groups}, got {self.image_size} and {self.nf}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"config: model.dropout must lie in [0, 1), got {self.dropout}")
        if not self.conditional:
            raise ValueError(
                "config: model.conditional must be True, got False; a network that is not told the noise "
                "level is no score model at all times"
            )
        if self.fir and self.fir_kernel != _FILTER:
            raise ValueError(f"config: model.fir_kernel must be {_FILTER}, got {self.fir_kernel}")
        if self.name == "ncsnpp" and self.progressive == "output_skip" and not self.fir:
            raise ValueError(
                'config: model.fir must be True with progressive "output_skip", got False, with which the '
                "published code itself fails"
            )
        fourier = self.name == "ncsnpp" and self.embedding_type == "fourier"
        if self.continuous and self.sde == "vesde" and not fourier:
            raise ValueError(
                'config: model.embedding_type must be "fourier" for a vesde trained with continuous noise '
                f"levels, got {self.name} with {self.embedding_type!r}"
            )
        if fourier and not (self.continuous and self.sde == "vesde"):
            raise ValueError(
                'config: model.embedding_type must be "positional" for labels that count times, got '
                f'"fourier", the logarithm of a noise level, with {self.sde}, continuous={self.continuous}'
            )

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.num_channels, self.image_size, self.image_size

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each level."""
        return tuple(self.nf * multiple for multiple in self.ch_mult)

    @property
    def noise_levels(self) -> Tensor:
        """The noise levels of the N indices, geometric, the largest first, with shape (N,) in float64."""
        ends = math.log(self.sigma_max), math.log(self.sigma_min)
        return torch.linspace(*ends, self.num_scales, dtype=torch.float64).exp()

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels with attention, those whose resolution is in ``attn_resolutions``."""
        sizes = [self.image_size // 2**k for k in range(len(self.ch_mult))]
        return tuple(k for k, size in enumerate(sizes) if size in self.attn_resolutions)


@checked
def read_score_sde_config(config: Path | str | Mapping[str, Any] | ScoreSDEConfig) -> ScoreSDEConfig:
    """The settings of a model of score_sde.

    Args:
        config: the path of a configuration, a .py file, which is read and not run; or its fields in nested
            dictionaries, as in ``{"training": {"sde": "vesde"}, "data": {...}, "model": {...}}``.

    Raises:
        FileNotFoundError: there is no such file, or none with its defaults.
        ValueError: no configuration of score_sde, a field that is missing or out of range, or a network that
            is not rebuilt here.
        TypeError: a field of another type.
    """
    if isinstance(config, ScoreSDEConfig):
        return config
    nested = read_fields(config) if isinstance(config, (str, Path)) else config
    found: dict[str, Any] = {}
    for field in fields(ScoreSDEConfig):
        section = _SECTIONS.get(field.name, "model")
        part = nested.get(section)
        if not isinstance(part, Mapping):
            raise ValueError(f"config must have the section {section!r}, got {sorted(map(str, nested))}")
        if field.name in part:
            found[field.name] = _typed(field.name, part[field.name], str(field.type))
    if found.get("name", NAMES[0]) not in NAMES:
        raise ValueError(
            f"config: model.name must be one of {', '.join(NAMES)}, got {found['name']!r}, a network that is "
            "not rebuilt here"
        )
    needed = _needed(found)
    missing = [_where(name) for name in needed if name not in found]
    if missing:
        raise ValueError(f"config must set {', '.join(missing)}, which a {found.get('name')} model needs")
    return ScoreSDEConfig(**found)


def _needed(found: Mapping[str, Any]) -> list[str]:
    """The fields that a configuration must set."""
    own = ("fir", "skip_rescale", "resblock_type", "progressive", "progressive_input", "embedding_type")
    rates = ("beta_min", "beta_max")
    needed = [field.name for field in fields(ScoreSDEConfig) if field.name not in _OPTIONAL]
    needed += own if found.get("name") == "ncsnpp" else ()
    return needed + list(rates if found.get("sde") in ("vpsde", "subvpsde") else ())


_OPTIONAL = {
    "nonlinearity", "beta_min", "beta_max", "fir", "fir_kernel", "skip_rescale", "resblock_type",
    "progressive", "progressive_input", "progressive_combine", "embedding_type",
}  # fmt: skip


def _where(name: str) -> str:
    return f"{_SECTIONS.get(name, 'model')}.{name}"


def _typed(name: str, value: Any, kind: str) -> Any:
    """A field with its type; raises TypeError for one of another."""
    if isinstance(value, Unknown):
        raise ValueError(
            f"config: {_where(name)} must be written as a number, a name or a tuple, got {value!r}; the file "
            "is not run, so give the fields as a dictionary"
        )
    known: dict[str, Callable[[Any], bool]] = {
        "str": lambda v: isinstance(v, str),
        "bool": lambda v: isinstance(v, bool),
        "int": _whole,
        "float": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
        "tuple[int, ...]": lambda v: isinstance(v, (tuple, list)) and all(map(_whole, v)),
    }
    if not known[kind](value):
        raise TypeError(f"config: {_where(name)} must be of type {kind}, got {shown(value)}")
    if kind == "str":
        return value.lower()
    if kind == "float":
        return float(value)
    return tuple(value) if kind.startswith("tuple") else value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
