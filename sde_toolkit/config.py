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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from ml_collections import FrozenConfigDict as Config
from torch import Tensor, nn

from sde_toolkit import configs, data, features, grids, likelihood_config, metrics, networks, samplers
from sde_toolkit.calibrate import calibrated
from sde_toolkit.compare import Candidate, Metric
from sde_toolkit.loss import DenoisingLoss
from sde_toolkit.moments import Moments
from sde_toolkit.overrides import Schema, Variants, complete, defaults, nearest, override, read_json, to_json
from sde_toolkit.sampler_config import FIELDS, NAMES, PREDICTORS, SAMPLERS, fields_of
from sde_toolkit.score import PREDICTIONS, TIME_SCALE, NetworkModel, ScoreModel
from sde_toolkit.sde import VESDE, VPSDE, CosineBeta, ForwardSDE, LinearBeta, SubVPSDE
from sde_toolkit.state import Optimization

_TOY = {"num_train": 8192, "num_test": 2048, "seed": 0}
_NETWORK = {"predicts": "noise", "num_classes": 0, "max_angle": networks.MAX_ANGLE}
_BETA = {"beta_min": 0.1, "beta_max": 20.0}

SCHEMA: Schema = {
    "seed": 0,
    "data": Variants(
        {"digits": {"training": "uniform"}, "ring": _TOY, "checkerboard": _TOY,
         "moons": _TOY | {"noise": 0.05}, "swissroll": _TOY | {"noise": 0.5}}
    ),
    "sde": Variants(
        {"vp": _BETA, "vp_cosine": {"s": 0.008}, "subvp": _BETA, "ve": {"sigma_min": 0.01, "sigma_max": 50.0}}
    ),
    "model": Variants(
        {"unet": _NETWORK | {"channels": (32, 64), "layers_per_block": 1, "attention_levels": (),
                             "num_groups": 8, "patch_size": 1, "dropout": 0.0, "fourier": ()},
         "mlp": _NETWORK | {"width": 128, "depth": 3, "num_frequencies": 32}}
    ),
    "loss": {"weighting": "noise", "time_sampling": "stratified", "t_min": 1e-5, "antithetic_nsr": 0.0,
             "second_order": 0.0, "levels": 0},
    "optimization": {"learning_rate": 1e-3, "warmup_steps": 100, "decay_steps": 0, "betas": (0.9, 0.99),
                     "weight_decay": 0.0, "max_grad_norm": 1.0, "ema_decay": 0.9995},
    "training": {"num_steps": 2000, "batch_size": 128, "checkpoint_every": 250, "log_every": 10, "keep": 2,
                 "label_dropout": 0.1},
    "sampling": dict(FIELDS),
    "likelihood": dict(likelihood_config.FIELDS),
    "comparison": {"samplers": ("ddim",), "num_steps": (5, 10, 20, 50), "num_samples": 600, "seeds": (0,),
                   "metrics": ("energy",), "real": "all"},
}  # fmt: skip


def base_config(data: str = "digits", sde: str = "vp", model: str = "unet") -> ConfigDict:
    """A configuration with every default, for a ``get_config()`` to start from and change.

    Raises:
        ValueError: an unknown name.
    """
    return defaults(SCHEMA, {"data": data, "sde": sde, "model": model})


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
    _need("config.model.predicts", config.model.predicts, PREDICTIONS)
    if config.data.name == "digits":
        _need("config.data.training", config.data.training, data.BIN_VARIANCE)
    _need("config.sampling.sampler", config.sampling.sampler, SAMPLERS)
    _need("config.sampling.predictor", config.sampling.predictor, PREDICTORS)
    _need("config.sampling.grid", config.sampling.grid, (*GRIDS, OWN_GRID, EXPLICIT_GRID, CALIBRATED_GRID))
    for field, valid in NAMES.items():
        _need(f"config.sampling.{field}", config.sampling[field], valid)
    for name in config.comparison.samplers:
        _need("config.comparison.samplers", name, SAMPLERS)
    for name in config.comparison.metrics:
        _need("config.comparison.metrics", name, DISTANCES)
    _need("config.comparison.real", config.comparison.real, REAL)
    _need("config.likelihood.split", config.likelihood.split, REAL)
    for field, names in likelihood_config.NAMES.items():
        _need(f"config.likelihood.{field}", config.likelihood[field], names)
    return Config(config)


def _need(what: str, name: str, valid: Iterable[str]) -> None:
    if name not in valid:
        raise ValueError(f"{what} {name!r} is unknown; {nearest(name, valid)}")


def build_dataset(config: Config) -> data.Dataset:
    """The data set of ``config.data``."""
    makers: dict[str, Callable[..., data.Dataset]] = {
        "digits": data.digits, "ring": data.ring, "moons": data.moons, "checkerboard": data.checkerboard,
        "swissroll": data.swissroll,
    }  # fmt: skip
    return makers[config.data.name](**_options(config.data))


def build_sde(config: Config) -> ForwardSDE:
    """The forward process of ``config.sde``."""
    options = _options(config.sde)
    makers: dict[str, Callable[[], ForwardSDE]] = {
        "vp": lambda: VPSDE(LinearBeta(**options)),
        "vp_cosine": lambda: VPSDE(CosineBeta(**options)),
        "subvp": lambda: SubVPSDE(LinearBeta(**options)),
        "ve": lambda: VESDE(**options),
    }
    return makers[config.sde.name]()


def build_network(config: Config, event_shape: tuple[int, ...], data_std: float = 1.0) -> nn.Module:
    """The network of ``config.model`` for this event shape; ``config.seed`` draws its initial weights.

    ``data_std``, of the data, tells Fourier features how much noise there is in what the network sees.
    """
    makers: dict[str, Callable[..., nn.Module]] = {"unet": networks.UNet, "mlp": networks.MLP}
    options = _options(config.model)
    del options["predicts"]
    if options.get("fourier"):
        options["noise_level"] = _noise_level(build_sde(config), data_std)
    return makers[config.model.name](event_shape, seed=config.seed, **options)


def _noise_level(sde: ForwardSDE, data_std: float) -> Callable[[Tensor], Tensor]:
    """Time feature -> standard deviation of the noise in a state that is scaled to unit variance."""

    def level(c: Tensor) -> Tensor:
        nsr = sde.nsr(c.double() * (sde.T / TIME_SCALE))
        return nsr / (data_std**2 + nsr.square()).sqrt()

    return level


def build_model(
    config: Config,
    event_shape: tuple[int, ...],
    data_std: float,
    moments: Moments | None = None,
    class_moments: Sequence[Moments] | None = None,
) -> NetworkModel:
    """The untrained score model: the network of ``config.model`` under the process of ``config.sde``."""
    network, sde = build_network(config, event_shape, data_std), build_sde(config)
    predicts = config.model.predicts
    return NetworkModel(network, sde, predicts, event_shape, data_std, moments, class_moments)


def build_loss(config: Config) -> DenoisingLoss:
    """Denoising score matching as ``config.loss`` says."""
    return DenoisingLoss(**config.loss.to_dict())


def build_optimization(config: Config) -> Optimization:
    """The rule of the updates in ``config.optimization``."""
    return Optimization(**config.optimization.to_dict())


def build_grid(name: str) -> grids.Grid:
    """The time grid of this name.

    Raises:
        ValueError: the name is unknown.
    """
    _need("grid", name, GRIDS)
    return GRIDS[name]


def build_sampler(
    config: Config,
    name: str | None = None,
    num_steps: int | None = None,
    model: ScoreModel | None = None,
) -> samplers.Sampler:
    """A sampler with the options of ``config.sampling`` that it takes.

    Args:
        config: its section ``sampling`` is used.
        name: ``config.sampling.sampler`` if not given.
        num_steps: ``config.sampling.num_steps`` if not given; without effect on the adaptive samplers.
        model: what will be sampled; only the sampler "default" and the grid "calibrated", which are made for
            one, need it.

    Raises:
        ValueError: the name is unknown, an option is out of range, or the model is missing.
    """
    name = config.sampling.sampler if name is None else name
    _need("sampler", name, SAMPLERS)
    section = config.sampling
    count = section.num_steps if num_steps is None else num_steps
    if section.grid != CALIBRATED_GRID or "grid" not in sampler_options(name, section):
        return SAMPLERS[name].build(count, section, _grid(section, count), model)
    if model is None:
        raise ValueError("grid 'calibrated' is found for a model: build the sampler with model=")
    sampler = SAMPLERS[name].build(count, section, None, model)
    options = {"num_samples": section.calibration_samples, "cache": section.calibration_cache or None}
    return calibrated(sampler, model, **options)


def _grid(section: Config, num_steps: int) -> grids.Grid | None:
    """The grid that ``config.sampling`` names; None for the sampler's own."""
    if section.grid in (OWN_GRID, CALIBRATED_GRID):
        return None
    if section.grid != EXPLICIT_GRID:
        return build_grid(section.grid)
    if len(section.times) != num_steps + 1:
        raise ValueError(
            f"config.sampling.times must have num_steps + 1 = {num_steps + 1} times, got {len(section.times)}"
        )
    return grids.Explicit(section.times)


def is_adaptive(name: str) -> bool:
    """Whether this sampler chooses its own steps by tolerances."""
    _need("sampler", name, SAMPLERS)
    return SAMPLERS[name].adaptive


def sampler_options(name: str, section: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Fields of ``config.sampling`` that have an effect on the sampler of this name.

    Args:
        name: of the sampler.
        section: ``config.sampling``; without it, all fields that may have an effect.

    Raises:
        ValueError: the name is unknown.
    """
    _need("sampler", name, SAMPLERS)
    return fields_of(name, section)


def build_candidates(config: Config, model: ScoreModel | None = None) -> list[Candidate]:
    """Every sampler of ``config.comparison`` at every step count, the adaptive ones once.

    The model is that of ``build_sampler``.
    """
    candidates = []
    for name in config.comparison.samplers:
        for num_steps in (None,) if is_adaptive(name) else config.comparison.num_steps:
            sampler = build_sampler(config, name, num_steps, model)
            candidates.append(Candidate(name, num_steps, sampler, sampler.settings))
    return candidates


def build_metrics(config: Config, dataset: data.Dataset) -> list[Metric]:
    """The distances of ``config.comparison`` to the real data that it names; the first one is the headline.

    Raises:
        ValueError: the Frechet distance on data other than the digits, which have the only features.
    """
    real = REAL[config.comparison.real](dataset)
    made = []
    for key in config.comparison.metrics:
        if key == "frechet" and dataset.name != "digits":
            raise ValueError(
                f"metric 'frechet' needs features, which only the digits have, got data {dataset.name!r}; "
                "use --config.comparison.metrics=energy,sliced_wasserstein"
            )
        name, build = DISTANCES[key]
        made.append(Metric(name, build(), real, {"real": config.comparison.real, "num_real": len(real)}))
    return made


def held_out(config: Config, dataset: data.Dataset) -> Tensor:
    """The examples of ``config.likelihood``, with shape (M, *) in model scale."""
    x = REAL[config.likelihood.split](dataset)
    return x[: config.likelihood.num_examples] if config.likelihood.num_examples else x


def raw_examples(config: Config, dataset: data.Dataset) -> Tensor:
    """The examples of ``config.likelihood``, with shape (M, *): grey levels, or in model scale."""
    splits = {"train": (dataset.train,), "test": (dataset.test,), "all": (dataset.train, dataset.test)}
    x = torch.cat(splits[config.likelihood.split])
    return x[: config.likelihood.num_examples] if config.likelihood.num_examples else x


def likelihood_options(config: Config) -> dict[str, Any]:
    """Arguments of ``sde_toolkit.likelihood.log_likelihood`` as ``config.likelihood`` says."""
    return likelihood_config.build_options(config.likelihood)


def _options(section: Config) -> dict[str, Any]:
    return {name: value for name, value in section.to_dict().items() if name != "name"}


REAL: dict[str, Callable[[data.Dataset], Tensor]] = {
    "train": lambda dataset: dataset.scaled_train(),
    "test": lambda dataset: dataset.scaled_test(),
    "all": lambda dataset: torch.cat([dataset.scaled_train(), dataset.scaled_test()]),
}

DISTANCES: dict[str, tuple[str, Callable[[], metrics.Distance]]] = {
    "frechet": (
        "Frechet distance",
        lambda: metrics.OnFeatures(features.digit_features(), metrics.FrechetDistance()),
    ),
    "sliced_wasserstein": ("sliced Wasserstein", metrics.SlicedWasserstein),
    "energy": ("energy distance", metrics.EnergyDistance),
    "mmd": ("squared MMD", metrics.MMD),
}
"""Name -> the heading of its column, and how it is built."""

GRIDS: dict[str, grids.Grid] = {
    "uniform": grids.uniform, "quadratic": grids.quadratic, "log_snr": grids.log_snr, "karras": grids.karras,
    "arctan": grids.arctan, "arcsinh": grids.arcsinh, "rectified": grids.rectified, "cosine": grids.cosine,
    "trailing": grids.trailing, "leading": grids.leading, "linspace": grids.linspace,
}  # fmt: skip

OWN_GRID = "own"
"""Stands for the grid of the sampler's own paper."""

EXPLICIT_GRID, CALIBRATED_GRID = "explicit", "calibrated"
"""Stand for the times of ``config.sampling.times``, and for those found for the model."""
