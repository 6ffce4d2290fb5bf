"""Configurations: the one place where names become objects.

A configuration is a tree of sections, a frozen ``ml_collections`` ConfigDict once it is used:

    seed          of the training run and of the initial weights
    data          name of the data set and its options
    sde           name of the forward process and its parameters
    model         name of the network, its sizes, and what it predicts
    loss          weighting and times of denoising score matching
    optimization  learning rate, clipping, moving average
    training      numbers of steps, batch size, checkpoints
    sampling      the sampler and its options
    likelihood    held-out log-likelihoods
    comparison    samplers x step counts x seeds, and the distances that judge them

``load_config("digits", {"training.batch_size": "64"})`` reads ``sde_toolkit/configs/digits.py``, or a file
of yours (.py with a function ``get_config()``, or .json), checks every name and type, and freezes the
result.  ``build_*`` turn its parts into objects.
"""

from __future__ import annotations

import importlib
import pkgutil
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_toolkit import data
from sde_toolkit.config import configs
from sde_toolkit.config import likelihood_fields as likelihood_config
from sde_toolkit.config.base import SCHEMA
from sde_toolkit.config.names import CALIBRATED_GRID, DISTANCES, EXPLICIT_GRID, GRIDS, OWN_GRID, REAL
from sde_toolkit.config.sampler_fields import NAMES, PREDICTORS, SAMPLERS
from sde_toolkit.config.schema import (
    complete,
    nearest,
    need,
    override,
    read_json,
    to_json,
)
from sde_toolkit.config.trees import Config, ConfigDict
from sde_toolkit.models import PREDICTIONS


def config_names() -> list[str]:
    """Names of the configurations that ship with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def load_config(source: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read, override, check and freeze a configuration.

    Args:
        source: a name among ``config_names()``, or the path of a .py file with ``get_config()`` (which is
        run), or of
            a .json file.
        overrides: field -> value, as in ``{"sde.name": "ve", "training.batch_size": 64}``; strings are
        parsed.

    Raises:
        ValueError: an unknown configuration, section, field or name (the nearest valid one is named), a
        value of the
            wrong type, or a broken file.
    """
    if source in config_names():
        values = importlib.import_module(f"{configs.__name__}.{source}").get_config().to_dict()
    else:
        values = _read_file(source)
    return override_config(parse_config(values), overrides or {})


def _read_file(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in (".py", ".json"):
        raise ValueError(
            f"config {source!r} is unknown; {nearest(source, config_names())}; "
            "or give the path of a .py or .json file"
        )
    if not path.is_file():
        raise ValueError(f"config file {source} does not exist; valid names: {', '.join(config_names())}")
    if path.suffix == ".json":
        return read_json(path.read_text(), source)
    made = runpy.run_path(source).get("get_config")
    if made is None:
        raise ValueError(f"config file {source} must define get_config(), which returns a ConfigDict")
    values = made()
    return values.to_dict() if isinstance(values, (ConfigDict, Config)) else dict(values)


def parse_config(values: Mapping[str, Any]) -> Config:
    """The frozen configuration for a (partial) tree of values, as a file or a checkpoint holds it.

    Raises:
        ValueError: an unknown section, field or name, or a value of the wrong type.
    """
    names = {"data": "digits", "sde": "vp", "model": "unet"}
    return _checked(complete(values, SCHEMA, names))


def override_config(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy with fields replaced, as in ``{"sampling.t_min": 1e-4}``; raises like ``load_config``."""
    return _checked(override(ConfigDict(config.to_dict()), overrides.items(), SCHEMA))


def config_json(config: Config) -> str:
    """The configuration as JSON; ``parse_config(json.loads(...))`` gives it back."""
    return to_json(config)


def config_from_json(text: str) -> Config:
    """The configuration written by ``config_json``; raises ValueError for anything else."""
    return parse_config(read_json(text, "config"))


def _checked(config: ConfigDict) -> Config:
    """Refuse unknown names inside the sections, which else would surface only when their object is built."""
    need("config.model.predicts", config.model.predicts, PREDICTIONS)
    if config.data.name == "digits":
        need("config.data.training", config.data.training, data.BIN_VARIANCE)
    need("config.sampling.sampler", config.sampling.sampler, SAMPLERS)
    need("config.sampling.predictor", config.sampling.predictor, PREDICTORS)
    need("config.sampling.grid", config.sampling.grid, (*GRIDS, OWN_GRID, EXPLICIT_GRID, CALIBRATED_GRID))
    for field, valid in NAMES.items():
        need(f"config.sampling.{field}", config.sampling[field], valid)
    for name in config.comparison.samplers:
        need("config.comparison.samplers", name, SAMPLERS)
    for name in config.comparison.metrics:
        need("config.comparison.metrics", name, DISTANCES)
    need("config.comparison.real", config.comparison.real, REAL)
    need("config.likelihood.split", config.likelihood.split, REAL)
    for field, names in likelihood_config.NAMES.items():
        need(f"config.likelihood.{field}", config.likelihood[field], names)
    return Config(config)
