"""The section ``likelihood``: its fields, the objects that its names stand for, and the examples it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.config.trees import Config
from sde_toolkit.data import Dataset
from sde_toolkit.likelihood import (
    CORRECTIONS,
    PRIORS,
    PROBE_KINDS,
    Dequantizer,
    Divergence,
    Endpoint,
    ExactDivergence,
    FlowSolver,
    Hutchinson,
    HutchPlusPlus,
    PlaceFlow,
    TruncatedNormalDequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    train_dequantizer,
)
from sde_toolkit.models import ScoreModel
from solvers import AB2, AB3, AB4, BOSH3, DOP853, DOPRI5, HEUN, RK4, TSIT5, Integrator, Method

FIELDS = {
    "split": "test", "num_examples": 0, "divergence": "auto", "target_se": 0.02, "num_probes": 1,
    "probe_kind": "rademacher", "orthogonal": False, "method": "dopri5", "num_steps": 0, "rtol": 1e-4,
    "atol": 1e-4, "t_min": 1e-5, "prior": "gaussian", "endpoint": "none", "dequantization": "uniform",
    "num_importance": 1, "bounds": "none", "batch_size": 256, "num_diagnostic_samples": 8, "seed": 0,
}  # fmt: skip
"""The fields with their defaults; ``meanings`` explains them."""

BOUNDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "continuous": ("continuous",),
    "discrete": ("discrete",),
    "both": ("continuous", "discrete"),
}
"""Name -> the variational bounds that are printed beside."""

DIVERGENCES: dict[str, Callable[[Config], Divergence | Literal["auto"]]] = {
    "auto": lambda c: "auto",
    "exact": lambda c: ExactDivergence(),
    "probes": lambda c: Hutchinson(c.num_probes, c.probe_kind, c.orthogonal),
    "hutch++": lambda c: HutchPlusPlus(c.num_probes, kind=c.probe_kind),
}

METHODS: dict[str, Method] = {
    "bosh3": BOSH3, "dopri5": DOPRI5, "tsit5": TSIT5, "dop853": DOP853, "heun": HEUN, "rk4": RK4, "ab2": AB2,
    "ab3": AB3, "ab4": AB4,
}  # fmt: skip

SCIPY = {"scipy_rk45": "RK45", "scipy_dop853": "DOP853"}
"""Name -> the method of SciPy, which is made where it is asked for: ``solvers.reference`` is slow to load."""


def method_of(name: str) -> Method | Integrator:
    """The method of this name."""
    if name not in SCIPY:
        return METHODS[name]
    from solvers.reference import SciPy

    return SciPy(SCIPY[name])


def _variational(model: ScoreModel, dataset: Dataset, t_min: float) -> Dequantizer:
    """Trained on the spot, on the training data."""
    dequantizer = VariationalDequantizer(PlaceFlow(model.event_shape), dataset.scaling, model.sde)
    train_dequantizer(dequantizer, model, dataset.train[:])
    return dequantizer


DEQUANTIZERS: dict[str, Callable[[ScoreModel, Dataset, float], Dequantizer]] = {
    "uniform": lambda model, dataset, t_min: UniformDequantizer(dataset.scaling, model.sde, t_min),
    "truncated_normal": lambda model, dataset, t_min: TruncatedNormalDequantizer(dataset.scaling, model.sde),
    "variational": _variational,
}
"""Name -> the dequantizer for a model, its data and a t_min, which that of the truncated normal replaces."""

NAMES: dict[str, tuple[str, ...]] = {
    "dequantization": tuple(DEQUANTIZERS),
    "bounds": tuple(BOUNDS),
    "divergence": tuple(DIVERGENCES),
    "probe_kind": PROBE_KINDS,
    "method": (*METHODS, *SCIPY),
    "prior": PRIORS,
    "endpoint": CORRECTIONS,
}
"""Fields that hold a name, and the names."""


def build_options(section: Config) -> dict[str, Any]:
    """Arguments of ``sde_toolkit.likelihood.log_likelihood`` as the section ``likelihood`` says.

    Raises:
        ValueError: a negative number of examples, or a standard error that is not positive.
    """
    count = section.num_diagnostic_samples
    if count < 0:
        raise ValueError(
            f"config.likelihood.num_diagnostic_samples must be at least 0, got {count}; 0 is none"
        )
    if not section.target_se > 0:
        raise ValueError(f"config.likelihood.target_se must be positive, got {section.target_se}")
    steps = section.num_steps or None
    return {
        **{name: section[name] for name in ("t_min", "seed", "batch_size")},
        "divergence": DIVERGENCES[section.divergence](section),
        **({"target_se": section.target_se} if section.divergence == "auto" else {}),
        "solver": FlowSolver(method_of(section.method), section.rtol, section.atol, steps),
        "endpoint": Endpoint(section.endpoint, section.prior),
        "num_diagnostic_samples": count,
    }


def raw_examples(config: Config, dataset: Dataset) -> Tensor:
    """The examples of ``config.likelihood``, with shape (M, *): grey levels, or in model scale."""
    return _of_split(config, dataset.train, dataset.test)


def example_conditions(config: Config, dataset: Dataset) -> Tensor | None:
    """The conditions of these examples, with shape (M, d) or (M, L, d); None for data without."""
    train, test = dataset.conditions_train, dataset.conditions_test
    return None if train is None or test is None else _of_split(config, train, test)


def _of_split(config: Config, train: Any, test: Tensor) -> Tensor:
    """Rows of the split, from a tensor or from examples that are read when they are indexed."""
    splits = {"train": (train,), "test": (test,), "all": (train, test)}
    count = config.likelihood.num_examples or None
    return torch.cat([part[:count] for part in splits[config.likelihood.split]])[:count]
