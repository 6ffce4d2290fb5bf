"""Log-likelihoods of a run's examples, as its configuration asks: computed once, kept in a file.

Continuous data have log p(x) by the probability flow.  Grey levels have the importance-weighted bound on
log P of a dequantisation (``sde_toolkit.likelihood``), uniform with one draw by default.  The variational
bounds belong to the stochastic model of the same network, are taken at the first draws, and are printed
beside.

The bits per dimension of n examples with code lengths b_i are mean(b) +- std(b) / sqrt(n), both in bits/dim;
that error bar holds the spread of the examples, of the dequantisation noise and of the probes.

Of rows with missing entries it is the density of those observed, by Bayes' rule with one draw of the others
(``likelihood.observed_log_likelihood``), in bits per observed entry, without budget or bounds.

Of a network with classes the density given one class may be asked for; it is then that of the examples of
this class.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.config import (
    BOUNDS,
    DEQUANTIZERS,
    Config,
    example_conditions,
    likelihood_options,
    override_config,
    raw_examples,
)
from sde_toolkit.data import Dataset
from sde_toolkit.lab import plus_minus
from sde_toolkit.likelihood import (
    BoundDraws,
    Budget,
    Dequantizer,
    DiscreteLogLikelihood,
    Entry,
    ExactDivergence,
    LikelihoodCost,
    LogLikelihood,
    chosen_divergence,
    continuous_bound,
    discrete_bound,
    discrete_log_likelihood,
    likelihood_cost,
    log_likelihood,
    observed_log_likelihood,
)
from sde_toolkit.models import NetworkModel, ScoreModel, Wrapper
from sde_toolkit.runs.classes import condition_suffix, examples_of_class, need_classes
from sde_toolkit.runs.parts import KeepingProcesses, Shard, ShardFinishedError, forget_parts, kept_parts
from sde_toolkit.runs.store import Run
from sde_toolkit.utils import Processes, atomic_write, launched
from solvers import Normals

GAP_DRAWS = 8
"""Draws by which the cost of dequantisation is measured for the budget."""

_CHAIN_STEPS = 1000
_BOUND_DRAWS = 32


@dataclass(frozen=True)
class Evaluation:
    """Log-likelihoods of the examples of a split.

    Attributes:
        split: which examples.
        bits_per_dim: of every example.
        uniform: bits per dimension of the uniform code on the grey levels; None for continuous data.
        nfe: mean number of network evaluations.
        seconds: wall time.
        budget: what a value may be off by, line by line; see ``sde_toolkit.likelihood.Budget``.
        bounds: name, mean bits per dimension and its standard error of the variational bounds asked for.
        settings: of the likelihood and the model, JSON-able.
    """

    split: str
    bits_per_dim: tuple[float, ...] = field(repr=False)
    uniform: float | None
    nfe: float
    seconds: float
    budget: tuple[str, ...]
    bounds: tuple[tuple[str, float, float], ...]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """Mean bits per dimension."""
        return float(np.mean(self.bits_per_dim))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, in bits per dimension; infinite for a single example."""
        return _standard_error(np.asarray(self.bits_per_dim))

    @property
    def _given(self) -> str:
        label = self.settings.get("label")
        if label is not None:
            return f" of class {label}, given the class"
        return ", given their conditions" if "conditions" in self.settings else ""

    @property
    def sentence(self) -> str:
        """The result in one line."""
        against = "" if self.uniform is None else f", uniform levels {self.uniform:.3f}"
        return (
            f"{self.split} data{self._given}: {plus_minus(self.mean, self.standard_error)} bits/dim "
            f"({len(self.bits_per_dim)} examples{against}; "
            f"{self.nfe:.0f} network evaluations each, {self.seconds:.1f} s)"
        )


def evaluation_path(directory: Path, split: str, label: int | None = None) -> Path:
    """Where the likelihoods of a split lie."""
    return directory / f"likelihood-{split}{condition_suffix(label)}.json"


Watch = Callable[[LikelihoodCost], Callable[[float], None]]
"""Told the cost before the work; what it returns is told the number of samples done, again and again."""


class _Counted(Wrapper):
    """Counts the rows that the model inside is asked for.

    Args:
        model: the model inside.
        each: rows for one sample.
        advance: told the number of samples done.
    """

    def __init__(self, model: ScoreModel, each: int, advance: Callable[[float], None]) -> None:
        super().__init__(model)
        self.each, self.advance, self.rows = each, advance, 0

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction of the model inside."""
        self.rows += len(x_t)
        self.advance(self.rows / self.each)
        return self.model.raw(x_t, t, condition)

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction and the fraction of the model inside."""
        self.rows += len(x_t)
        self.advance(self.rows / self.each)
        return self.model.raw_and_fraction(x_t, t, condition)


def _watched(
    run: Run, model: ScoreModel, dataset: Dataset, examples: Tensor, watch: Watch | None
) -> ScoreModel:
    """The model, counted where somebody watches."""
    if watch is None:
        return model
    section, options = run.config.likelihood, likelihood_options(run.config)
    for name in ("num_diagnostic_samples", "batch_size", "seed"):
        options.pop(name)
    x = examples if dataset.levels is None else dataset.scaling.to_model(examples + 0.5)
    cost = likelihood_cost(model, x.nan_to_num().to(model.device, model.dtype), **options)
    advance = watch(replace(cost, num_samples=len(x) * section.num_importance))
    return _Counted(model, cost.nfe, advance)


def evaluate_likelihood(
    run: Run,
    directory: Path,
    label: int | None = None,
    watch: Watch | None = None,
    shard: Shard | None = None,
    merging: bool = False,
) -> tuple[Evaluation, bool]:
    """Log-likelihoods as the run's configuration asks; and whether they were reused from a file.

    Args:
        run: the trained model.
        directory: for the file.
        label: the class that the density is given and that the examples are of; None for no class.
        watch: told the cost before the work starts, and how it goes on; not if the values are reused.
        shard: make the batches of this shard alone, and keep them.
        merging: refuse to make a batch that is missing.

    Raises:
        ShardFinishedError: the batches of ``shard`` are made, and kept.
        ValueError: an option out of range, or a label for a network or data without classes.
        solvers.SolverError: the flow broke down.
    """
    section = run.config.likelihood
    given = {} if label is None else {"label": label}
    if run.model.condition_shape is not None and run.config.data.get("conditions"):
        given["conditions"] = run.config.data.conditions
    settings = json.loads(json.dumps({**section.to_dict(), "model": run.fingerprint, **given}))
    known = load_evaluation(run, directory, label)
    if known is not None and known.settings == settings:
        return known, True
    model: ScoreModel = run.model
    if label is not None:
        need_classes(model)
        model = run.model.given(label)
    dataset, begin = examples_of_class(run.dataset(), label), time.perf_counter()
    examples = raw_examples(run.config, dataset)
    rows = example_conditions(run.config, dataset) if "conditions" in given else None
    model = _watched(run, model, dataset, examples, watch)
    compute = _continuous if dataset.levels is None else _discrete
    path = evaluation_path(directory, section.split, label)
    with launched() as processes, kept_parts(path, settings | {"data": dataset.digest}) as parts:
        keeping = KeepingProcesses(processes.rank, processes.count, parts, shard=shard, merging=merging)
        config = _for_shard(run.config, shard)
        bits, nfe, budget, bounds = compute(config, model, dataset, examples, rows, keeping)
        if shard is not None:
            raise ShardFinishedError
    lines = () if budget is None else tuple(budget.lines(examples[0].numel() - dataset.scaling.num_added))
    uniform = None if dataset.levels is None else math.log2(dataset.levels)
    seconds = time.perf_counter() - begin
    result = Evaluation(
        section.split,
        tuple(bits.tolist()),
        uniform,
        float(nfe.double().mean()),
        seconds,
        lines,
        bounds,
        settings,
    )
    if processes.rank == 0:
        atomic_write(path, json.dumps(asdict(result), indent=1).encode())
        forget_parts(path)
    return result, False


def _for_shard(config: Config, shard: Shard | None) -> Config:
    """The configuration without a budget for a shard: whoever joins the shards makes it."""
    return config if shard is None else override_config(config, {"likelihood.num_diagnostic_samples": 0})


Found = tuple[Tensor, Tensor, Budget | None, tuple[tuple[str, float, float], ...]]


def _continuous(
    config: Config, model: ScoreModel, dataset: Dataset, x: Tensor, rows: Tensor | None, processes: Processes
) -> Found:
    log_det, x = dataset.scaling.log_det(x), x.to(model.device, model.dtype)
    if bool(x.isnan().any()):
        return _observed(config, model, x, log_det, processes)
    found = log_likelihood(
        model, x, condition=rows, **likelihood_options(config), log_det_per_dim=log_det / x[0].numel(),
        processes=processes,
    )  # fmt: skip
    share = x[0].numel() / (x[0].numel() - dataset.scaling.num_added)  # bits per dimension of the data
    bounds = tuple(
        (n, share * m, share * e) for n, m, e in _bounds(config, model, x, -log_det, rows, processes)
    )
    return share * found.bits_per_dim, found.nfe, found.budget, bounds


def _observed(config: Config, model: ScoreModel, x: Tensor, log_det: Tensor, processes: Processes) -> Found:
    """Densities of the observed entries of rows, in bits per observed entry."""
    if processes.count > 1 or getattr(processes, "shard", None) is not None:
        raise ValueError(
            "likelihoods of rows with missing entries are made by one process and without shards; leave "
            "--shard and torchrun out"
        )
    inner = model.model if isinstance(model, _Counted) else model
    nfe: list[Tensor] = []
    options = {**likelihood_options(config), "num_diagnostic_samples": 0}

    def density(_: ScoreModel, whole: Tensor) -> LogLikelihood:
        found = log_likelihood(model, whole, **options)
        nfe.append(found.nfe)
        return found

    made = observed_log_likelihood(cast(NetworkModel, inner), x, 1, config.likelihood.seed, density)
    count = (~x.isnan()).sum(1).cpu()
    bits = -(made.nats.cpu() + log_det.cpu()) / (count * math.log(2))
    return bits, nfe[0], None, ()


def _discrete(
    config: Config,
    model: ScoreModel,
    dataset: Dataset,
    values: Tensor,
    rows: Tensor | None,
    processes: Processes,
) -> Found:
    section, options = config.likelihood, likelihood_options(config)
    dequantizer = DEQUANTIZERS[section.dequantization](model, dataset, options.pop("t_min"))
    few = values[: options["num_diagnostic_samples"]]

    def bound(v: Tensor, num_samples: int, shared: Processes | None) -> DiscreteLogLikelihood:
        rest = {**options, "num_diagnostic_samples": 0} | ({} if shared is None else {"processes": shared})
        density = functools.partial(log_likelihood, **rest)
        chosen = chosen_divergence(options["divergence"], v[0].numel())
        several = num_samples > 1 and not isinstance(chosen, ExactDivergence)
        second = functools.partial(density, seed=options["seed"] + 1) if several else None
        return discrete_log_likelihood(
            model, v, dequantizer, condition=None if rows is None else rows[: len(v)],
            num_samples=num_samples, seed=section.seed, log_likelihood=density, second=second,
        )  # fmt: skip

    found = bound(values, section.num_importance, processes)
    assert found.nfe is not None
    budget = None
    if len(few):
        x, _ = _first_draw(config, model, dequantizer, few)
        given = None if rows is None else rows[: len(few)]
        budget = log_likelihood(model, x, condition=given, **options, t_min=dequantizer.t_min).budget
        assert budget is not None
        seen = bound(few, GAP_DRAWS, None)
        shift = seen.gap if section.num_importance == 1 else seen.nats - found.nats[: len(few)]
        error = torch.zeros_like(shift) if seen.standard_error is None else seen.standard_error
        how = f"the bound of {GAP_DRAWS} draws less that reported"
        budget = budget.with_entry("dequantization", Entry(shift, error, how))
        if section.dequantization != "uniform" or section.t_min != dequantizer.t_min:
            budget = _without_truncation(budget)
    x, log_q = _first_draw(config, model, dequantizer, values)
    alpha = dequantizer.alpha
    bounds = _bounds(config, model, x / alpha, log_q + x[0].numel() * math.log(alpha), rows, processes)
    return found.bits_per_dim, found.nfe, budget, bounds


def _without_truncation(budget: Budget) -> Budget:
    """The density at t_min is the one that is meant: no noise is left out."""
    zero = torch.zeros_like(budget["truncation"].shift)
    return budget.with_entry("truncation", Entry(zero, zero, "the density at t_min is the one bounded"))


def _first_draw(
    config: Config, model: ScoreModel, dequantizer: Dequantizer, values: Tensor
) -> tuple[Tensor, Tensor]:
    """x at t_min in the model's type, and log q(x | v)."""
    source = Normals(config.likelihood.seed, len(values), model.event_shape, torch.float64)
    x, log_q = dequantizer.draw(values.cpu(), source)
    return x.to(model.device, model.dtype), log_q.detach()


@torch.no_grad()
def _bounds(
    config: Config, model: ScoreModel, x0: Tensor, log_q: Tensor, rows: Tensor | None, processes: Processes
) -> tuple[tuple[str, float, float], ...]:
    """Name, mean and standard error of every bound asked for, in bits per dimension."""
    section, found = config.likelihood, []
    options = {"seed": section.seed, "batch_size": section.batch_size, "processes": processes}
    draws = BoundDraws(num_draws=_BOUND_DRAWS)
    for name in BOUNDS[section.bounds]:
        if name == "continuous":
            made = continuous_bound(model, x0, condition=rows, draws=draws, t_min=section.t_min, **options)
        else:
            own = getattr(model.sde, "chain", None)
            chain = model.sde.discretize(_CHAIN_STEPS) if own is None else own
            steps: Literal["learned", "large"] = "learned" if model.learned_variance else "large"
            made = discrete_bound(model, x0, chain, condition=rows, variance=steps, draws=draws, **options)
        bits = (log_q - made.nats.cpu()) / (x0[0].numel() * math.log(2))
        found.append((f"{name} bound", float(bits.mean()), _standard_error(bits.numpy())))
    return tuple(found)


def _standard_error(bits: np.ndarray) -> float:
    return float(np.std(bits, ddof=1)) / math.sqrt(len(bits)) if len(bits) > 1 else math.inf


def load_evaluation(run: Run, directory: Path, label: int | None = None) -> Evaluation | None:
    """The likelihoods in ``directory`` for the run's split, weights and class, None if there are none.

    Raises:
        ValueError: the file is damaged or of another kind.
    """
    path = evaluation_path(directory, run.config.likelihood.split, label)
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no ordinary file")
        found = _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of likelihoods ({error}); remove it and run again") from None
    return found if found.settings.get("model") == run.fingerprint else None


def _parsed(content: object) -> Evaluation:
    """The content of a file as an evaluation; TypeError or ValueError where a field is missing or wrong."""
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not fields")
    wanted = {f.name for f in fields(Evaluation)}
    if set(content) != wanted:
        raise ValueError(f"its fields differ in {', '.join(sorted(set(content) ^ wanted))}"[:200])
    for name, kind in (("split", str), ("bits_per_dim", list), ("budget", list), ("bounds", list)):
        if not isinstance(content[name], kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(content[name]).__name__}")
    if not isinstance(content["settings"], dict) or not content["bits_per_dim"]:
        raise TypeError("settings must be fields and bits_per_dim must hold numbers")
    uniform = content["uniform"]
    bounds = []
    for bound in content["bounds"]:
        if not isinstance(bound, list) or len(bound) != 3:
            raise TypeError(f"bounds must be lists of name, mean and error, got {str(bound)[:80]}")
        bounds.append((str(bound[0]), _number("bounds", bound[1]), _number("bounds", bound[2], math.inf)))
    return Evaluation(
        content["split"],
        tuple(_number("bits_per_dim", bits) for bits in content["bits_per_dim"]),
        None if uniform is None else _number("uniform", uniform),
        _number("nfe", content["nfe"]),
        _number("seconds", content["seconds"]),
        tuple(map(str, content["budget"])),
        tuple(bounds),
        content["settings"],
    )


def _number(name: str, value: object, *more: float) -> float:
    """A finite number, or one of ``more``."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not (abs(value) <= 1e300 or value in more):  # type: ignore[arg-type]
        raise TypeError(f"{name} must hold finite numbers, got {str(value)[:80]}")
    return float(value)  # type: ignore[arg-type]
