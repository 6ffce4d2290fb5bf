"""Our networks and samplers beside those of score_sde (yang-song's PyTorch code), which stays outside.

    python -m benchmarks.score_sde PATH          # PATH: a checkout of score_sde_pytorch

For each configuration the original network gets random weights, its own code writes a checkpoint (in the
layout of its ``save_checkpoint``), and ``from_score_sde`` loads that checkpoint.  Then, at the same states
and times,

    output      the largest difference of the network's outputs, relative to their largest value
    step        the same for the states after single steps of the configuration's sampler (its corrector and
                its predictor, with the same draws, from the same state), the largest of N = 40
    run         the same for the end of the whole run

in float32 and in float64.  The original computes the features of labels, its filters and its time grid in
float32 whatever the type of its weights; for the rows in float64 these are replaced by the same formulas in
float64, with the frequencies as they are.  Its CUDA filter is replaced by its own native one.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.record import digits, write_result
from sde_toolkit import samplers
from sde_toolkit.interop import ScoreSDEConfig, from_score_sde, read_score_sde_config
from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import StepInfo
from sde_toolkit.utils import Stream
from solvers import Normals

BATCH, SEED = 2, 0
SMALL: dict[str, Any] = {
    "nf": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "image_size": 16,
    "attn_resolutions": (8,),
}
NUM_STEPS = 40
INDICES = {"num_scales": NUM_STEPS}
"""What makes a model of N indices smaller."""
DEEP = SMALL | {"num_res_blocks": 2, "ch_mult": (1, 2, 2), "image_size": 32, "attn_resolutions": (16,)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm, VP": ("vp/ddpm/cifar10_continuous", SMALL),
    "ddpm, VP, discrete": ("vp/ddpm/cifar10", SMALL | INDICES),
    "ddpm, sub-VP": ("subvp/cifar10_ddpm_continuous", SMALL),
    "ddpm, VE, discrete": ("ve/cifar10_ddpm", SMALL | INDICES),
    "DDPM++, VP": ("vp/cifar10_ddpmpp_continuous", SMALL),
    "DDPM++ deep, VP": ("vp/cifar10_ddpmpp_deep_continuous", DEEP),
    "DDPM++, sub-VP": ("subvp/cifar10_ddpmpp_continuous", SMALL),
    "NCSN++, VE": ("ve/cifar10_ncsnpp_continuous", SMALL),
    "NCSN++ deep, VE": ("ve/cifar10_ncsnpp_deep_continuous", DEEP),
    "NCSN++, VE, discrete": ("ve/cifar10_ncsnpp", SMALL | INDICES),
    "NCSN++, VP, discrete": ("vp/cifar10_ncsnpp", SMALL | INDICES),
    "NCSN++, VP": ("vp/cifar10_ncsnpp_continuous", SMALL),
    "NCSN++ deep, sub-VP": ("subvp/cifar10_ncsnpp_deep_continuous", DEEP),
    "NCSN++ with both pyramids, VE": ("ve/ffhq_256_ncsnpp_continuous", DEEP),
    "NCSN++ of 1024 x 1024, VE": ("ve/ffhq_ncsnpp_continuous", {"image_size": 128}),
}
"""Configuration and what is made smaller, by name."""
FULL = {
    "NCSN++, VE, full width": ("ve/cifar10_ncsnpp_continuous", {}),
    "DDPM++, VP, full width": ("vp/cifar10_ddpmpp_continuous", {}),
    "ddpm, VP, full width": ("vp/ddpm/cifar10", {}),
}
"""At their published sizes."""
OTHER = {
    "pyramids beside each other": {"progressive_input": "input_skip", "progressive_combine": "cat"},
    "appended pyramid without filters": {
        "progressive_input": "input_skip", "progressive_combine": "cat", "fir": False,
    },
    "input pyramid without filters": {"fir": False},
    "sums undivided": {"skip_rescale": False},
}  # fmt: skip
"""Options of NCSN++ that no published configuration has, on "ve/cifar10_ncsnpp_continuous"."""


SAMPLING = ("predictor", "corrector")
PUBLISHED = {
    "VP": "vp/cifar10_ddpmpp_continuous", "VE": "ve/cifar10_ncsnpp_continuous",
    "VP, discrete": "vp/cifar10_ncsnpp",
}  # fmt: skip
STEPS = ("euler_maruyama", "reverse_diffusion", "ancestral_sampling")
ALL = [
    *((predictor, corrector) for predictor in STEPS for corrector in ("none", "langevin")),
    ("none", "langevin"), ("none", "ald"), (STEPS[1], "ald"),
]  # fmt: skip
COMBINED = {
    "VP": ALL,
    "VE": ALL,
    "VP, discrete": [(STEPS[1], "langevin"), (STEPS[2], "ald"), ("none", "langevin")],
}  # fmt: skip
PAIRS = {
    f"{kind}, {predictor} + {corrector}": (
        PUBLISHED[kind],
        SMALL | (INDICES if "discrete" in kind else {}) | {"predictor": predictor, "corrector": corrector},
    )
    for kind, pairs in COMBINED.items()
    for predictor, corrector in pairs
}
"""Predictors and correctors that the configurations do not combine."""


class Original:
    """The modules of a checkout, without its CUDA extension.

    Args:
        path: of the checkout.
        exact: whether what it does in float32 is done in float64.
    """

    def __init__(self, path: Path, exact: bool) -> None:
        self.path, self.exact = path, exact
        self.dtype = torch.float64 if exact else torch.float32

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Original]:
        """Its modules, which are forgotten at the end."""
        before, default = set(sys.modules), torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        sys.path.insert(0, str(self.path))
        sys.modules["op"] = self._filter()
        try:
            self.sampling, self.sde_lib, self.utils, self.layers, self.ema = (
                importlib.import_module(name)
                for name in ("sampling", "sde_lib", "models.utils", "models.layers", "models.ema")
            )
            for name in ("models.ddpm", "models.ncsnpp"):
                importlib.import_module(name)
            if self.exact:
                self._widen()
            yield self
        finally:
            torch.set_default_dtype(default)
            sys.path.remove(str(self.path))
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if name == "op" or file.startswith(str(self.path)):
                    del sys.modules[name]

    def _filter(self) -> types.ModuleType:
        """Its module op, with the native filter alone."""
        tree = ast.parse((self.path / "op" / "upfirdn2d.py").read_text(encoding="utf-8"))
        tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "upfirdn2d_native"]
        space: dict[str, Any] = {"F": nn.functional, "torch": torch}
        exec(compile(tree, "upfirdn2d", "exec"), space)
        module = types.ModuleType("op")

        def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: Any = (0, 0)) -> Tensor:
            return space["upfirdn2d_native"](x, kernel.to(x.dtype), up, up, down, down, *pad, *pad)

        module.upfirdn2d = upfirdn2d  # type: ignore[attr-defined]
        return module

    def _widen(self) -> None:
        """The features of labels in float64, with the frequencies of float32."""
        original = self.layers.get_timestep_embedding

        def features(labels: Tensor, count: int) -> Tensor:
            one = original(torch.ones(1), count)  # sin(w), cos(w): only for the shape
            half = count // 2
            steps = -torch.tensor(10000.0, dtype=torch.float64).log().item() / (half - 1)
            w = torch.exp(torch.arange(half, dtype=torch.float32) * steps).double()
            angles = labels.double()[:, None] * w
            assert one.shape[1] == 2 * half
            return torch.cat([angles.sin(), angles.cos()], 1)

        self.layers.get_timestep_embedding = features

    def config(self, name: str, changes: dict[str, Any]) -> Any:
        """Its configuration, run as a program, with changes."""
        config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()
        config.device = torch.device("cpu")
        for field, value in changes.items():
            home = "data" if field == "image_size" else "sampling" if field in SAMPLING else "model"
            config[home][field] = value
        return config

    def model(self, config: Any) -> nn.Module:
        """Its network in parallel's wrapper, with random weights."""
        model = self.utils.create_model(config).float()
        generator = torch.Generator().manual_seed(SEED)
        for parameter in model.parameters():
            fan = max(1, parameter.numel() // max(1, len(parameter)))
            z = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.requires_grad:
                parameter.data = 1 + 0.1 * z if parameter.ndim == 1 else z / fan**0.5
        return model

    def checkpoint(self, model: nn.Module, path: Path) -> None:
        """A file in the layout of its ``save_checkpoint``; ``model`` has the averages from now on."""
        ema = self.ema.ExponentialMovingAverage(model.parameters(), decay=0.999)
        for shadow in ema.shadow_params:
            shadow.mul_(1.01)
        optimizer = torch.optim.Adam(model.parameters()).state_dict()
        state = {"optimizer": optimizer, "model": model.state_dict(), "ema": ema.state_dict(), "step": 7}
        torch.save(state, path)
        ema.copy_to(model.parameters())

    def sde(self, config: Any) -> Any:
        """Its process, for N steps."""
        m, name = config.model, config.training.sde
        if name == "vesde":
            return self.sde_lib.VESDE(m.sigma_min, m.sigma_max, NUM_STEPS)
        kind = self.sde_lib.VPSDE if name == "vpsde" else self.sde_lib.subVPSDE
        return kind(m.beta_min, m.beta_max, NUM_STEPS)


def ours(path: Path, name: str, changes: dict[str, Any]) -> ScoreSDEConfig:
    """The same configuration, read as data."""
    changes = {field: value for field, value in changes.items() if field not in SAMPLING}
    return replace(read_score_sde_config(path / "configs" / f"{name}.py"), **changes)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def compare(original: Original, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One configuration: how far the outputs are apart."""
    theirs = original.config(name, changes)
    model, settings = original.model(theirs), ours(original.path, name, changes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pth"
        original.checkpoint(model, file)
        start = time.perf_counter()
        mine = from_score_sde(file, settings).to(original.dtype)
        seconds = time.perf_counter() - start
    model.to(original.dtype).eval()
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(BATCH, *settings.event_shape, generator=generator, dtype=torch.float64).to(original.dtype)
    labels = _labels(settings, original.dtype)
    network = mine.network if not hasattr(mine.network, "network") else mine.network.network
    with torch.no_grad():
        output = apart(network(x, labels), model(x, labels))
        found |= {"output": digits(output), "load_seconds": digits(seconds)}
        if changes.get("image_size", 99) <= 16:
            step, run = compare_steps(original, theirs, model, mine)
            found |= {"step": digits(step), "run": digits(run)}
    return found


class Draws:
    """The draws of the original in its order, from ours: the start, then corrections and steps in turn."""

    def __init__(self, source: Normals, corrections: int, steps: bool = True) -> None:
        self.source, self.corrections, self.count = source, corrections, 0
        self.each = corrections + steps

    def __call__(self, *shape: Any, **options: Any) -> Tensor:
        """The next one."""
        number, self.count = self.count - 1, self.count + 1
        if number < 0:
            return self.source.draw(0, Stream.PRIOR)
        step, place = divmod(number, self.each)
        if place < self.corrections:
            return self.source.draw(step * self.corrections + place, Stream.CORRECTOR)
        return self.source.draw(step)


def compare_steps(original: Original, config: Any, model: nn.Module, mine: ScoreModel) -> tuple[float, float]:
    """The largest difference after one step, and that at the end of the run."""
    sampling, sde, s = original.sampling, original.sde(config), config.sampling
    name, continuous = config.training.sde, config.training.continuous
    corrections = 0 if s.corrector == "none" else s.n_steps_each
    predictor, corrector = sampling.get_predictor(s.predictor), sampling.get_corrector(s.corrector)
    source = Normals(SEED, BATCH, mine.event_shape, original.dtype)
    draws = Draws(source, corrections, s.predictor != "none")
    eps = 1e-5 if name == "vesde" else 1e-3
    states: list[Tensor] = []
    with patch.object(torch, "randn_like", draws), patch.object(torch, "randn", draws):
        x = sde.prior_sampling((BATCH, *mine.event_shape))
        for t in torch.linspace(sde.T, eps, sde.N):
            times = torch.ones(BATCH) * t
            x, _ = sampling.shared_corrector_update_fn(
                x, times, sde, model, corrector, continuous, s.snr, s.n_steps_each
            )
            states.append(x)
            x, mean = sampling.shared_predictor_update_fn(x, times, sde, model, predictor, False, continuous)
    kind = name.removesuffix("sde")
    names = {"euler_maruyama": "euler_maruyama", "ancestral_sampling": "ancestral"}
    options: dict[str, Any] = {} if kind == "subvp" else {
        "predictor": names.get(s.predictor, s.predictor), "corrections": corrections, "snr": s.snr,
        "correction": "ald" if s.corrector == "ald" else "langevin", "batch_mean_norms": s.corrector != "ald",
    }  # fmt: skip
    sampler = samplers.PRESETS[f"score_sde_{kind}"].make(sde.N, **options)
    largest = 0.0

    def follow(info: StepInfo) -> Tensor | None:
        nonlocal largest
        if info.number + 1 == info.num_steps:
            largest = max(largest, apart(info.x, mean))
            return None
        largest = max(largest, apart(info.x, states[info.number + 1]))
        return states[info.number + 1]

    sampler.sample(mine, BATCH, noise=source, callback=follow)
    return largest, apart(sampler.sample(mine, BATCH, noise=source).x, mean)


def _labels(settings: ScoreSDEConfig, dtype: torch.dtype) -> Tensor:
    if settings.continuous and settings.sde == "vesde":
        return torch.tensor([0.02, 17.3], dtype=dtype)
    if settings.sde == "vesde":
        return torch.tensor([3, settings.num_scales - 2])
    return torch.tensor([2.25, 0.7315 * settings.num_scales], dtype=dtype)


def main(arguments: Sequence[str] = ()) -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, nargs="*", default=[os.environ.get("SDE_TOOLKIT_SCORE_SDE", "")])
    parser.add_argument("--full", action="store_true", help="the published sizes too")
    args = parser.parse_args(arguments)
    path = next((p for p in map(Path, args.path) if (p / "sde_lib.py").is_file()), None)
    if path is None:
        print("left out: needs a checkout of score_sde_pytorch, as in python -m benchmarks.score_sde PATH")
        return
    rows = []
    base = "ve/cifar10_ncsnpp_continuous"
    cases = CASES | {what: (base, SMALL | more) for what, more in OTHER.items()}
    cases |= PAIRS | (FULL if args.full else {})
    for exact in (False, True):
        with Original(path, exact).loaded() as original:
            for what, (name, changes) in cases.items():
                if exact and not changes:
                    continue
                row = {"case": what, "type": str(original.dtype).removeprefix("torch.")}
                row |= compare(original, name, changes)
                rows.append(row)
                print(row, flush=True)
    write_result("score_sde", {"seed": SEED, "batch": BATCH, "num_steps": NUM_STEPS}, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
