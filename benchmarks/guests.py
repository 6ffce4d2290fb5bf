"""Other libraries' samplers on our models, through ``as_k_denoiser`` and ``as_azula_denoiser``.

    python -m benchmarks guests

The data are a mixture of three Gaussians on the line, whose probability flow is known exactly: it carries the
quantiles of p_T to those of p_t.  Every sampler takes N steps from the same 64 starts, quantiles of the
prior, under VP from T to t_min = 1e-3 and under VE; k-diffusion on its own grid (Karras), azula on its own
(equal steps in the process's time), and our preset of the same rule on the same times.

    error     root-mean-square distance from the exact flow at t_min, over the data's standard deviation
    order     fitted to the errors at the most steps
    apart     largest distance between the two libraries' states, over the same unit, for 20 steps

A library that is not installed is named and left out.  Of k-diffusion its file of samplers is enough:
``pip install --no-deps k-diffusion torchdiffeq``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit import samplers
from sde_toolkit.interop import as_azula_denoiser, as_k_denoiser
from sde_toolkit.models import ExactModel, GaussianMixture
from sde_toolkit.samplers import Sampler, grids
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE
from solvers import expand_like

DATA = GaussianMixture([0.3, 0.5, 0.2], [[-1.0], [0.4], [1.5]], [0.04, 0.09, 0.01])
PROCESSES: dict[str, ForwardSDE] = {"VP": VPSDE(), "VE": VESDE()}
STEPS = (10, 20, 40, 80)
FINE = (160, 320)
FITTED = 3
"""Of the runs with the most steps, those that the order is fitted to."""
STARTS, T_MIN = 64, 1e-3


class Pair(NamedTuple):
    """A sampler of another library, and our preset of its rule.

    Attributes:
        theirs: its name there.
        options: of theirs.
        ours: the preset.
        own: options of ours.
    """

    theirs: str
    options: dict[str, Any]
    ours: str
    own: dict[str, Any]


PAIRS = {
    "k-diffusion": [
        Pair("sample_euler", {}, "ddim", {}),
        Pair("sample_heun", {}, "edm", {}),
        Pair("sample_dpm_2", {}, "dpm_solver", {"order": 2}),
        Pair("sample_dpmpp_2s_ancestral", {"eta": 0.0}, "dpm_solver_pp_2s", {}),
        Pair("sample_lms", {"order": 2}, "lms", {"order": 2}),
        Pair("sample_lms", {"order": 4}, "lms", {"order": 4}),
        Pair("sample_dpmpp_2m", {}, "dpm_solver_pp", {"order": 2}),
    ],
    "azula": [
        Pair("DDIMSampler", {}, "ddim", {}),
        Pair("HeunSampler", {}, "edm", {}),
        Pair("zABSampler", {"order": 2}, "lms", {"order": 2}),
        Pair("zABSampler", {"order": 3}, "lms", {"order": 3}),
        Pair("zEABSampler", {"order": 2}, "exponential_adams", {"order": 2, "predicts": "noise"}),
        Pair("zEABSampler", {"order": 3}, "exponential_adams", {"order": 3, "predicts": "noise"}),
        Pair("xEABSampler", {"order": 2}, "exponential_adams", {"order": 2, "predicts": "data"}),
        Pair("xEABSampler", {"order": 3}, "exponential_adams", {"order": 3, "predicts": "data"}),
    ],
}
Run = Callable[[ExactModel, Pair, Tensor, int], tuple[Tensor, Sampler]]


def k_diffusion_samplers() -> Any:
    """k-diffusion's module of samplers, without what the rest of the package needs.

    Raises:
        ImportError: it is not installed, or torchdiffeq is not.
    """
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("no k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations)
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


def preset(pair: Pair, num_steps: int, grid: Any) -> Sampler:
    """Our sampler of a pair on a grid."""
    made = samplers.PRESETS[pair.ours]
    return made.make(num_steps, t_min=T_MIN, grid=grid, denoise=False, **pair.own)


def of_k_diffusion() -> Run:
    """Runs of k-diffusion."""
    library = k_diffusion_samplers()

    def run(model: ExactModel, pair: Pair, z: Tensor, num_steps: int) -> tuple[Tensor, Sampler]:
        denoiser = as_k_denoiser(model, t_min=T_MIN)
        first, last = (torch.tensor(t, dtype=torch.float64) for t in (model.sde.T, T_MIN))
        y = model.sde.prior_sample(z) / float(model.sde.alpha(first))
        sigmas = denoiser.sigmas(num_steps + 1)[:-1]
        end = getattr(library, pair.theirs)(denoiser, y, sigmas, disable=True, **pair.options)
        return float(model.sde.alpha(last)) * end, preset(pair, num_steps, grids.karras)

    return run


def of_azula() -> Run:
    """Runs of azula."""
    library = importlib.import_module("azula.sample")

    def run(model: ExactModel, pair: Pair, z: Tensor, num_steps: int) -> tuple[Tensor, Sampler]:
        made = getattr(library, pair.theirs)(
            as_azula_denoiser(model, t_min=T_MIN), steps=num_steps, silent=True, dtype=torch.float64,
            **({"eta": 0.0} if pair.theirs == "DDIMSampler" else {}), **pair.options,
        )  # fmt: skip
        return made(model.sde.prior_sample(z)), preset(pair, num_steps, grids.uniform)

    return run


class Given:
    """The normals of the start."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def draw(self, index: int, stream: int = 0) -> Tensor:
        """Those, whatever is asked for."""
        return self.z


def order(errors: dict[int, float]) -> float:
    """Minus the slope of log error over log steps, at the most steps."""
    steps = sorted(errors)[-FITTED:]
    return float(-np.polyfit(np.log(steps), np.log([errors[n] for n in steps]), 1)[0])


def compare(run: Run, pair: Pair, sde: ForwardSDE) -> dict[str, Any]:
    """Errors and orders of both, and how far they are apart."""
    model = ExactModel(DATA, sde)
    levels = (torch.arange(STARTS, dtype=torch.float64) + 0.5) / STARTS
    z = torch.special.ndtri(levels)[:, None]
    first, last = (torch.tensor(t, dtype=torch.float64) for t in (sde.T, T_MIN))
    exact = model.flow(sde.prior_sample(z), first, last)
    unit = float(expand_like(DATA.variance, z).sqrt())
    errors: dict[str, dict[int, float]] = {"theirs": {}, "ours": {}}
    apart = 0.0
    for num_steps in (*STEPS, *FINE):
        theirs, sampler = run(model, pair, z, num_steps)
        ours = sampler.sample(model, STARTS, noise=Given(z)).x
        for name, x in (("theirs", theirs), ("ours", ours)):
            errors[name][num_steps] = float((x - exact).square().mean().sqrt()) / unit
        if num_steps == 20:
            apart = float((theirs - ours).abs().max()) / unit
    return {
        name: {"errors": {str(n): digits(e) for n, e in found.items()}, "order": digits(order(found))}
        for name, found in errors.items()
    } | {"apart": digits(apart)}


def name(call: str, options: dict[str, Any]) -> str:
    """A sampler with its options."""
    inside = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{call}({inside})" if inside else call


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    numbers = "".join(f"{row['theirs']['errors'][str(n)]:>10.2e}" for n in STEPS)
    orders = f"{row['theirs']['order']:>7.2f}{row['ours']['order']:>7.2f}"
    at = f"{row['ours']['errors']['20']:>10.2e}{row['apart']:>10.1e}"
    return f"{row['sampler']:<36}{row['process']:<4}{numbers}{orders}{at}  {row['preset']}"


def main() -> None:
    """Compare, print and record."""
    steps = "".join(f"{f'{n} steps':>10}" for n in STEPS)
    print(f"{'':<40}{steps}{'order':>7}{'ours':>7}{'ours, 20':>10}{'apart':>10}  our preset")
    rows = []
    for library, made in (("k-diffusion", of_k_diffusion), ("azula", of_azula)):
        try:
            run = made()
        except ImportError as error:
            print(f"{library} is left out: {error}")
            continue
        print(library)
        for pair in PAIRS[library]:
            for process, sde in PROCESSES.items():
                row = {
                    "library": library, "sampler": name(pair.theirs, pair.options), "process": process,
                    "preset": name(pair.ours, pair.own), **compare(run, pair, sde),
                }  # fmt: skip
                rows.append(row)
                print(line(row), flush=True)
    if rows:
        settings = {"steps": [*STEPS, *FINE], "fitted": FITTED, "starts": STARTS, "t_min": T_MIN}
        write_result("guests", settings, rows)


if __name__ == "__main__":
    main()
