"""``sde-toolkit train``: train a score network in a directory, or go on with a run that is there.

Ctrl-C, and the system's request to end, wait for the end of a step, where the run is saved.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import (
    CONFIG_HELP,
    add_data,
    add_device,
    add_verb,
    given,
    note,
    path_argument,
    progress_bar,
    say,
)
from sde_toolkit.cli.process import STOPS, handled

if TYPE_CHECKING:
    from sde_toolkit.runs import Run, Start
    from sde_toolkit.training import UpdateInfo

EXAMPLES = """examples:
  sde-toolkit train --config=digits --workdir=runs/d
  sde-toolkit train --config=digits --workdir=runs/ve --config.sde.name=ve --config.model.predicts=edm
  sde-toolkit train --data=points.npy --workdir=runs/own                     # vectors: an MLP
  sde-toolkit train --data=photographs --workdir=runs/own                 # a folder of images: a U-Net
  sde-toolkit train --workdir=runs/d --config.training.num_steps=4000     # go on with a finished run
  sde-toolkit train --workdir=runs/d --config.training.batch_size=256 --allow=training.batch_size

  torchrun --nproc-per-node=2 -m sde_toolkit train --config=digits --workdir=runs/d     # two processes

A run that was stopped, or killed, goes on from its last checkpoint when the same command is given again."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "train", train, "train a score network; resumes by itself", EXAMPLES)
    parser.add_argument("--config", metavar="NAME", help=CONFIG_HELP)
    parser.add_argument(
        "--workdir", type=path_argument, required=True, metavar="DIR", help="made if it does not exist"
    )
    parser.add_argument(
        "--allow",
        metavar="FIELD,FIELD",
        default="",
        help="fields in which a run that goes on may differ from its checkpoint, such as training.batch_size",
    )
    add_data(
        parser,
        "data of your own: .npy, .npz, .csv, .parquet, a folder of images, hf:NAME, package.module:function",
    )
    add_device(parser)


class TrainingBar:
    """A progress bar of the training: loss, images per second, time to go."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._loss, self._begin, self._images = 0.0, 0.0, 0

    def start(self, start: Start) -> None:
        """Say where the run begins and open the bar."""
        from sde_toolkit.utils import leading

        if not leading():
            return
        if start.step >= start.num_steps:
            note(f"training: reusing the checkpoint at step {start.step}")
            return
        where = f"resuming at step {start.step}" if start.step else "from the beginning"
        note(f"training: {start.num_parameters:,} parameters, {start.num_steps} steps, {where}")
        if start.num_snapshots:
            room = start.num_snapshots * start.snapshot_bytes / 2**20
            note(f"snapshots of averages still to be stored: {start.num_snapshots}, {room:,.1f} MiB in all")
        if start.unused_classes:
            note(
                f"the data have labels of {start.unused_classes} classes that are not used; "
                f"--config.model.num_classes={start.unused_classes} trains a network that knows them"
            )
        self._bar = progress_bar(start.num_steps, start.step, "step")
        self._begin = time.perf_counter()

    def step(self, info: UpdateInfo) -> None:
        """Count one update."""
        if self._bar is None:
            return
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
    """Let requests to stop wait for the end of a step, where the run can be saved.

    Yields a check that raises KeyboardInterrupt if a stop was asked for.  A second request stops at once, and
    those that come after either, while the run is being saved, are without effect.
    """
    asked = stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        raise KeyboardInterrupt

    def ask(*_: object) -> None:
        nonlocal asked
        if asked and not stopping:
            stop()
        asked = True

    def check() -> None:
        if asked and not stopping:
            stop()

    with handled(STOPS, ask):
        yield check
        check()


def train_with_bar(
    workdir: Path, source: str | None, overrides: Mapping[str, Any], allow: Sequence[str] = ()
) -> Run:
    """Train, or resume, or reuse, with a progress bar; an interruption says what was saved."""
    from sde_toolkit import runs
    from sde_toolkit.utils import LostProcessError

    bar = TrainingBar()
    try:
        with _stops_between_steps() as check:

            def on_step(info: UpdateInfo) -> None:
                bar.step(info)
                check()

            try:
                return runs.train_run(
                    workdir, source, overrides, allow=allow, on_start=bar.start, on_step=on_step
                )
            except LostProcessError:  # said here, where the request to stop that comes with it can wait
                bar.close()
                _note_saved(workdir)
                raise
    except KeyboardInterrupt:
        bar.close()
        _note_saved(workdir)
        raise
    finally:
        bar.close()


def _note_saved(workdir: Path) -> None:
    from sde_toolkit import runs

    saved = runs.saved_step(workdir)
    note(
        f"{saved} steps are saved in {workdir}; the same command goes on from there"
        if saved
        else "nothing was saved yet; the same command starts again"
    )


def train(options: argparse.Namespace) -> None:
    """Train a score network, or go on with a run."""
    from sde_toolkit.utils import leading

    begin = time.perf_counter()
    allow = [field for field in options.allow.split(",") if field.strip()]
    run = train_with_bar(options.workdir, options.config, given(options), allow)
    if not leading():
        return
    say(f"trained {run.step} steps, this time in {time.perf_counter() - begin:.0f} s")
    say(f"checkpoint  {run.checkpoint.path}")
    say(f"next        {shlex.join(['sde-toolkit', 'sample', f'--workdir={options.workdir}'])}")
