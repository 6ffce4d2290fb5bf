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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit import data, networks, samplers
from sde_toolkit.config import likelihood_fields as likelihood_config
from sde_toolkit.config.names import CALIBRATED_GRID, DISTANCES, EXPLICIT_GRID, GRIDS, OWN_GRID, REAL
from sde_toolkit.config.sampler_fields import SAMPLERS, fields_of
from sde_toolkit.config.schema import need
from sde_toolkit.config.trees import Config
from sde_toolkit.lab import Candidate, Metric
from sde_toolkit.models import TIME_SCALE, Moments, NetworkModel, ScoreModel
from sde_toolkit.samplers import calibrated, grids
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, ForwardSDE, LinearBeta, SubVPSDE
from sde_toolkit.training import DenoisingLoss, Optimization


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
    need("grid", name, GRIDS)
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
    need("sampler", name, SAMPLERS)
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
    need("sampler", name, SAMPLERS)
    return SAMPLERS[name].adaptive


def sampler_options(name: str, section: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Fields of ``config.sampling`` that have an effect on the sampler of this name.

    Args:
        name: of the sampler.
        section: ``config.sampling``; without it, all fields that may have an effect.

    Raises:
        ValueError: the name is unknown.
    """
    need("sampler", name, SAMPLERS)
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
