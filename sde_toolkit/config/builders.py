"""From sections of a configuration to the objects that they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit import data, guidance, networks, samplers
from sde_toolkit.config import likelihood_fields
from sde_toolkit.config.metric_fields import build_metric
from sde_toolkit.config.names import CHAINS, DTYPES, GRIDS, REAL
from sde_toolkit.config.sampler_fields import (
    effective_fields,
    entries_on_grids,
    entry_label,
    make_sampler,
    parse_call,
    parse_entry,
    resolve_entry,
)
from sde_toolkit.config.schema import need
from sde_toolkit.config.trees import Config
from sde_toolkit.lab import Candidate, Metric, NamedCondition, Problem
from sde_toolkit.models import TIME_SCALE, IndexedModel, Moments, NetworkModel, NoiseLevel, ScoreModel
from sde_toolkit.samplers import find_preset, grids
from sde_toolkit.sdes import (
    VESDE,
    VPSDE,
    Chain,
    ChainSDE,
    CosineBeta,
    ForwardSDE,
    LinearBeta,
    RectifiedFlow,
    SubVPSDE,
)
from sde_toolkit.training import (
    TIMES_WITH_OPTIONS,
    WEIGHTS_WITH_OPTIONS,
    AdaptiveTimes,
    ChainLoss,
    DenoisingLoss,
    HybridLoss,
    ImportanceIndices,
    IncompleteLoss,
    LearnedWeight,
    Loss,
    Optimization,
    ScoreWeight,
    Simulated,
    SlicedScoreLoss,
)
from sde_toolkit.utils import as_device, named_object
from solvers.terms import expand_like


def build_dataset(config: Config) -> data.Dataset:
    """The data set of ``config.data``.

    Raises:
        ValueError: the source of data of your own is missing, damaged or not that of the configuration.
    """
    if config.data.name == "files":
        options = _options(config.data)
        images = {name: options.pop(name) for name in ("colour", "alpha", "resize", "crop", "on_error")}
        return data.open_data(options.pop("source"), images=data.ImageOptions(**images), **options)
    makers: dict[str, Callable[..., data.Dataset]] = {
        "digits": data.digits, "mnist": data.mnist, "ring": data.ring, "moons": data.moons,
        "checkerboard": data.checkerboard, "swissroll": data.swissroll,
    }  # fmt: skip
    return makers[config.data.name](**_options(config.data))


def config_for(event_shape: tuple[int, ...]) -> str:
    """Name of the configuration that suits data of your own with this event shape."""
    return "images" if len(event_shape) == 3 else "vectors"


def build_sde(config: Config) -> ForwardSDE:
    """The forward process of ``config.sde``; a dotted path is that of a process or of a function that makes
    one, which is run.

    Raises:
        ValueError: the path leads nowhere, or to something else.
    """
    if ":" in config.sde.name:
        return _own_process(config.sde.name)
    options = _options(config.sde)
    makers: dict[str, Callable[[], ForwardSDE]] = {
        "vp": lambda: VPSDE(LinearBeta(**options)),
        "vp_cosine": lambda: VPSDE(CosineBeta(**options)),
        "subvp": lambda: SubVPSDE(LinearBeta(**options)),
        "ve": lambda: VESDE(**options),
        "rectified": lambda: RectifiedFlow(**options),
        **{name: lambda: ChainSDE(build_chain(config)) for name in CHAINS},
    }
    return makers[config.sde.name]()


def _own_process(path: str) -> ForwardSDE:
    """The process of the user's at this path."""
    found = named_object(path, "process")
    try:
        made = found() if callable(found) and not isinstance(found, ForwardSDE) else found
    except Exception as error:  # whatever the function raises
        raise ValueError(f"process {path!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, ForwardSDE):
        raise ValueError(
            f"process {path!r} must be a ForwardSDE, such as CustomSDE(alpha, sigma), or a function without "
            f"arguments that returns one, got {type(made).__name__}"
        )
    return made


def build_chain(config: Config) -> Chain:
    """The discrete chain of ``config.sde``: DDPM's with betas from beta_min / N to beta_max / N, the cosine
    table, or SMLD's geometric noise levels.

    Raises:
        ValueError: a process in continuous time, or rates that are out of range for N steps.
    """
    section, N = config.sde, config.sde.get("num_steps", 0)
    if section.name == "ddpm_cosine":
        return Chain.cosine(N, section.s, section.max_beta)
    if section.name == "smld":
        if not 0 < section.sigma_min < section.sigma_max:
            raise ValueError(
                "config.sde.sigma_min must be positive and below sigma_max, got "
                f"{section.sigma_min} and {section.sigma_max}"
            )
        levels = torch.linspace(0, 1, N, dtype=torch.float64)
        return Chain.from_sigmas(section.sigma_min * (section.sigma_max / section.sigma_min) ** levels)
    if section.name != "ddpm":
        raise ValueError(f"config.sde.name must be one of {', '.join(CHAINS)}, got {section.name}")
    if not 0 < section.beta_min <= section.beta_max < N:
        raise ValueError(
            "config.sde must have 0 < beta_min <= beta_max < num_steps, since beta_N = beta_max / N, got "
            f"{section.beta_min}, {section.beta_max} and {N}"
        )
    return Chain.from_betas(
        torch.linspace(section.beta_min / N, section.beta_max / N, N, dtype=torch.float64)
    )


def build_network(config: Config, event_shape: tuple[int, ...], data_std: float = 1.0) -> nn.Module:
    """The network of ``config.model`` for this event shape; ``config.seed`` draws its initial weights.

    ``data_std``, of the data, tells Fourier features how much noise there is in what the network sees.
    """
    makers: dict[str, Callable[..., nn.Module]] = {
        "unet": networks.UNet, "mlp": networks.MLP, "dit": networks.DiT, "ncsnpp": networks.NCSNpp,
        "unet1d": networks.UNet1D,
    }  # fmt: skip
    options = _options(config.model)
    predicts, itself = options.pop("predicts"), options.pop("self_conditioning")
    if options.get("fourier") and predicts == "residual":
        raise ValueError(
            "config.model.fourier must be left out where the network predicts the residual, and so sees "
            f"whitened states, got {options['fourier']}; use --config.model.predicts=velocity"
        )
    at_indices = config.sde.name in CHAINS and predicts != "residual"
    if options.get("fourier") and at_indices:
        raise ValueError(
            "config.model.fourier must be left out where the network is asked at the indices of a chain, got "
            f"{options['fourier']}"
        )
    if at_indices:  # the network counts to N, and not to 1000
        options["max_angle"] *= TIME_SCALE / config.sde.num_steps
    if options.get("fourier"):
        options["noise_level"] = NoiseLevel(build_sde(config), data_std)
    if _has_missing(config):
        if options.get("num_classes") or options.get("condition_shape") or itself:
            raise ValueError(
                "config.model must have num_classes 0, no condition_shape and self_conditioning false where "
                f"entries may be missing, got {options.get('num_classes')}, {options.get('condition_shape')} "
                f"and {itself}; take a class or a condition as columns"
            )
        options["condition_shape"] = event_shape
    learned = config.loss.name == "hybrid"
    if itself or learned:
        event_shape = (2 * event_shape[0], *event_shape[1:])
    made = makers[config.model.name](event_shape, seed=config.seed, **options)
    if itself:
        return networks.SelfConditioned(made, outputs=2 if learned else 1)
    return networks.Doubled(made) if learned else made


def build_model(
    config: Config,
    event_shape: tuple[int, ...],
    data_std: float,
    moments: Moments | None = None,
    class_moments: Sequence[Moments] | None = None,
) -> NetworkModel | IndexedModel:
    """The untrained score model: the network of ``config.model`` under the process of ``config.sde``, on the
    device and in the number type of the configuration.

    Under a chain the network is asked at the chain's indices, but for one that predicts the residual, which
    sees whitened states at the times of the chain.
    """
    network, sde = build_network(config, event_shape, data_std), build_sde(config)
    network = network.to(resolve_device(config), resolve_dtype(config))
    predicts = config.model.predicts
    if isinstance(sde, ChainSDE) and predicts != "residual":
        return IndexedModel(
            network, sde.chain, predicts, event_shape, None, data_std, moments, class_moments,
            learned_variance=config.loss.name == "hybrid",
        )  # fmt: skip
    return NetworkModel(network, sde, predicts, event_shape, data_std, moments, class_moments)


def resolve_device(config: Config) -> torch.device:
    """The device of ``config.device``; "auto" is the first GPU where there is one, else the CPU.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    if config.device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    return as_device("config.device", config.device)


def resolve_dtype(config: Config) -> torch.dtype:
    """The number type of ``config.dtype``."""
    need("config.dtype", config.dtype, DTYPES)
    return DTYPES[config.dtype]


def _has_missing(config: Config) -> bool:
    """Whether entries of the data may be missing."""
    return config.data.name == "files" and config.data.missing == "mask"


def build_loss(config: Config) -> Loss:
    """The objective that ``config.loss`` names; weights and laws of the times may have options, as in
    "min_snr(gamma=3)", and what learns ("adaptive" times, a "learned" weight, "importance" indices) is made
    anew.  Denoising score matching is that of rows with missing entries where the data may have some.

    Raises:
        ValueError: an unknown name, or an option that it does not have.
    """
    fields = _options(config.loss)
    if config.loss.name in ("discrete", "hybrid"):
        chain, law = build_chain(config), fields.pop("index_sampling")
        fields["index_sampling"] = ImportanceIndices(chain.num_steps) if law == "importance" else None
        return (HybridLoss if config.loss.name == "hybrid" else ChainLoss)(chain, **fields)
    if config.loss.name == "sliced":
        return _sliced(build_sde(config), fields)
    known: dict[str, tuple[Mapping[str, Callable[..., Any]], Mapping[str, Callable[..., Any]]]] = {
        "weighting": (WEIGHTS_WITH_OPTIONS, {"learned": LearnedWeight}),
        "time_sampling": (TIMES_WITH_OPTIONS, {"adaptive": AdaptiveTimes}),
    }
    for field, (plain, learned) in known.items():
        if (text := fields[field]) in learned:
            fields[field] = learned[text]()
        else:
            fields[field] = _with_options(field, text, {**plain, **learned})
    loss = DenoisingLoss(**fields)
    return IncompleteLoss(loss) if _has_missing(config) else loss


def _sliced(sde: ForwardSDE, fields: dict[str, Any]) -> SlicedScoreLoss:
    """Sliced score matching on states of this process, by its noise kernel or by steps."""
    weight = ScoreWeight(_with_options("weighting", fields.pop("weighting"), WEIGHTS_WITH_OPTIONS))
    steps = fields.pop("simulated_steps")

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return expand_like(sde.f(t), x) * x

    def kernel(x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(x0.shape, dtype=x0.dtype, generator=generator, device=generator.device)
        return sde.perturb(x0, t, z.to(x0.device))

    states = Simulated(drift, lambda t: sde.g_squared(t).sqrt(), steps) if steps else kernel
    return SlicedScoreLoss(states, weighting=weight, **fields)


def _with_options(field: str, text: str, known: Mapping[str, Callable[..., Any]]) -> Any:
    """The text if it has no options, else what they make."""
    if "(" not in text:
        return text
    what = f"config.loss.{field}"
    name, options = parse_call(text, what, f"{next(iter(known))}(std=1.0)")
    if name not in known:
        raise ValueError(f"{what}: {name!r} has no options; those with options are {', '.join(known)}")
    valid = list(inspect.signature(known[name]).parameters)
    for option in options:
        if option not in valid:
            raise ValueError(f"{what}: {name!r} has no option {option!r}; valid: {', '.join(valid)}")
    return known[name](**options)


def build_optimization(config: Config) -> Optimization:
    """The rule of the updates in ``config.optimization``, and the averages that the training stores."""
    traces = config.training.snapshot_lengths if config.training.snapshot_every else ()
    return Optimization(**config.optimization.to_dict(), ema_traces=traces)


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
    """The sampler of ``config.sampling``, or another one under its common fields.

    Args:
        config: its section ``sampling`` is used.
        name: of a preset, with options where they differ, as in "ddim(eta=0.5)", or the dotted path of a
            function; ``config.sampling.sampler`` if not given.
        num_steps: ``config.sampling.num_steps`` if not given; without effect on the adaptive samplers.
        model: what will be sampled; the Gaussian-residual samplers and the grid "calibrated" need it.

    Raises:
        ValueError: the name is unknown, an option is out of range, or the model is missing.
        TypeError: the function at a dotted path returns no ``Sampler``.
    """
    preset, fields = resolve_entry(config.sampling.sampler if name is None else name, config.sampling)
    return make_sampler(preset, fields, fields["num_steps"] if num_steps is None else num_steps, model)


def is_adaptive(name: str) -> bool:
    """Whether this sampler chooses its own steps by tolerances."""
    return find_preset(parse_entry(name)[0]).kind == "adaptive"


def sampler_options(name: str, section: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Fields of ``config.sampling`` that have an effect on the sampler of this name.

    Args:
        name: of the sampler.
        section: ``config.sampling``; without it, all fields that may have an effect.

    Raises:
        ValueError: the name is unknown.
    """
    return effective_fields(find_preset(parse_entry(name)[0]), section)


def build_candidates(config: Config, model: ScoreModel | None = None) -> list[Candidate]:
    """Every sampler of ``config.comparison`` on every grid at every step count, the adaptive ones once.

    The model is that of ``build_sampler``.
    """
    candidates = []
    for entry in config.comparison.samplers:
        for on_grid in entries_on_grids(entry, config.comparison.grids):
            for num_steps in (None,) if is_adaptive(entry) else config.comparison.num_steps:
                sampler = build_sampler(config, on_grid, num_steps, model)
                candidates.append(Candidate(entry_label(on_grid), num_steps, sampler, sampler.settings))
    return candidates


def build_metrics(
    config: Config, problem: Problem, real: Tensor | None, condition: int | NamedCondition | None = None
) -> list[Metric]:
    """The metrics of ``config.comparison`` for the samples of a problem; the first one is the headline.

    Args:
        config: its section ``comparison`` is used.
        problem: what is sampled.
        real: real examples in model scale with shape (M, *).
        condition: of all samples, and of the real examples: a class, or another with a name.

    Raises:
        ValueError: a metric needs what the problem does not have.
    """
    return [
        build_metric(entry, config.comparison.real, problem, real, condition)
        for entry in config.comparison.metrics
    ]


def held_out(config: Config, dataset: data.Dataset) -> Tensor:
    """The examples of ``config.likelihood``, with shape (M, *) in model scale."""
    x = REAL[config.likelihood.split](dataset)
    return x[: config.likelihood.num_examples] if config.likelihood.num_examples else x


def likelihood_options(config: Config) -> dict[str, Any]:
    """Arguments of ``sde_toolkit.likelihood.log_likelihood`` as ``config.likelihood`` says."""
    return likelihood_fields.build_options(config.likelihood)


def _options(section: Config) -> dict[str, Any]:
    return {name: value for name, value in section.to_dict().items() if name != "name"}


METHODS: dict[str, type[guidance.Method]] = {
    name.lower(): kind
    for name in guidance.__all__
    if isinstance(kind := getattr(guidance, name), type) and issubclass(kind, guidance.Method)
    if kind is not guidance.Method
}
"""How observations guide, by name: gaussianinformed, mmps, dps, ..."""


POSTERIOR_SAMPLERS: dict[str, tuple[type, str]] = {
    "smc": (guidance.TwistedSMC, "num_steps"),
    "gibbs": (guidance.SplitGibbs, "num_iterations"),
}
"""Samplers that are made for observations, and the names of their numbers of steps."""


def build_method(
    text: str, num_steps: int = 50
) -> guidance.Method | guidance.TwistedSMC | guidance.SplitGibbs:
    """The method of guidance of this name, with options where they differ, as in "dps(zeta=0.5)"; or the
    sampler that is made for observations, as "smc(particles=32)" or "gibbs".

    Args:
        text: the name.
        num_steps: of such a sampler (iterations of "gibbs"), where its options do not say.

    Raises:
        ValueError: an unknown name or option, or an option out of range.
    """
    name, options = parse_call(text, "method", "dps(zeta=0.5)")
    key = name.lower().replace("_", "")
    kind: Any = METHODS.get(key)
    if key in POSTERIOR_SAMPLERS:
        kind, steps = POSTERIOR_SAMPLERS[key]
        options = {steps: num_steps} | options
    if kind is None:
        known = ", ".join(sorted([*METHODS, *POSTERIOR_SAMPLERS]))
        raise ValueError(f"method must be one of {known}, got {name!r}")
    valid = tuple(inspect.signature(kind).parameters)
    for option in options:
        if option not in valid:
            known = ", ".join(valid) or "none"
            raise ValueError(f"method {name!r} has no option {option!r}; options: {known}")
    return kind(**options)
