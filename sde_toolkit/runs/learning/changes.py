"""Fields that may change while a run is trained, where the caller allows each by name.

A run goes on under the configuration that it began with, or is refused.  ``ALLOWED`` are the fields without
which a network, its data and its loss are the same; a change of one is written down in the configuration
that every later checkpoint holds:

    training.changes = "optimization.learning_rate=0.001 until step 500"

with the value of before.  A run with changes is not the run of either configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from sde_toolkit.config import Config, build_optimization, override_config, trained_sections
from sde_toolkit.training import Checkpoint, config_differences

ALLOWED = (
    *(f"optimization.{name}" for name in ("learning_rate", "warmup_steps", "decay_steps", "schedule")),
    *(f"optimization.{name}" for name in ("betas", "weight_decay", "max_grad_norm", "ema_decay")),
    "training.batch_size",
    "training.label_dropout",
)
"""The fields that may."""


def check_allowed(fields: Sequence[str]) -> tuple[str, ...]:
    """The fields without "config."; refused with a ValueError if one may not change."""
    names = tuple(field.strip().removeprefix("config.") for field in fields)
    for name in names:
        if name not in ALLOWED:
            raise ValueError(
                f"allow must name fields among {', '.join(ALLOWED)}, got {name!r}; for anything else train "
                "again in another workdir"
            )
    return names


def with_changes(checkpoint: Checkpoint, config: Config, allow: Sequence[str]) -> tuple[Checkpoint, Config]:
    """The checkpoint as if it had been trained under the allowed fields, and the configuration that says so.

    Fields that came after the checkpoint have their defaults, which is how the run was trained.

    Raises:
        ValueError: a field was changed and nothing is left to train, or it was not allowed.
    """
    stored = trained_sections(checkpoint.config)
    written = [text for text in stored.training.changes.split("; ") if text]
    changed = {}
    for path in allow:
        section, _, name = path.partition(".")
        old, new = stored[section][name], config[section][name]
        if old != new:
            changed[path] = new
            written.append(f"{path}={_shown(old)} until step {checkpoint.step}")
    config = override_config(config, {"training.changes": "; ".join(written)})
    as_if = override_config(stored, changed)
    differing = config_differences(as_if.to_dict(), config.to_dict())
    names = [text.partition(":")[0] for text in differing]
    if names and all(name in ALLOWED for name in names):
        raise ValueError(
            f"config must be that of {checkpoint.path}, got other values: {'; '.join(differing)}; restore "
            f"the former values, use another workdir, or go on under these with --allow={','.join(names)}"
        )
    if changed and checkpoint.step >= config.training.num_steps:
        raise ValueError(
            f"nothing is left to train under the new {', '.join(changed)}: all {checkpoint.step} steps are "
            "made; add --config.training.num_steps=N"
        )
    rule = checkpoint.run.get("optimization")
    run = dict(checkpoint.run)
    if isinstance(rule, dict):
        fresh = asdict(build_optimization(as_if))
        own = {path.partition(".")[2] for path in changed if path.startswith("optimization.")}
        run["optimization"] = rule | {name: fresh[name] for name in own}
    return replace(checkpoint, config=as_if.to_dict(), run=run), config


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
