"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sde_toolkit import classify as bayes
from sde_toolkit import compare as experiment
from sde_toolkit import configs as shipped_configs
from sde_toolkit import held_out, results, runs
from sde_toolkit.config import (
    build_dataset,
    build_sampler,
    config_json,
    config_names,
    likelihood_options,
    load_config,
    sampler_options,
)
from sde_toolkit.config import held_out as model_scale_examples
from sde_toolkit.files import atomic_write
from sde_toolkit.likelihood import log_likelihood
from sde_toolkit.processes import leading
from sde_toolkit.report import format_table, plus_minus
from sde_toolkit.runs import Run, Start
from sde_toolkit.train import StepInfo

FALLBACK_CONFIG = "digits"
FALLBACK_OUTPUT = Path("sde-toolkit-output")


def note(text: str) -> None:
    """Print a line about the progress of the work to standard error."""
    print(text, file=sys.stderr, flush=True)


def progress_bar(total: int, initial: int, unit: str) -> Any:
    """A progress bar on standard error, sparing with lines where that is not a terminal."""
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, initial=initial, unit=unit, mininterval=interval, maxinterval=2 * interval,
                dynamic_ncols=True, smoothing=0.05)  # fmt: skip


def open_model(options: argparse.Namespace, overrides: Mapping[str, Any]) -> Run:
    """The run that ``--workdir`` names, else the package's checkpoint for ``--config``.

    Raises:
        ValueError: both are given, or there is no such checkpoint.
    """
    if options.workdir is not None and options.config is not None:
        raise ValueError(
            "give --workdir (its checkpoint knows its config) or --config (the package's checkpoint), not "
            "both; single fields are set by --config.SECTION.FIELD=VALUE"
        )
    if options.workdir is not None:
        return runs.open_run(options.workdir, overrides)
    return runs.open_shipped(options.config or FALLBACK_CONFIG, overrides)


def _output(options: argparse.Namespace) -> Path:
    directory = options.output or options.workdir or FALLBACK_OUTPUT
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _given(options: argparse.Namespace, section: str, names: Sequence[str]) -> dict[str, Any]:
    """Overrides of the configuration: those of ``--config.*``, then those of the verb's own flags."""
    flags = {f"{section}.{name}": getattr(options, name) for name in names}
    return {**options.overrides, **{name: value for name, value in flags.items() if value is not None}}


class TrainingBar:
    """A progress bar of the training: loss, images per second, time to go."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._loss, self._begin, self._images = 0.0, 0.0, 0

    def start(self, start: Start) -> None:
        """Say where the run begins and open the bar."""
        if start.step >= start.num_steps:
            note(f"training: reusing the checkpoint at step {start.step}")
            return
        where = f"resuming at step {start.step}" if start.step else "from the beginning"
        note(f"training: {start.num_parameters:,} parameters, {start.num_steps} steps, {where}")
        self._bar = progress_bar(start.num_steps, start.step, "step")
        self._begin = time.perf_counter()

    def step(self, info: StepInfo) -> None:
        """Count one update."""
        first = self._images == 0
        self._loss = info.loss if first else 0.98 * self._loss + 0.02 * info.loss
        self._images += info.batch_size
        rate = self._images / (time.perf_counter() - self._begin)
        self._bar.set_postfix_str(f"loss {self._loss:.4f}, {rate:.0f} images/s", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Close the bar, if one was opened."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def _stops_between_steps() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C (and the system's request to end) wait for the end of a step, where the run can be saved.

    Yields a check that raises KeyboardInterrupt if a stop was asked for; a second request stops at once.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    mine = [number for number, handler in usual.items() if main and signal.getsignal(number) == handler]
    for number in mine:
        signal.signal(number, ask)
    try:
        yield check
        check()
    finally:
        for number in mine:
            signal.signal(number, usual[number])


def train_with_bar(workdir: Path, source: str | None, overrides: Mapping[str, Any]) -> Run:
    """Train, or resume, or reuse, with a progress bar; an interruption says what was saved."""
    bar = TrainingBar()
    try:
        with _stops_between_steps() as check:

            def on_step(info: StepInfo) -> None:
                bar.step(info)
                check()

            return runs.train_run(workdir, source, overrides, on_start=bar.start, on_step=on_step)
    except KeyboardInterrupt:
        bar.close()
        saved = runs.saved_step(workdir)
        note(
            f"{saved} steps are saved in {workdir}; the same command goes on from there"
            if saved
            else "nothing was saved yet; the same command starts again"
        )
        raise
    finally:
        bar.close()


def train(options: argparse.Namespace) -> None:
    """Train a score network, or go on with a run."""
    begin = time.perf_counter()
    run = train_with_bar(options.workdir, options.config, options.overrides)
    print(f"trained {run.step} steps, this time in {time.perf_counter() - begin:.0f} s")
    print(f"checkpoint  {run.checkpoint.path}")
    print(f"next        sde-toolkit sample --workdir={options.workdir}")


def sample(options: argparse.Namespace) -> None:
    """Draw samples with one sampler; write them and a picture of them."""
    overrides = _given(options, "sampling", ("sampler", "num_steps", "num_samples", "seed"))
    run = open_model(options, overrides)
    settings = run.config.sampling
    _warn_without_effect(settings, overrides)
    sampler = build_sampler(run.config, model=run.model)
    samples = sampler.sample(
        run.model, settings.num_samples, seed=settings.seed, batch_size=settings.batch_size
    )
    label = experiment.Candidate.of(settings.sampler, sampler).label
    stem = _output(options) / "samples" / f"{label}-seed{settings.seed}"
    runs.save_samples(stem.with_name(stem.name + ".npz"), samples, run.config, run.fingerprint)
    picture = results.picture_of_samples(samples, build_dataset(run.config), label)
    atomic_write(stem.with_name(stem.name + ".png"), picture)
    print(
        f"{len(samples.x)} samples by {label}: {samples.nfe:.4g} network evaluations each, "
        f"{samples.seconds:.1f} s, seed {samples.seed}"
    )
    print(f"samples  {stem}.npz")
    print(f"picture  {stem}.png")


def _warn_without_effect(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    name = settings["sampler"]
    allowed = {*sampler_options(name, settings), "sampler", "num_samples", "seed", "batch_size"}
    for path in overrides:
        section, _, field = path.partition(".")
        if section == "sampling" and field not in allowed:
            note(f"sde-toolkit: warning: {field} has no effect on the sampler {name}")


def likelihood(options: argparse.Namespace) -> None:
    """Compute log-likelihoods of held-out data; write and print them."""
    overrides = _given(options, "likelihood", ("split", "num_examples"))
    run = open_model(options, overrides)
    directory = _output(options)
    if leading():
        note(f"likelihood: {run.config.likelihood.split} data, probability flow under {run.config.sde.name}")
    found, reused = held_out.likelihood(run, directory)
    if not leading():
        return
    print(("reused: " if reused else "") + found.sentence)
    if found.budget:
        print(f"a value may be off by (mean correction, size; {run.config.likelihood.checked} examples)")
        print("\n".join(f"  {line}" for line in found.budget))
    for name, mean, error in found.bounds:
        print(f"  {name:<18}{plus_minus(mean, error)} bits/dim, of the stochastic model")
    print(f"per example  {held_out.likelihood_path(directory, found.split)}")


def compare(options: argparse.Namespace) -> None:
    """Compare samplers at several step counts; write records, figures and a page; print the table."""
    overrides = _given(options, "comparison", ("samplers", "num_steps", "num_samples", "seeds", "metrics"))
    run = open_model(options, overrides)
    directory = _output(options)
    found = compare_with_bar(run, directory)
    print(format_table(found.records, found.references))
    command = " ".join(["sde-toolkit", *sys.argv[1:]]) if options.run is compare else ""
    for path in results.write_report(
        run, directory, found, held_out.load_likelihood(run, directory), [command]
    ):
        print(f"wrote  {path}")


def compare_with_bar(run: Run, directory: Path) -> results.Comparison:
    """The comparison of the run's configuration with a progress bar; records appear as they are made."""
    candidates = results.candidates(run)
    reused = 0
    with progress_bar(len(candidates), 0, "sampler") as bar:

        def on_records(candidate: experiment.Candidate, rows: list[experiment.Record], old: bool) -> None:
            nonlocal reused
            reused += old
            headline = f"{rows[0].metric} {plus_minus(rows[0].value, rows[0].standard_error)}"
            bar.set_postfix_str(f"{candidate.label}: {headline}", refresh=False)
            bar.update()

        try:
            found = results.run_comparison(run, directory, candidates, on_records)
        except KeyboardInterrupt:
            bar.close()
            note(f"measured so far: {results.records_path(directory)}; the same command goes on from there")
            raise
    if reused:
        note(f"comparison: reused {reused} of {len(candidates)} entries of {results.records_path(directory)}")
    return found


def classify(options: argparse.Namespace) -> None:
    """Classify held-out data by Bayes' rule; write the probabilities, print how good they are."""
    overrides = _given(options, "likelihood", ("split", "num_examples"))
    run = open_model(options, overrides)
    dataset, directory, split = build_dataset(run.config), _output(options), run.config.likelihood.split
    if run.model.num_classes == 0 or dataset.labels_train is None or dataset.labels_test is None:
        raise ValueError(
            "classification needs a network with classes and labelled data, got a run without; "
            "train one with --config=digits_classes, or set --config.model.num_classes"
        )
    note(f"classify: {split} data, {run.model.num_classes} classes, probability flow")
    x = model_scale_examples(run.config, dataset)
    parts = {"train": [dataset.labels_train], "test": [dataset.labels_test]}
    labels = torch.cat(parts.get(split, parts["train"] + parts["test"]))[: len(x)]
    options_of_flow = likelihood_options(run.config) | {"checked": 0, "moments": run.model.moments}
    density = functools.partial(log_likelihood, **options_of_flow)
    found = bayes.classify(run.model, x, log_likelihood=density)
    judged = bayes.judge(found, labels)
    for name in ("accuracy", "negative_log_likelihood", "brier", "calibration_error"):
        estimate = getattr(judged, name)
        print(f"{name:<24}{plus_minus(estimate.value, estimate.standard_error)}")
    print(f"{'calibrated_would_have':<24}{judged.floor:.4f}  (calibration error of perfect probabilities)")
    written = {**dataclasses.asdict(judged), "probabilities": found.probabilities.tolist()}
    written |= {"labels": labels.tolist(), "seconds": found.seconds, "model": run.fingerprint}
    path = directory / f"classification-{split}.json"
    atomic_write(path, json.dumps(written | {"config": run.config.to_dict()}).encode())
    print(f"per example  {path}")


def export(options: argparse.Namespace) -> None:
    """Write the averaged weights of a run, its data's moments and its configuration to one file."""
    run = runs.open_run(options.workdir, options.overrides)
    size = runs.export_run(run, options.output)
    print(f"exported step {run.step} to {options.output} ({size / 2**20:.2f} MiB)")


def configs(options: argparse.Namespace) -> None:
    """List the configurations with their first lines, or print one as JSON."""
    if options.name is not None:
        print(config_json(load_config(options.name, options.overrides)))
        return
    width = max(map(len, config_names()))
    for name in config_names():
        module = importlib.import_module(f"{shipped_configs.__name__}.{name}")
        print(f"{name.ljust(width)}  {(module.__doc__ or '').splitlines()[0]}")
