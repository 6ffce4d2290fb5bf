"""Where the numbers of a run go besides its own files: TensorBoard, or a tracker of the user's.

A tracker is a function of a step and named numbers.  One of the user's is made by a function of the working
directory and the configuration, which is named by its path, as in ``mine.py:tracker``:

    def tracker(workdir, config):
        run = wandb.init(dir=workdir, config=config)
        return lambda step, values: run.log(values, step=step)

A tracker whose ``close`` is callable is closed at the end.  One that fails, as a service on the network may,
does not end the training: it is told nothing more, and a warning says so.  A run that goes on from a
checkpoint tells the steps after it again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.utils import named_object

Tracker = Callable[[int, Mapping[str, float]], object]
"""(number of updates made, name -> number) -> anything."""

TENSORBOARD = "tensorboard"


@contextlib.contextmanager
def open_trackers(
    names: Sequence[str], workdir: Path, config: Mapping[str, Any], step: int
) -> Iterator[Tracker]:
    """One tracker that tells them all, inside the ``with``.

    Args:
        names: "tensorboard", or paths of functions (``utils.named_object``).
        workdir: of the run; TensorBoard's files go to ``tensorboard`` below it.
        config: of the run.
        step: number of updates that it has made.

    Raises:
        ImportError: TensorBoard is not installed.
        ValueError, TypeError: a path names no function, or the function returns none.
    """
    with contextlib.ExitStack() as stack:
        made = [_Careful(name, _made(name, workdir, config, step)) for name in names]
        for tracker in made:
            stack.callback(tracker.close)

        def tell(at: int, values: Mapping[str, float]) -> None:
            for tracker in made:
                tracker.tell(at, values)

        yield tell


class _Careful:
    """A tracker whose failure is a warning, and its last word."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker, self._failed = name, tracker, False

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker(step, dict(values)))

    def close(self) -> None:
        close = getattr(self._tracker, "close", None)
        if callable(close):
            self._try(close)

    def _try(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever the service raises
            self._failed = True
            warnings.warn(
                f"the tracker {self._name} failed and is told nothing more; the training goes on "
                f"({type(error).__name__}: {error})",
                RuntimeWarning,
                stacklevel=2,
            )


class _TensorBoard:
    """Scalars in ``<workdir>/tensorboard``; those after ``step`` of an earlier part are purged."""

    def __init__(self, workdir: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "the tracker tensorboard needs the package tensorboard: pip install 'sde-toolkit[logging]'; "
                "or leave config.training.trackers empty: history.csv has the numbers too"
            ) from error
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _made(name: str, workdir: Path, config: Mapping[str, Any], step: int) -> Tracker:
    if name == TENSORBOARD:
        return _TensorBoard(workdir, step)
    if not set(name) & set(".:/"):
        raise ValueError(
            f"a tracker must be tensorboard or the path of a function, as in mine.py:tracker, got {name!r}"
        )
    make = named_object(name, "tracker")
    if not callable(make):
        raise TypeError(f"tracker {name!r} must name a function, got {type(make).__name__}")
    tracker = make(workdir, dict(config))
    if not callable(tracker):
        raise TypeError(
            f"tracker {name!r} must return a function of (step, values), got {type(tracker).__name__}; see "
            "sde_toolkit.training"
        )
    found: Tracker = tracker
    return found
