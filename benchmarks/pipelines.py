"""Beside diffusers' own schedulers and networks: whole runs, and likelihoods of what its loop trained.

    parity        scheduler x family: 10 steps of diffusers' scheduler and of the sampler that
                  ``interop.matching_sampler`` says is the same, on one network with random weights in
                  float64, from one start and one list of draws; largest difference, relative to the largest
                  value; where it is more than rounding, its cause, and the difference that is left when this
                  alone is changed on one side (``CHANGES``)
    inside        every preset on a fixed grid as the scheduler of a pipeline (``toolkit_scheduler``), beside
                  our own run from the same start with the same draws, in float64: from noise, from half of
                  the timesteps on (image to image), and with a corrector; largest difference, relative to the
                  largest value
    likelihood    a UNet2DModel that diffusers' loop (``add_noise``, mean squared error, AdamW) trained
                  briefly on the digits, saved and opened by ``from_diffusers``: log p with its error budget
                  and both bounds, and the same of the same weights wrapped by hand

A cause is where theirs departs from its paper, or where a process of ours ends.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from benchmarks.record import digits as four
from benchmarks.record import write_result
from sde_toolkit.data import digits, estimate_moments
from sde_toolkit.interop import from_diffusers, matching_sampler, toolkit_scheduler
from sde_toolkit.interop.pipelines.matching import first_steps
from sde_toolkit.likelihood import BoundDraws, FlowSolver, continuous_bound, discrete_bound, log_likelihood
from sde_toolkit.models import IndexedModel
from sde_toolkit.samplers import PRESETS, AnnealedLangevin, Corrector, Sampler
from sde_toolkit.samplers.equations import ReverseSteps, scheme
from sde_toolkit.samplers.grids import Explicit
from sde_toolkit.samplers.presets.multistep import ipndm_rule, spndm_rule
from sde_toolkit.utils import Stream
from solvers import RK4, Form, Normals

N, BATCH, SEED = 10, 4, 3
PROBES = 16
SOLVER = FlowSolver(RK4, num_steps=16)
T, V = {"timestep_spacing": "trailing"}, {"prediction_type": "v_prediction"}
NOISE = {**T, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE = {**NOISE, "algorithm_type": "sde-dpmsolver"}
FLOW = {"use_flow_sigmas": True}
PLAIN = {"clip_sample": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPM, small variance": ("DDPM", PLAIN),
    "DDPM, large variance": ("DDPM", {**PLAIN, "variance_type": "fixed_large"}),
    "DDPM, clipped": ("DDPM", {**T, "clip_sample_range": 0.5}),
    "DDIM": ("DDIM", {**PLAIN, **T}),
    "DDIM, v, squaredcos": ("DDIM", {**PLAIN, **T, **V, "beta_schedule": "squaredcos_cap_v2"}),
    "DDIM, clipped": ("DDIM", {**T, "clip_sample_range": 0.5}),
    "DDIM, v, zero terminal SNR": ("DDIM", {**PLAIN, **T, **V, "rescale_betas_zero_snr": True}),
    "PNDM": ("PNDM", {"set_alpha_to_one": True}),
    "PNDM, skip_prk_steps": ("PNDM", {"set_alpha_to_one": True, "skip_prk_steps": True}),
    "DPM-Solver++(2M)": ("DPMSolverMultistep", T),
    "DPM-Solver++(3M)": ("DPMSolverMultistep", {**T, "solver_order": 3}),
    "DPM-Solver++(2M), Karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "DPM-Solver++(2M), heun": ("DPMSolverMultistep", {**T, "solver_type": "heun"}),
    "DPM-Solver(1)": ("DPMSolverMultistep", {**NOISE, "solver_order": 1}),
    "DPM-Solver(2M)": ("DPMSolverMultistep", NOISE),
    "DPM-Solver(2M), heun": ("DPMSolverMultistep", {**NOISE, "solver_type": "heun"}),
    "DPM-Solver(3M)": ("DPMSolverMultistep", {**NOISE, "solver_order": 3}),
    "SDE-DPM-Solver(1)": ("DPMSolverMultistep", {**SDE, "solver_order": 1}),
    "SDE-DPM-Solver(2M)": ("DPMSolverMultistep", SDE),
    "SDE-DPM-Solver(2M), heun": ("DPMSolverMultistep", {**SDE, "solver_type": "heun"}),
    "SDE-DPM-Solver++(2M), heun": (
        "DPMSolverMultistep", {**T, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "SDE-DPM-Solver++(3M)": (
        "DPMSolverMultistep", {**T, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "SDE-DPM-Solver++(2M)": ("DPMSolverMultistep", {**T, "algorithm_type": "sde-dpmsolver++"}),
    "UniPC-3, sigma_min": ("UniPCMultistep", {**T, "solver_order": 3, "final_sigmas_type": "sigma_min"}),
    "DEIS-2": ("DEISMultistep", T),
    "SA-Solver, tau 1": ("SASolver", {**T, "tau_func": lambda t: 1.0}),
    "Euler": ("EulerDiscrete", T),
    "Euler, ancestral": ("EulerAncestralDiscrete", T),
    "Heun": ("HeunDiscrete", T),
    "LMS": ("LMSDiscrete", T),
    "EDM, Euler": ("EDMEuler", {}),
    "EDM, DPM-Solver++(2M)": ("EDMDPMSolverMultistep", {}),
    "flow sigmas, DPM-Solver++(2M)": ("DPMSolverMultistep", {**FLOW, "prediction_type": "flow_prediction"}),
    "flow sigmas, data": ("DPMSolverMultistep", {**FLOW, "prediction_type": "sample"}),
    "flow sigmas, noise": ("DPMSolverMultistep", FLOW),
    "IPNDM": ("IPNDM", {}),
    "consistency model": ("CMStochasticIterative", {"clip_denoised": False}),
    "flow matching, Euler, shift 3": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
}  # fmt: skip
IN_SIGMA = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete")


def unet(channels: tuple[int, int] = (8, 16), seed: int = 0) -> Any:
    """A small network for digits."""
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip


class Draws:
    """One start and one list of draws for both sides."""

    def __init__(self, start: Tensor) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.start = start
        self.z = [torch.randn(start.shape, generator=generator, dtype=start.dtype) for _ in range(2 * N)]

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        """The start, or draw number ``index``, with shape (B, *)."""
        return self.start if stream == Stream.PRIOR else self.z[index]


class Change(NamedTuple):
    """One thing that is changed on one side.

    Attributes:
        cause: of the difference, as the table says it.
        theirs: of (scheduler, model, our times), after ``set_timesteps``.
        ours: of our sampler.
        more: arguments of every ``step`` of theirs.
        skipped: steps that are left out at the start on both sides.
    """

    cause: str
    theirs: Callable[[Any, Any, Tensor], None] = lambda made, model, ts: None
    ours: Callable[[Sampler], Sampler] = lambda sampler: sampler
    more: dict[str, Any] = {}  # noqa: RUF012
    skipped: int = 0


def told_exactly(made: Any, model: Any, ts: Tensor) -> None:
    """Tell theirs' network the times that ours is told."""
    x = torch.ones(1, *model.event_shape, dtype=torch.float64)
    told = [float(model.arguments(x, t)[1]) for t in ts[: len(made.timesteps)]]
    made.timesteps = torch.tensor(told, dtype=torch.float64)


def wide_levels(made: Any, model: Any, ts: Tensor) -> None:
    """Give theirs our levels in float64, and the times that belong to them."""
    told_exactly(made, model, ts)
    made.sigmas = model.sde.sigma(ts)


def first_level(made: Any, model: Any, ts: Tensor) -> None:
    """Begin theirs where ours begins."""
    if hasattr(made, "alphas_cumprod"):
        made.alphas_cumprod[-1] = model.sde.alpha(ts[0]).square()
        return
    made.sigmas[0] = model.sde.sigma(ts[0])
    made.timesteps[0] = 1000 * ts[0]


def right_sign(made: Any, model: Any, ts: Tensor) -> None:
    """Add 1/2 where theirs subtracts it in the weight of the second difference."""
    update = made.multistep_dpm_solver_third_order_update

    def corrected(outputs: list[Tensor], sample: Tensor, noise: Tensor) -> Tensor:
        levels = made.sigmas[made.step_index - 2 : made.step_index + 2]
        lam = -levels.log()
        m2, m1, m0 = outputs[-3:]
        slopes = (m0 - m1) / (lam[2] - lam[1]), (m1 - m2) / (lam[1] - lam[0])
        D2 = (lam[3] - lam[2]) ** 2 * (slopes[0] - slopes[1]) / (lam[2] - lam[0])
        return update(outputs, sample=sample, noise=noise) + D2 / (1 + levels[3] ** 2).sqrt()

    made.multistep_dpm_solver_third_order_update = corrected


def plms_start(sampler: Sampler) -> Sampler:
    """A pseudo Heun step, and two and three nodes, in the place of three Runge-Kutta steps."""

    def rule(k: ReverseSteps) -> Form:
        return spndm_rule(k) if k.order == 1 else ipndm_rule(k)

    method = replace(sampler.method, nodes=4, nfe_extra=1)  # type: ignore[type-var]
    return replace(sampler, equation=scheme(rule, "noise"), method=method)


CHANGES: dict[str, Change] = {
    "DDIM, clipped": Change(
        "theirs clips x0_hat and keeps the noise of the unclipped one",
        more={"use_clipped_model_output": True}),
    "DDIM, v, zero terminal SNR": Change("theirs begins at alpha = 0, ours at 1e-4", first_level),
    "PNDM, skip_prk_steps": Change(
        "theirs starts by two steps of low order, not Runge-Kutta", ours=plms_start),
    "DPM-Solver++(2M), Karras": Change(
        "theirs rounds the index that the network is told, not the level", told_exactly),
    "SDE-DPM-Solver++(3M)": Change(
        "theirs has the sign of a constant wrong, which makes its weak order 1", right_sign),
    "flow sigmas, DPM-Solver++(2M)": Change("theirs rounds the time that the network is told", told_exactly),
    "flow sigmas, data": Change("theirs rounds the time that the network is told", told_exactly),
    "flow sigmas, noise": Change(
        "theirs rounds levels to float32, which 1 - sigma = .001 magnifies", wide_levels),
    "IPNDM": Change("theirs begins at alpha = 0, where its formula has no x0_hat", skipped=1),
    "flow matching, Euler, shift 3": Change("theirs begins at t = 1, ours at T = .999", first_level),
}  # fmt: skip
"""Case -> the cause of its difference, and how to take it away."""


@torch.no_grad()
def parity(
    network: Any, name: str, options: dict[str, Any], change: Change | None = None
) -> tuple[float, str]:
    """The largest difference of two whole runs, relative to the largest value, and our sampler's name."""
    change = Change("") if change is None else change
    made = getattr(diffusers, f"{name}Scheduler")(**options)
    model = from_diffusers(network, made, dtype=torch.float64)
    sampler = change.ours(matching_sampler(made, N))
    steps, first = int(sampler.num_steps or 0), change.skipped
    ts = sampler.grid(model.sde, steps, sampler.t_min, model.sde.T)
    sampler = first_steps(sampler, model.sde, first, steps - first) if first else sampler
    z = torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = model.sde.prior_std * z
    made.set_timesteps(N)
    change.theirs(made, model, ts)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(first)
    x = start / float(model.sde.alpha(ts[first])) if name in IN_SIGMA else start
    generator = torch.Generator().manual_seed(SEED)
    known, draws = inspect.signature(made.step).parameters, Draws(z)
    given = "variance_noise" in known and name.startswith("DPM")  # whose own draws are in float32
    for i, tau in enumerate(made.timesteps[first:]):
        more = dict(change.more) | ({"generator": generator} if "generator" in known else {})
        more = {**change.more, "variance_noise": draws.z[i]} if given else more
        seen = x if "Flow" in name else made.scale_model_input(x, tau)
        out = network(seen, tau.expand(BATCH)).sample
        x = made.step(out, tau, x, **more).prev_sample.double()
    ours = sampler.sample(model, BATCH, noise=draws).x
    return float((ours - x).abs().max() / x.abs().max()), sampler.name


class Started(NamedTuple):
    """A start, and the draws of a seed."""

    start: Tensor
    rest: Normals

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        """The start, or a draw, with shape (B, *)."""
        return self.start if stream == Stream.PRIOR else self.rest.draw(index, stream)


@torch.no_grad()
def inside(network: Any, name: str, corrector: Corrector | None = None, later: bool = False) -> float:
    """The largest difference of a run inside a pipeline's loop and of our own, relative to the largest
    value."""
    trained = diffusers.DDPMScheduler(clip_sample=False)
    model = from_diffusers(network, trained, dtype=torch.float64)
    made: Any = toolkit_scheduler(trained, name, seed=SEED, corrector=corrector)
    made.set_timesteps(N)
    sampler = replace(PRESETS[name].make(N, model=model), corrector=corrector).on(model.sde)
    z = torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    number = N // 2 if later else 0
    first = number * made.order
    if later:
        ts = sampler.grid(model.sde, int(sampler.num_steps or 0), sampler.t_min, model.sde.T)[number:]
        sampler = replace(
            sampler, num_steps=len(ts) - 1, grid=Explicit(ts), t_min=float(ts[-1]), start="prior"
        )
    made.set_begin_index(first)
    x = z
    for tau in made.timesteps[first:]:
        x = made.step(network(made.scale_model_input(x, tau), tau.expand(BATCH)).sample, tau, x).prev_sample
    draws = Started(z, Normals(SEED, BATCH, (1, 8, 8)))
    given: dict[str, Any] = {"x_start": z, "noised": True} if later else {}
    ours = sampler.sample(model, BATCH, noise=draws, **given).x
    return float((ours - x).abs().max() / ours.abs().max())


def insides(network: Any) -> list[dict[str, Any]]:
    """Every preset inside a pipeline's loop."""
    rows = []
    for name, preset in PRESETS.items():
        fixed = preset.kind != "adaptive" and not name.startswith(("torchsde", "score_sde"))
        if not fixed or name == "default":
            continue
        row: dict[str, Any] = {"preset": name, "from noise": four(inside(network, name))}
        if preset.kind == "fixed" and name != "pndm":  # these begin otherwise, see ``toolkit_scheduler``
            row["later"] = four(inside(network, name, later=True))
        row["corrected"] = four(inside(network, name, AnnealedLangevin(0.1)))
        rows.append(row)
        print(
            f"{name:<24}" + "  ".join(f"{key} {value:.1e}" for key, value in row.items() if key != "preset")
        )
    return rows


def train(network: Any, scheduler: Any, x: Tensor, updates: int) -> float:
    """diffusers' own training loop; returns the mean loss of the last fifth."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    network.train()
    for _ in range(updates):
        clean = x[torch.randint(len(x), (64,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        tau = torch.randint(scheduler.config.num_train_timesteps, (64,), generator=generator)
        out = network(scheduler.add_noise(clean, noise, tau), tau).sample
        loss = torch.nn.functional.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    network.eval()
    return sum(losses[-(updates // 5) :]) / (updates // 5)


def likelihoods(updates: int, examples: int) -> dict[str, Any]:
    """log p, its budget and both bounds of a directory, and of the same weights wrapped by hand."""
    data = digits()
    x = data.scaled_train().float()
    moments = estimate_moments(x.double())
    network, scheduler = unet((8, 16)), diffusers.DDPMScheduler(clip_sample=False)
    loss = train(network, scheduler, x, updates)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
        opened = from_diffusers(folder, moments=moments)
    chain = opened.sde.chain  # type: ignore[attr-defined]
    by_hand = IndexedModel(
        network, chain, "noise", (1, 8, 8), fractional=True, moments=moments
    )  # a dataclass out of UNet2DModel is taken as it is
    some = x[:examples]
    draws = BoundDraws(num_draws=16)
    found: dict[str, Any] = {"updates": updates, "loss": four(loss)}
    for name, model in (("from_diffusers", opened), ("by hand", by_hand)):
        exact = log_likelihood(model, some, divergence=PROBES, solver=SOLVER, num_diagnostic_samples=1)
        whole = discrete_bound(model, some, chain, draws=draws)
        continuous = continuous_bound(model, some, draws=draws, t_min=float(chain.times[1]))
        found[name] = {
            "nats": [four(float(v)) for v in exact.nats],
            "bits_per_dim": four(float(exact.bits_per_dim.mean())),
            "budget": exact.budget.lines(64),
            "discrete_bound": four(float(whole.bits_per_dim.mean())),
            "discrete_error": four(float(whole.standard_error_bits_per_dim.square().mean().sqrt())),
            "continuous_bound": four(float(continuous.bits_per_dim.mean())),
            "continuous_error": four(float(continuous.standard_error_bits_per_dim.square().mean().sqrt())),
        }
        found.setdefault("exact", []).append(exact.nats)
    first, second = found.pop("exact")
    found["largest difference in nats"] = four(float((first - second).abs().max()))
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    left = f"{row['difference without it']:>9.1e}  {row['cause']}" if "cause" in row else ""
    return f"{row['diffusers']:<32}{row['ours']:<22}{row['difference']:>9.1e}{left}"


def main(arguments: Sequence[str] = ()) -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=200, help="of the short training")
    parser.add_argument("--examples", type=int, default=2, help="whose likelihood is computed")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows = []
    network = unet().double().eval()
    for label, (name, options) in CASES.items():
        difference, ours = parity(network, name, options)
        row: dict[str, Any] = {"diffusers": label, "ours": ours, "difference": four(difference)}
        if label in CHANGES:
            left, _ = parity(network, name, options, CHANGES[label])
            row |= {"cause": CHANGES[label].cause, "difference without it": four(left)}
        rows.append(row)
        print(line(row), flush=True)
    within = insides(network)
    found = likelihoods(args.updates, args.examples)
    for name in ("from_diffusers", "by hand"):
        print(name, *(f"{key} {value}" for key, value in found[name].items() if key != "budget"), sep="\n  ")
        print("\n".join(found[name]["budget"]))
    print("largest difference in nats", found["largest difference in nats"])
    write_result(
        "pipelines",
        {"seed": SEED, "batch": BATCH, "num_steps": N},
        {"parity": rows, "inside": within, "likelihood": found},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
