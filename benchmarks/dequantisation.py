"""What dequantisation costs on the held-out digits: bits per dimension under four densities on the bins.

    python -m benchmarks.dequantisation

Two networks of one configuration (``digits``): the shipped one, trained on grey levels at uniform points of
their bins, and one trained on the centres of the bins (in runs/digits-centres, reused if it is there).  For
each, log P by the probability flow with K = 1 and K = 16 draws per image, with one probe per image in each of
two densities, of which one weights the draws of the other:

    uniform, 1e-5       u ~ U[0, 1), the density at t_min = 1e-5
    uniform             the same at the t_min of the truncated normal, where half a bin is 3 sigma / alpha
    truncated normal    the process's own noise, kept within the bin
    variational         a learned density at that t_min, trained on the training digits

"gap" is L_16 - L_1, and the last column the difference to "uniform, 1e-5" with K = 1, image by image.  All
are bounds on -log2 P(v) per dimension, of one and the same discrete law where t_min is the same.
"""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import write_result
from sde_toolkit.config import build_dataset
from sde_toolkit.data import Dataset
from sde_toolkit.likelihood import (
    Dequantizer,
    FlowSolver,
    PlaceFlow,
    TruncatedNormalDequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    discrete_log_likelihood,
    log_likelihood,
    train_dequantizer,
)
from sde_toolkit.models import NetworkModel
from sde_toolkit.runs import open_shipped, train_run

WORKDIR = Path("runs/digits-centres")
IMAGES, DRAWS, SEED = 32, 16, 0
FLOW = {"divergence": 1, "num_diagnostic_samples": 0, "solver": FlowSolver(rtol=0.03, atol=0.03)}
PLACES = {"num_maps": 2, "width": 24}
TRAINING = {"num_steps": 400, "batch_size": 64, "learning_rate": 3e-3}


def dequantizers(model: NetworkModel, dataset: Dataset) -> dict[str, Dequantizer]:
    """Name -> density on the bins; the last one is trained here."""
    scaling, sde = dataset.scaling, model.sde
    truncated = TruncatedNormalDequantizer(scaling, sde)
    flow = PlaceFlow(dataset.event_shape, **PLACES)
    variational = VariationalDequantizer(flow, scaling, sde, truncated.t_min)
    train_dequantizer(variational, model, dataset.train, seed=SEED, **TRAINING)
    return {
        "uniform, 1e-5": UniformDequantizer(scaling, sde),
        "uniform": UniformDequantizer(scaling, sde, truncated.t_min),
        "truncated normal": truncated,
        "variational": variational,
    }


def mean(bits: Tensor) -> dict[str, float]:
    """The mean over the images with its standard error."""
    return {"value": float(bits.mean()), "standard_error": float(bits.std()) / math.sqrt(len(bits))}


def measure(model: NetworkModel, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """One row per density on the bins, printed as it comes."""
    values, first, rows = dataset.test[:IMAGES], None, {}
    for name, dequantizer in dequantizers(model, dataset).items():
        start = time.perf_counter()
        found = discrete_log_likelihood(
            model,
            values,
            dequantizer,
            num_samples=DRAWS,
            seed=SEED,
            log_likelihood=functools.partial(log_likelihood, seed=1, **FLOW),
            second=functools.partial(log_likelihood, seed=2, **FLOW),
        )
        unit = values[0].numel() * math.log(2)
        once = -found.log_weights[:, 0] / unit
        first = once if first is None else first
        row = {
            "t_min": dequantizer.t_min,
            "one_draw": mean(once),
            "all_draws": mean(found.bits_per_dim),
            "gap": mean(found.gap / unit),
            "difference": mean(once - first),
            "evaluations": float(found.nfe.double().mean()) / (2 * DRAWS) if found.nfe is not None else None,
            "seconds": time.perf_counter() - start,
        }
        rows[name] = row
        cells = [row["one_draw"], row["all_draws"], row["gap"], row["difference"]]
        text = "".join(f"{cell['value']:>10.4f} +- {cell['standard_error']:.4f}" for cell in cells)
        print(f"{name:<18}{row['t_min']:>9.2g}{text}{row['evaluations']:>7.0f}", flush=True)
    return rows


def main() -> None:
    """Train or reuse, measure, print, write JSON."""
    torch.set_num_threads(1)
    runs = {
        "uniform": open_shipped("digits"),
        "centres": train_run(WORKDIR, "digits", {"data.training": "centres"}),
    }
    results = {}
    for training, run in runs.items():
        print(f"trained on {training}, {IMAGES} held-out digits, bits/dim")
        heads = ("K = 1", f"K = {DRAWS}", "gap", "difference")
        print(f"{'':<18}{'t_min':>9}" + "".join(f"{head:>20}" for head in heads) + f"{'NFE':>7}")
        results[training] = measure(run.model, build_dataset(run.config))
    flow = {**FLOW, "solver": FLOW["solver"].settings}
    settings = {"images": IMAGES, "draws": DRAWS, "flow": flow, "places": PLACES, "training": TRAINING}
    write_result("dequantisation", settings, results)


if __name__ == "__main__":
    main()
