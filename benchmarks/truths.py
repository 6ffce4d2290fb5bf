"""Is the score that a loss trains the exact one?  Predictions x weights on data known in closed form.

    python -m benchmarks.truths             one row and one column of the table: 19 pairs on two data sets
    python -m benchmarks.truths all         all 91 pairs
    python -m benchmarks.truths gaussian    on one data set alone; or mixture
    python -m benchmarks.truths velocity    of one prediction alone
    python -m benchmarks.truths long        with four times the updates

A small MLP under VP is trained by a prediction and a weight on fresh draws of a Gaussian, or of a mixture of
two, in the plane.  All pairs have the same network, updates, batches and draws of data; times are drawn by
the data's moments, and rows go in antithetic pairs.  The averaged network is compared with the exact score at
equal times from t_min to T, on fresh draws that training has not seen:

    score       ( sum_t sigma^2 E |score - exact|^2  /  sum_t sigma^2 E |exact|^2 )^(1/2), in per cent
    at t        the same at one time alone
    loss        mean loss over that of the exact score on the same draws, less 1, in per cent; 0 is the known
                minimum

sigma^2 makes every time count by the error of the noise, which all weights are weights of.  "ok" says that
the score is within 2 per cent.  The default run, "one row and one column", has every prediction under the
likelihood's weight, and every weight with the velocity.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.record import digits, write_result
from sde_toolkit.models import PREDICTIONS, ExactData, ExactModel, Gaussian, GaussianMixture, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import WEIGHTINGS, DenoisingLoss, Optimization, TrainState, train_step

SDE = VPSDE()
DATA: dict[str, ExactData] = {
    "gaussian": Gaussian([0.3, -0.2], [[0.6, 0.25], [0.25, 0.3]]),
    "mixture": GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [0.8, -0.4]], [[0.15, 0.1], [0.1, 0.25]]),
}
STEPS, BATCH, RATE, T_MIN = 800, 512, 5e-3, 0.03
TIMES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
LIMIT = 2.0
POOL, HELD_OUT = 400_000, 4_000


def pairs(everything: bool) -> list[tuple[str, str]]:
    """(prediction, weight): all, or one row and one column of the table."""
    if everything:
        return [(predicts, weighting) for predicts in PREDICTIONS for weighting in WEIGHTINGS]
    return list(dict.fromkeys([
        *((predicts, "likelihood") for predicts in PREDICTIONS),
        *(("velocity", weighting) for weighting in WEIGHTINGS),
    ]))  # fmt: skip


def train(
    data: ExactData, pool: torch.Tensor, predicts: str, weighting: str, steps: int = STEPS
) -> NetworkModel:
    """The averaged network after so many updates."""
    exact = ExactModel(data, SDE)
    network = MLP((2,), width=48, depth=2, num_frequencies=16)
    model = NetworkModel(network, SDE, predicts, (2,), exact.data_std, exact.moments)
    rule = Optimization(RATE, 50, steps, "cosine", ema_profile="constant", ema_decay=0.98)
    state = TrainState(model, rule, seed=0)
    loss = DenoisingLoss(weighting, T_MIN, "moments", antithetic_nsr=2.0)  # type: ignore[arg-type]
    for step in range(steps):
        rows = torch.randint(len(pool), (BATCH,), generator=torch.Generator().manual_seed(step))
        train_step(state, pool[rows], loss)
    state.ema.network.eval()
    return state.ema  # type: ignore[return-value]


@torch.no_grad()
def errors(data: ExactData, model: NetworkModel) -> dict[str, float]:
    """ "score", and the same by time, in per cent."""
    exact, generator = ExactModel(data, SDE), torch.Generator().manual_seed(5)
    x0, found, totals = data.sample(HELD_OUT, seed=9), {}, [0.0, 0.0]
    for t in torch.tensor(TIMES, dtype=torch.float64):
        x_t = SDE.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))
        z_hat = exact.noise(x_t, t)
        error = (model.noise(x_t.float(), t).double() - z_hat).square().sum()
        size = z_hat.square().sum()
        totals = [totals[0] + float(error), totals[1] + float(size)]
        found[f"{float(t):g}"] = 100 * float((error / size).sqrt())
    return {"score": 100 * (totals[0] / totals[1]) ** 0.5, **found}


@torch.no_grad()
def excess(data: ExactData, model: NetworkModel, weighting: str) -> float:
    """Of the mean loss over its minimum, in per cent, on the same draws."""
    loss = DenoisingLoss(weighting, T_MIN, "moments")  # type: ignore[arg-type]
    x0 = data.sample(20_000, seed=11)
    ours, exact = (
        loss(m, x0.to(m.dtype), torch.Generator().manual_seed(6)).double().mean()
        for m in (model, _in_float32(data))
    )
    return 100 * float(ours / exact - 1)


class _Single(ExactModel):
    """An exact model asked with float32 states, so that it gets the draws of a network."""

    def __init__(self, data: ExactData) -> None:
        super().__init__(data, SDE)
        self.dtype = torch.float32

    def raw(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return super().raw(x_t.double(), t, condition).float()


def _in_float32(data: ExactData) -> ExactModel:
    return _Single(data)


def main(arguments: Sequence[str] = ()) -> None:
    """Train the pairs, print the table, write the figures after every row."""
    chosen, steps = pairs("all" in arguments), STEPS * (4 if "long" in arguments else 1)
    chosen = [pair for pair in chosen if not {*PREDICTIONS} & {*arguments} or pair[0] in arguments]
    names = [name for name in DATA if name in arguments] or list(DATA)
    settings: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "learning_rate": RATE, "t_min": T_MIN,
                                "times": TIMES, "limit": LIMIT, "held_out": HELD_OUT, "seed": 0}  # fmt: skip
    rows: list[dict[str, Any]] = []
    print(f"{'data':9} {'predicts':9} {'weight':13} {'score':>6} {'loss':>7}   at t = {TIMES}")
    pools = {name: DATA[name].sample(POOL, seed=1).float() for name in names}
    for predicts, weighting in chosen:
        for name in names:
            start = time.perf_counter()
            model = train(DATA[name], pools[name], predicts, weighting, steps)
            found, over = errors(DATA[name], model), excess(DATA[name], model, weighting)
            rows.append({
                "data": name, "predicts": predicts, "weighting": weighting, "loss": digits(over),
                **{key: digits(value) for key, value in found.items()},
                "seconds": digits(time.perf_counter() - start),
            })  # fmt: skip
            by_time = " ".join(f"{found[f'{t:g}']:5.2f}" for t in TIMES)
            verdict = "ok" if found["score"] < LIMIT else "outside"
            head = f"{name:9} {predicts:9} {weighting:13} {found['score']:6.2f} {over:7.3f}"
            print(f"{head}   {by_time}  {verdict}", flush=True)
            write_result("truths_long" if steps > STEPS else "truths", settings, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
