"""Step count against quality on problems whose truth is known.

    python -m benchmarks.quality

For every sampler and number of network evaluations, on the 8-D mixture of five Gaussians under VP:

    flow    deterministic samplers: RMS distance of the output from the exact end of the probability flow,
            relative to the RMS of that end (float64, the same normals)
    energy  all samplers: energy distance of the samples to draws of the data; the floor is what two sets of
            draws of the data have
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from benchmarks.record import RESULTS, write_result
from sde_toolkit import samplers
from sde_toolkit.metrics import energy_distance
from sde_toolkit.models import ExactModel, GaussianMixture
from sde_toolkit.samplers import AnnealedLangevin, Sampler
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import Stream
from solvers import Normals

EVALUATIONS = (5, 10, 20, 50, 100, 200)
FLOW_SAMPLES, LAW_SAMPLES, SEED = 256, 2000, 0
DETERMINISTIC = ("ddim", "euler", "heun")


def mixture() -> GaussianMixture:
    """Five Gaussians in eight dimensions with unequal weights, scales and full covariances."""
    generator = torch.Generator().manual_seed(0)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factors = 0.35 * normals(5, 8, 8) / math.sqrt(8)
    covariances = factors @ factors.mT + 0.02 * torch.eye(8, dtype=torch.float64)
    return GaussianMixture((0.5 * normals(5)).softmax(0), 1.2 * normals(5, 8), covariances)


def _with_evaluations(make: Callable[..., Sampler], per_step: int, nfe: int) -> Sampler:
    """The sampler that spends at most ``nfe`` evaluations, the final denoising included."""
    return make(max(1, (nfe - 1) // per_step))


def entries() -> dict[str, Callable[[int], Sampler]]:
    """Name -> sampler for a number of evaluations."""

    def corrected(num_steps: int) -> Sampler:
        return samplers.predictor_corrector(samplers.reverse_diffusion(num_steps), AnnealedLangevin())

    makers: dict[str, tuple[Callable[..., Sampler], int]] = {
        "ddim": (samplers.ddim, 1),
        "euler": (samplers.euler, 1),
        "heun": (samplers.heun, 2),
        "euler_maruyama": (samplers.euler_maruyama, 1),
        "reverse_diffusion": (samplers.reverse_diffusion, 1),
        "ancestral": (samplers.ancestral, 1),
        "predictor_corrector": (corrected, 2),
    }
    return {
        name: lambda nfe, make=make, per_step=per_step: _with_evaluations(make, per_step, nfe)
        for name, (make, per_step) in makers.items()
    }


def measure() -> list[dict[str, object]]:
    """One row per sampler and number of evaluations."""
    data, sde = mixture(), VPSDE()
    model = ExactModel(data, sde)
    start, end = torch.tensor(sde.T, dtype=torch.float64), torch.tensor(samplers.T_MIN, dtype=torch.float64)
    x_T = sde.prior_sample(Normals(SEED, FLOW_SAMPLES, model.event_shape).draw(0, Stream.PRIOR))
    exact = model.denoise(model.flow(x_T, start, end), end)
    scale = float(exact.square().mean().sqrt())
    truth = data.sample(LAW_SAMPLES, seed=1)
    rows: list[dict[str, object]] = []
    for name, at in entries().items():
        for nfe in EVALUATIONS:
            result = at(nfe).sample(model, LAW_SAMPLES, seed=SEED)
            flow = None
            if name in DETERMINISTIC:
                flow = float((result.x[:FLOW_SAMPLES] - exact).square().mean().sqrt()) / scale
            distance = energy_distance(result.x, truth)
            rows.append({"sampler": name, "nfe": result.nfe, "flow": flow, "energy": distance})
    return rows


def floor() -> float:
    """Energy distance of two independent sets of draws of the data."""
    data = mixture()
    return energy_distance(data.sample(LAW_SAMPLES, seed=1), data.sample(LAW_SAMPLES, seed=2))


def figure(rows: list[dict[str, object]]) -> Figure:
    """Flow error and energy distance against evaluations, on log axes."""
    fig = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, key, title in zip(
        fig.subplots(1, 2),
        ("flow", "energy"),
        ("relative error of the flow", "energy distance to the data"),
        strict=True,
    ):
        for name in entries():
            points = [(r["nfe"], r[key]) for r in rows if r["sampler"] == name and r[key] is not None]
            if points:
                axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axes.set(xlabel="network evaluations", title=title)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(frameon=False, fontsize=8)
    return fig


def main() -> None:
    """Print the table, write JSON and the figure."""
    torch.set_num_threads(1)
    rows = measure()
    print(f"{'sampler':<22}{'NFE':>6}{'flow error':>14}{'energy distance':>18}")
    for row in rows:
        flow = "" if row["flow"] is None else f"{row['flow']:.3g}"
        print(f"{row['sampler']:<22}{row['nfe']:>6.0f}{flow:>14}{row['energy']:>18.4g}")
    print(f"energy distance of two sets of data: {floor():.3g}")
    settings = {"samples": LAW_SAMPLES, "flow_samples": FLOW_SAMPLES, "seed": SEED, "sde": repr(VPSDE())}
    write_result("quality", settings, {"rows": rows, "floor": floor()})
    figure(rows).savefig(RESULTS / "quality.png", dpi=150)


if __name__ == "__main__":
    main()
