"""Configurations: their schema, and the only place where names become objects.

A configuration is a tree of sections (``base``), a frozen ``ml_collections`` ConfigDict once it is used:
``load_config`` reads one, ``build_*`` turn its parts into objects.
"""

from sde_toolkit.config import configs
from sde_toolkit.config.base import SCHEMA, base_config
from sde_toolkit.config.builders import (
    METHODS,
    build_candidates,
    build_chain,
    build_dataset,
    build_grid,
    build_loss,
    build_method,
    build_metrics,
    build_model,
    build_network,
    build_optimization,
    build_sampler,
    build_sde,
    config_for,
    held_out,
    is_adaptive,
    likelihood_options,
    resolve_device,
    resolve_dtype,
    sampler_options,
)
from sde_toolkit.config.description import Field, describe_fields, list_fields
from sde_toolkit.config.likelihood_fields import BOUNDS, DEQUANTIZERS, example_conditions, raw_examples
from sde_toolkit.config.loading import (
    checkpoint_config,
    config_from_json,
    config_json,
    config_names,
    load_config,
    override_config,
    parse_config,
    trained_sections,
)
from sde_toolkit.config.names import AUTOCAST, OWN_MODEL, REAL
from sde_toolkit.config.sampler_fields import SAMPLERS, changed_fields, describe_sampler
from sde_toolkit.config.schema import split_list
from sde_toolkit.config.trees import Config

__all__ = [
    "AUTOCAST",
    "BOUNDS",
    "DEQUANTIZERS",
    "METHODS",
    "OWN_MODEL",
    "REAL",
    "SAMPLERS",
    "SCHEMA",
    "Config",
    "Field",
    "base_config",
    "build_candidates",
    "build_chain",
    "build_dataset",
    "build_grid",
    "build_loss",
    "build_method",
    "build_metrics",
    "build_model",
    "build_network",
    "build_optimization",
    "build_sampler",
    "build_sde",
    "changed_fields",
    "checkpoint_config",
    "config_for",
    "config_from_json",
    "config_json",
    "config_names",
    "configs",
    "describe_fields",
    "describe_sampler",
    "example_conditions",
    "held_out",
    "is_adaptive",
    "likelihood_options",
    "list_fields",
    "load_config",
    "override_config",
    "parse_config",
    "raw_examples",
    "resolve_device",
    "resolve_dtype",
    "sampler_options",
    "split_list",
    "trained_sections",
]
