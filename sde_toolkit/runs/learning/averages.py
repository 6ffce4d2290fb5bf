"""Averages of other lengths of a run, each in a directory that is opened like a run.

    <output>/sigma_rel-<length>-step-<n>/checkpoints/step-<n>.safetensors

where the output is <workdir>/averages if nothing else is named.  The file is an inference checkpoint:
weights, moments of the data and the configuration.  ``sde_toolkit.training`` says how averages are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sde_toolkit.config import build_loss
from sde_toolkit.runs.store import Run, open_run
from sde_toolkit.training import HeldOutLoss, export_average, held_out_loss, reconstruct
from sde_toolkit.utils import check_output_directory, checked


@dataclass(frozen=True, eq=False)
class Average:
    """An average of a run.

    Attributes:
        sigma_rel: its length; None for the run's own average.
        step: number of updates after which it ends.
        residual: share of the profile that is missing (``training.Reconstruction``).
        nearest: the step of the snapshot that is nearest to it.
        workdir: where it is; of the run for the run's own.
        loss: on the test examples of the run's data; None where they are not known.
        gap: this loss minus that of the first of the averages; None for the first.
    """

    sigma_rel: float | None
    step: int
    residual: float
    nearest: int
    workdir: Path
    loss: HeldOutLoss | None = field(default=None, repr=False)
    gap: HeldOutLoss | None = field(default=None, repr=False)


@checked
def write_averages(
    run: Run, sigma_rel: Sequence[float], step: int | None = None, output: Path | str | None = None
) -> list[Average]:
    """Write the averages of these lengths, and measure their loss on the test examples.

    The run's own average comes last, where it ends at the same step.

    Args:
        run: one that stored snapshots, with its working directory.
        sigma_rel: the lengths.
        step: number of updates after which they end; that of the newest checkpoint if not given.
        output: a directory; ``averages`` below that of the run if not given.

    Raises:
        ValueError: see ``sde_toolkit.training.reconstruct``; or ``output`` is a file.
        OSError: the disk is full or not writable.
    """
    if run.workdir is None:
        raise ValueError("run must have a working directory, got a checkpoint of the package")
    place = check_output_directory(run.workdir / "averages" if output is None else Path(output).expanduser())
    found = reconstruct(run.workdir, list(sigma_rel), step)
    dataset = run.dataset() if run.has_config else None
    made: list[Average] = []
    for one in found:
        workdir = place / f"sigma_rel-{one.sigma_rel:g}-step-{one.step}"
        export_average(run.checkpoint, one, workdir / "checkpoints" / f"step-{one.step:08d}.safetensors")
        loss = None
        if dataset is not None:
            model = open_run(workdir, {"device": run.config.device}).model
            loss = held_out_loss(model, dataset, build_loss(run.config))
        made.append(Average(one.sigma_rel, one.step, one.residual, one.nearest, workdir, loss))
    if found[0].step == run.step:
        loss = None if dataset is None else held_out_loss(run.model, dataset, build_loss(run.config))
        made.append(Average(None, run.step, 0.0, run.step, run.workdir, loss))
    return [made[0], *(replace(average, gap=_gap(average, made[0])) for average in made[1:])]


def _gap(one: Average, first: Average) -> HeldOutLoss | None:
    return None if one.loss is None or first.loss is None else one.loss.minus(first.loss)
