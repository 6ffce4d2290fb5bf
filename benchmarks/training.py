"""How fast is a training step, beside diffusers' example loop and beside the network alone?

    loop                 what a step is
    ours                 ``train_step``: loss, gradient, clipping, AdamW, moving average, as in ``fit``
    diffusers            its unconditional example: DDPMScheduler.add_noise, mse of the noise, clipping,
                         AdamW(1e-4, betas .95 and .999, weight decay 1e-6), warm-up, EMAModel
    network              forward and backward of the network on given noise, and nothing else

All three on the same U-Net, batch and core, taken in turn step by step in one process; processor time, so
that other work on the machine counts little.  The networks of "ours" lie in memory as ``UNet`` lays them out
(channels last), that of diffusers is the ``UNet2DModel`` inside, as its example has it.  Reported are the
medians of the times of a step and of the ratios of steps that follow each other.

Equal quality: after the same number of updates of the same initial network on the same data, by the same
objective (uniform times of the linear DDPM schedule, mse of the noise), the held-out mse of both networks on
the same noise.  Both have diffusers' learning rate, moments and decay, and rise to that rate over 50 updates.

bfloat16 is measured where the processor has instructions for it, and left out elsewhere.

    python -m benchmarks training
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import write_result
from sde_toolkit import VPSDE, DenoisingLoss, NetworkModel, Optimization, TrainState, UNet, digits
from sde_toolkit.training import train_step

PAIRS = 40
"""Steps of each loop whose times are taken, after three that are not."""
QUALITY_STEPS = 300
TABLE = 1000
"""Training indices of diffusers' schedule."""
RATE, BETAS, DECAY, WARMUP = 1e-4, (0.95, 0.999), 1e-6, 50
PROBLEMS: dict[str, dict[str, Any]] = {
    "digits 1x8x8": {"event": (1, 8, 8), "channels": (32, 64), "attention": (1,), "batch": 128},
    "3x32x32": {"event": (3, 32, 32), "channels": (32, 64, 64), "attention": (), "batch": 16},
}


class Example:
    """diffusers' unconditional example: what its loop does in a step, without accelerate's bookkeeping."""

    def __init__(self, network: UNet, dtype: torch.dtype | None = None) -> None:
        import diffusers
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.network, self.dtype = network.unet, dtype
        for parameter in self.network.parameters():
            parameter.data = parameter.data.contiguous()
        self.table = diffusers.DDPMScheduler(num_train_timesteps=TABLE, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY
        )
        self.rate = get_scheduler("constant_with_warmup", self.optimizer, num_warmup_steps=WARMUP)
        self.ema = EMAModel(
            network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )

    def step(self, x0: Tensor) -> float:
        """One update; the loss is read, as the example logs it."""
        z = torch.randn_like(x0)
        index = torch.randint(0, TABLE, (len(x0),))
        noisy = self.table.add_noise(x0, z, index)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            loss = F.mse_loss(self.network(noisy, index).sample.float(), z)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        return loss.item()


class Ours:
    """This library's loop on the same schedule: uniform times, mse of the noise."""

    def __init__(self, network: UNet, event: tuple[int, ...], dtype: torch.dtype | None) -> None:
        model = NetworkModel(network, VPSDE(), "noise", event)
        rule = Optimization(
            learning_rate=RATE, betas=BETAS, weight_decay=DECAY, warmup_steps=WARMUP, ema_decay=0.9999
        )
        self.state, self.dtype = TrainState(model, rule), dtype
        self.loss = DenoisingLoss("noise", t_min=1e-4, time_sampling="uniform")

    def step(self, x0: Tensor) -> float:
        """One update."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            return train_step(self.state, x0, self.loss).loss


def build(problem: dict[str, Any]) -> UNet:
    """The network of a problem, the same each time."""
    return UNet(problem["event"], channels=problem["channels"], attention_levels=problem["attention"], seed=0)


def examples(event: tuple[int, ...], count: int) -> Tensor:
    """Digits where they fit; else smooth random images, whose values bear on no time."""
    if event == (1, 8, 8):
        return digits().scaled_train()[:count]
    noise = torch.randn(count, event[0], 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, event[1:], mode="bilinear").clamp(-1, 1)


def timed(work: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def speeds(problem: dict[str, Any], dtype: torch.dtype | None) -> dict[str, float]:
    """Milliseconds of a step of the three loops, and their ratios."""
    ours = Ours(build(problem), problem["event"], dtype)
    example, bare = Example(build(problem), dtype), build(problem)
    x0 = examples(problem["event"], problem["batch"])
    z, c = torch.randn_like(x0), torch.rand(len(x0)) * 1000

    def network() -> None:
        bare.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = F.mse_loss(bare(x0, c).float(), z)
        loss.backward()

    loops = {"ours": lambda: ours.step(x0), "diffusers": lambda: example.step(x0), "network": network}
    rows = [{name: timed(work) for name, work in loops.items()} for _ in range(PAIRS + 3)][3:]
    found = {f"{name} (ms)": 1e3 * statistics.median(row[name] for row in rows) for name in loops}
    found["diffusers / ours"] = statistics.median(row["diffusers"] / row["ours"] for row in rows)
    found["ours / network"] = statistics.median(row["ours"] / row["network"] for row in rows)
    found["images/s of ours"] = problem["batch"] / (found["ours (ms)"] / 1e3)
    return found


def held_out_mse(network: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> float:
    """Of the noise, at uniform indices of the schedule; the same draws for all."""
    import diffusers

    generator = torch.Generator().manual_seed(1)
    table = diffusers.DDPMScheduler(num_train_timesteps=TABLE, beta_schedule="linear")
    x = x.repeat(8, *([1] * (x.ndim - 1)))
    z = torch.randn(x.shape, generator=generator)
    index = torch.arange(len(x)) * TABLE // len(x)
    with torch.no_grad():
        return F.mse_loss(network(table.add_noise(x, z, index), index), z).item()


def quality(problem: dict[str, Any]) -> dict[str, float]:
    """Held-out mse of the networks of both loops after equal updates from equal weights."""
    data, size = digits(), problem["batch"]
    first = build(problem)
    ours = Ours(copy.deepcopy(first), problem["event"], None)
    example = Example(copy.deepcopy(first))
    torch.manual_seed(0)
    for step in range(QUALITY_STEPS):
        x0 = data.batch(step, size, 0)
        ours.step(x0)
        example.step(x0)
    x = data.scaled_test()
    mine, theirs = ours.state.model.network.eval(), example.network.eval()
    found = {
        "ours": held_out_mse(lambda y, index: mine(y, index + 1.0), x),
        "diffusers": held_out_mse(lambda y, index: theirs(y, index).sample, x),
    }
    return found | {"ours / diffusers": found["ours"] / found["diffusers"]}


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def main() -> None:
    """Print the table and write benchmarks/results/training.json."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, problem in PROBLEMS.items():
        for kind, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            if dtype is not None and not has_bfloat16():
                print(f"{name}, {kind}: left out, this processor has no such instructions")
                continue
            found = results[f"{name}, {kind}"] = speeds(problem, dtype)
            print(
                f"{name}, {kind}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()),
                flush=True,
            )
    results["held-out mse after equal steps, digits"] = found = quality(PROBLEMS["digits 1x8x8"])
    print("held-out mse: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items()))
    write_result("training", {"pairs": PAIRS, "quality_steps": QUALITY_STEPS, "problems": PROBLEMS}, results)
