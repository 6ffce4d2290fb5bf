"""Networks and score models as programs without Python: torch.export (.pt2) and ONNX (.onnx).

    part        inputs                              output
    "network"   state, number [, condition]         what the network puts out for the inputs it sees
    "denoise"   x_t, t [, condition]                x0_hat
    "noise", "score", "velocity"                    the other predictions

Every input has one row per sample, and the number of rows is free.  What was written is read again and run on
fresh inputs with another number of rows; a program that gives other numbers than the model is refused.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sde_toolkit.interop.libraries import other_library
from sde_toolkit.models import ModuleModel, evaluating
from sde_toolkit.utils import atomic_write, check_output_file, checked

Part = Literal["network", "denoise", "noise", "score", "velocity"]
"""What of a model is exported."""

FORMATS = (".pt2", ".onnx")
"""The endings of exported programs."""

TOLERANCE = 1e-4
"""Largest difference of a program's output from the model's, over the largest of its values."""

_ROWS, _OTHER_ROWS = 7, 5


@dataclass(frozen=True)
class Exported:
    """A program that was written and tried.

    Attributes:
        path: of the file.
        part: what of the model it is.
        inputs: the names of its inputs.
        difference: largest difference of its output from the model's, over the largest of its values.
    """

    path: Path
    part: str
    inputs: tuple[str, ...]
    difference: float


class _Program(nn.Module):
    """One function of a model as a module of tensors alone."""

    def __init__(self, model: ModuleModel, part: str) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The part at x with shape (B, *) and t with shape (B,)."""
        if self.part == "network":
            given = (x, t) if condition is None else (x, t, condition)
            found = self.model.network(*given)
            return found if isinstance(found, Tensor) else found.sample
        function: Callable[..., Tensor] = getattr(self.model, self.part)
        return function(x, t) if condition is None else function(x, t, condition)


def _inputs(model: ModuleModel, part: str, rows: int, seed: int) -> dict[str, Tensor]:
    """Inputs of the program by name, random ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *model.event_shape, generator=generator, dtype=torch.float64)
    t = model.sde.T * (0.1 + 0.8 * torch.rand(rows, generator=generator, dtype=torch.float64))
    x, t = x.to(model.device, model.dtype), t.to(model.device)
    if part == "network":
        x, t = model.arguments(x, t)
        t = t.contiguous()
    else:
        t = t.to(model.dtype)
    found = {"x": x, "t": t}
    if model.num_classes:
        found["condition"] = torch.randint(model.num_classes, (rows,), generator=generator).to(model.device)
    elif model.condition_shape is not None:
        condition = torch.randn(rows, *model.condition_shape, generator=generator, dtype=torch.float64)
        found["condition"] = condition.to(model.device, model.dtype)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' words on their own parts, and on torchvision, which is not needed."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _program(model: ModuleModel, part: str) -> Any:
    """The exported program, of a free number of rows."""
    given = _inputs(model, part, _ROWS, 0)
    _Program(model, part)(*given.values())  # what the model keeps after a first call is real now
    free = [{0: torch.export.Dim.DYNAMIC}] * len(given)
    try:
        return torch.export.export(_Program(model, part), tuple(given.values()), dynamic_shapes=tuple(free))
    except Exception as error:  # torch.export raises errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        other = "" if part == "network" else '; part="network" leaves the process to the caller'
        raise ValueError(
            f"model must be made of operations that torch.export knows, got {type(error).__name__}: "
            f"{reason[:300]}{other}"
        ) from error


def _difference(run: Callable[..., Tensor], model: ModuleModel, part: str) -> float:
    """How far the program is from the model on fresh inputs."""
    given = _inputs(model, part, _OTHER_ROWS, 1)
    wanted = _Program(model, part)(*given.values())
    found = run(*given.values())
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _run_onnx(path: Path) -> Callable[..., Tensor]:
    """The program in an ONNX file, run by onnxruntime on the host."""
    runtime = other_library("onnxruntime", "the check of an ONNX program", "onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        arrays = {name: value.detach().cpu().numpy() for name, value in zip(names, given, strict=False)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


@checked
def export_program(model: ModuleModel, path: Path | str, part: Part = "denoise") -> Exported:
    """Write a part of a model as a program, read it again and compare it with the model.

    Args:
        model: a model around a network; it is put into evaluation mode meanwhile.
        path: ending in .pt2 (``torch.export.load(path).module()`` runs it) or .onnx (any ONNX runtime; needs
            the extra ``onnx``).
        part: "network", whose inputs are those of ``model.arguments``; or a prediction, whose inputs are x_t
            with shape (B, *) and t with shape (B,), in the model's type.  A model with conditions has the
            condition as third input.

    Raises:
        ValueError: another ending, an unknown part, an operation that cannot be exported, or a program that
            gives other numbers than the model.
        ImportError: a library for ONNX is not installed.
        OSError: the file cannot be written.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
    place = check_output_file(Path(path), "path")
    if place.suffix not in FORMATS:
        raise ValueError(f"path must end in {' or '.join(FORMATS)}, got {str(path)!r}")
    if place.suffix == ".onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            other_library(library, "an ONNX program", "onnx")
    with evaluating(model), torch.no_grad(), _quiet():
        program = _program(model, part)
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / place.name
            if place.suffix == ".onnx":
                torch.onnx.export(program, f=str(draft), dynamo=True, external_data=False, verbose=False)
                run = _run_onnx(draft)
            else:
                torch.export.save(program, draft)
                run = torch.export.load(draft).module()
            difference = _difference(run, model, part)
            written = draft.read_bytes()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"model must give the same numbers as a program, got a difference of {difference:.2g} of the "
            'largest; a network whose code asks for values ("if x.sum() > 0") cannot be exported'
        )
    atomic_write(place, written)
    names = tuple(_inputs(model, part, 1, 0))
    return Exported(place, part, names, difference)
