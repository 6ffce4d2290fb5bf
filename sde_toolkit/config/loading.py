"""Reading configurations: by name, from files, from checkpoints, with overrides; checked and frozen.

``load_config("digits", {"training.batch_size": "64"})`` reads the module of this name in
``sde_toolkit/config/configs/``, or a file of yours (.py with a function ``get_config()``, or .json), checks
every name and type, and freezes the result.

A sampler may be written with options, ``sampling.sampler = "ddim(eta=0.5)"``, which sets the fields of the
options too; predictions may have diffusers' names.
"""

from __future__ import annotations

import importlib
import pkgutil
import runpy
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sde_toolkit import data
from sde_toolkit.config import configs, likelihood_fields
from sde_toolkit.config.base import NAMES, SCHEMA
from sde_toolkit.config.meanings import check_distinct, check_range
from sde_toolkit.config.metric_fields import checked_metric
from sde_toolkit.config.names import (
    AUTOCAST,
    CHAINS,
    DATA_NAMES,
    DTYPES,
    GRIDS,
    INDEX_SAMPLINGS,
    OWN_GRID,
    REAL,
)
from sde_toolkit.config.sampler_fields import checked_entry, need_names, parse_entry
from sde_toolkit.config.schema import (
    Change,
    Variants,
    defaults,
    flatten,
    nearest,
    need,
    override,
    read_json,
    to_json,
)
from sde_toolkit.config.trees import Config, ConfigDict
from sde_toolkit.models import PREDICTIONS, prediction_name
from sde_toolkit.samplers import find_preset
from sde_toolkit.training import COMPARED_SECTIONS, EMA_PROFILES, SCHEDULES
from sde_toolkit.utils import reading


def config_names() -> list[str]:
    """Names of the configurations that ship with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def load_config(source: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read, override, check and freeze a configuration.

    Args:
        source: a name among ``config_names()``, the path of a .py file with ``get_config()``, which is run,
            or that of a .json file.
        overrides: field -> value, as in ``{"sde.name": "ve", "training.batch_size": 64}``; strings are
            parsed.

    Raises:
        ValueError: an unknown configuration, section, field or name (the nearest valid one is named), a value
            of the wrong type, or a broken file.
    """
    if source in config_names():
        values = _settled(importlib.import_module(f"{configs.__name__}.{source}").get_config())
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
        with reading(path, "a configuration in JSON"):
            return read_json(path.read_text(encoding="utf-8"), source)
    values = _run_file(source)
    if isinstance(values, (ConfigDict, Config)):
        return _settled(values)
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ValueError(
            f"get_config() in {source} must return a ConfigDict, or a dict of sections, got a "
            f"{type(values).__name__}"
        )
    return dict(values)


def _run_file(source: str) -> Any:
    """What ``get_config()`` of a Python file returns; what goes wrong in the file is told with its line."""
    try:
        made = runpy.run_path(source).get("get_config")
        if callable(made):
            return made()
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == source]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = "" if line is None else f", line {line}"
        raise ValueError(
            f"config file {source}{where} cannot be run: {type(error).__name__}: {error}"
        ) from error
    raise ValueError(f"config file {source} must define get_config(), which returns a ConfigDict")


def _settled(config: ConfigDict | Config) -> dict[str, Any]:
    """The values without those defaults that a name, chosen after ``base_config``, has left behind."""
    values = config.to_dict()
    for section, fields in values.items():
        variants = SCHEMA.get(section)
        if not isinstance(variants, Variants) or variants.key not in fields:
            continue
        name = fields[variants.key]
        name = parse_entry(name)[0] if section == "sampling" else name
        chosen = variants.section(f"config.{section}", name)
        for field in [field for field in fields if field not in chosen]:
            if any(variants.fields[owner][field] == fields[field] for owner in variants.owners(field)):
                del fields[field]
    return values


def parse_config(values: Mapping[str, Any]) -> Config:
    """The frozen configuration for a (partial) tree of values: missing fields get their defaults.

    Raises:
        ValueError: an unknown section, field or name, or a value of the wrong type.
    """
    return _checked(override(defaults(SCHEMA, NAMES), _expanded(flatten(values)), SCHEMA))


def trained_sections(values: Mapping[str, Any]) -> Config:
    """The configuration of a checkpoint as far as it decides the weights; the rest has its defaults.

    Raises:
        ValueError: see ``parse_config``.
    """
    return parse_config({name: values[name] for name in COMPARED_SECTIONS if name in values})


def checkpoint_config(values: Mapping[str, Any]) -> Config:
    """The whole configuration of a checkpoint, which an older version may have written.

    What decides the weights must be valid.  A section that is about their use only is left at its defaults,
    with a warning, where its fields are not those of today.

    Raises:
        ValueError: see ``parse_config``.
    """
    config = trained_sections(values)
    for name in (n for n in SCHEMA if n in values and n not in COMPARED_SECTIONS):
        try:
            config = override_config(config, dict(flatten({name: values[name]})))
        except ValueError as error:
            warnings.warn(f"the checkpoint's config.{name} is not used: {error}", stacklevel=2)
    return config


def override_config(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy with fields replaced, as in ``{"sampling.t_min": 1e-4}``; raises like ``load_config``."""
    return _checked(override(ConfigDict(config.to_dict()), _expanded(overrides.items()), SCHEMA))


def _expanded(changes: Iterable[Change]) -> Iterator[Change]:
    """The changes with samplers taken apart into names and options, and predictions under our names."""
    later = []
    for path, value in changes:
        if path == "sampling.sampler" and isinstance(value, str):
            name, options = parse_entry(value)
            yield path, name
            yield from ((f"sampling.{field}", option) for field, option in options.items())
        elif path == "model.predicts" and isinstance(value, str):
            yield path, _prediction(value)
        else:
            later.append((path, value))
    yield from later


def config_json(config: Config) -> str:
    """The configuration as JSON; ``parse_config(json.loads(...))`` gives it back."""
    return to_json(config)


def config_from_json(text: str) -> Config:
    """The configuration written by ``config_json``; raises ValueError for anything else."""
    return parse_config(read_json(text, "config"))


def _prediction(name: str) -> str:
    try:
        return prediction_name(name)
    except ValueError:
        need("config.model.predicts", name, PREDICTIONS)
        raise


def _check_objective(config: ConfigDict) -> None:
    """Refuse an objective that does not go with the process, the network or the data."""
    name = config.loss.name
    if name in ("discrete", "hybrid"):
        need("config.loss.index_sampling", config.loss.index_sampling, INDEX_SAMPLINGS)
        if config.sde.name not in CHAINS:
            raise ValueError(
                f"config.loss.name {name} needs a chain, one of {', '.join(CHAINS)}, got config.sde.name = "
                f"{config.sde.name}; add --config.sde.name=ddpm_cosine"
            )
    if name == "hybrid" and config.model.predicts in ("residual", "flow"):
        raise ValueError(
            "config.model.predicts must be noise, velocity, data, score or edm where the variances are "
            f"learned (loss.name hybrid), got {config.model.predicts}; add --config.model.predicts=velocity"
        )
    if name != "denoising" and config.data.name == "files" and config.data.missing == "mask":
        raise ValueError(
            f"config.loss.name must be denoising where entries may be missing (data.missing=mask), got {name}"
        )


def _checked(config: ConfigDict) -> Config:
    """Refuse unknown names inside the sections, which else would surface only when their object is built, and
    numbers out of range."""
    for path, value in flatten(config.to_dict()):
        check_range(path, value)
    if len(config.optimization.betas) != 2:
        raise ValueError(
            f"config.optimization.betas must be two numbers, as in 0.9,0.99, got {config.optimization.betas}"
        )
    need("config.optimization.schedule", config.optimization.schedule, SCHEDULES)
    need("config.optimization.ema_profile", config.optimization.ema_profile, EMA_PROFILES)
    for field in ("problems", "samplers", "grids", "num_steps", "labels", "seeds", "metrics"):
        check_distinct(f"comparison.{field}", config.comparison[field])
    if sum(bool(config.comparison[field]) for field in ("labels", "conditions", "prompts")) > 1:
        raise ValueError("give config.comparison.labels, .conditions or .prompts, one of them")
    _check_objective(config)
    need("config.dtype", config.dtype, DTYPES)
    need("config.training.autocast", config.training.autocast, AUTOCAST)
    if config.data.name in ("digits", "mnist"):
        need("config.data.training", config.data.training, data.BIN_VARIANCE)
    if config.data.name == "files":
        for field, names in DATA_NAMES.items():
            need(f"config.data.{field}", config.data[field], names)
    need_names("config.sampling.", find_preset(config.sampling.sampler), config.sampling)
    for entry in config.comparison.samplers:
        try:
            checked_entry(entry)
        except ValueError as error:
            raise ValueError(f"config.comparison.samplers: {error}") from None
    for name in config.comparison.grids:
        need("config.comparison.grids", name, (*GRIDS, OWN_GRID))
    for entry in config.comparison.metrics:
        try:
            checked_metric(entry)
        except ValueError as error:
            raise ValueError(f"config.comparison.metrics: {error}") from None
    need("config.comparison.real", config.comparison.real, REAL)
    need("config.likelihood.split", config.likelihood.split, REAL)
    for field, names in likelihood_fields.NAMES.items():
        need(f"config.likelihood.{field}", config.likelihood[field], names)
    return Config(config)
