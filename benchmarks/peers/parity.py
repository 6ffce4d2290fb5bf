"""Part B of the comparison: our presets against diffusers on one network, one grid, one set of normals.

The digits network that ships with the package, in float64, eight images, 20 steps.  The grid is the one that
the diffusers scheduler chooses, in its own float32 numbers, and ours takes it over; the normals are those
that the scheduler draws from its generator.  Reported is max |ours - theirs| / max |theirs|.  Two samplers of
one rule differ by the scheduler's float32 coefficients, around 1e-6; where they differ by more, a note says
why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.diffusers import drive, scheduler
from benchmarks.peers.models import Look
from sde_toolkit import samplers as s
from sde_toolkit.models import NetworkModel, ScoreModel
from sde_toolkit.runs import open_shipped
from sde_toolkit.samplers import T_MIN, NoiseLevels, ReverseSteps, Sampler, in_lam, scheme
from sde_toolkit.samplers.grids import Explicit
from sde_toolkit.utils import Stream
from solvers import Normals
from solvers.brownian import STEPS
from solvers.schemes import Form
from solvers.weights import kernel_weights

NUM_STEPS, NUM_SAMPLES, SEED = 20, 8, 5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """One rule, twice.

    Attributes:
        name: for the table.
        theirs: class of diffusers and its options.
        ours: (num_steps, grid, t_min) -> the sampler.
        at_zero: whether the run ends at noise zero.
        plain: whether the scheduler's states are scale-free.
        drop: whether the scheduler's last step, of no length, is left out.
        float32_noise: whether the scheduler draws in float32.
        note: why the two differ, where the scheduler departs from its paper.
    """

    name: str
    theirs: tuple[str, dict[str, Any]]
    ours: Callable[[int, Explicit, float], Sampler]
    at_zero: bool = True
    plain: bool = False
    drop: bool = False
    float32_noise: bool = False
    note: str = ""


class Replay:
    """The normals that a scheduler draws, in its order; the prior's draw is the given start."""

    def __init__(self, z: Tensor, seed: int, dtype: torch.dtype) -> None:
        self._z, self._seed, self._dtype = z, seed, dtype
        self._generator, self._drawn = torch.Generator().manual_seed(seed), list[Tensor]()

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Standard normals with shape (B, *)."""
        if stream == Stream.PRIOR:
            return self._z
        while len(self._drawn) <= index:
            fresh = torch.randn(self._z.shape, generator=self._generator, dtype=self._dtype)
            self._drawn.append(fresh.to(self._z.dtype))
        return self._drawn[index]


def pairs() -> Iterator[Pair]:
    """Every rule that both libraries have."""
    trailing = {"timestep_spacing": "trailing"}
    karras = {"timestep_spacing": "linspace", "use_karras_sigmas": True}
    ends = {"final_sigmas_type": "sigma_min", "lower_order_final": False, **trailing}
    multistep = "DPMSolverMultistepScheduler"

    def of(make: Callable[..., Sampler], **options: Any) -> Callable[[int, Explicit, float], Sampler]:
        return lambda n, grid, t_min: make(n, grid=grid, t_min=t_min, denoise=False, **options)

    for kind in ("small", "large"):
        options = {"variance_type": f"fixed_{kind}", "clip_sample": False, "timestep_spacing": "leading"}
        yield Pair(f"DDPM, {kind} variance", ("DDPMScheduler", options), of(s.ddpm, variance=kind))
    yield Pair("DDIM", ("DDIMScheduler", {"clip_sample": False, **trailing}), of(s.ddim))
    for order in (2, 3):
        name = f"DPM-Solver++({order}M)"
        yield Pair(
            name, (multistep, {"solver_order": order, **ends}), of(s.dpm_solver_pp, order=order), False
        )
    for order in (1, 2):
        options = {"solver_order": order, "algorithm_type": "sde-dpmsolver++", **ends}
        ours = of(s.sde_dpm_solver_pp, order=order)
        yield Pair(f"SDE-DPM-Solver++({order}M)", (multistep, options), ours, False, float32_noise=True)
    for order, kind in ((1, "bh2"), (2, "bh1"), (2, "bh2"), (3, "bh1"), (3, "bh2")):
        options = {"solver_order": order, "solver_type": kind, **ends}
        ours = of(s.unipc, order=order, b=s.b1 if kind == "bh1" else s.b2)
        yield Pair(f"UniPC-{order}, {kind}", ("UniPCMultistepScheduler", options), ours, False)
    for order in (1, 2, 3):
        options = {"solver_order": order, "lower_order_final": False, **trailing}
        ours = of(s.deis, degree=order - 1, clock=in_lam)
        yield Pair(f"DEIS-{order}, log rho", ("DEISMultistepScheduler", options), ours, False)
    yield Pair("Heun", ("HeunDiscreteScheduler", karras), of(s.edm), plain=True)
    yield Pair("Euler", ("EulerDiscreteScheduler", karras), of(s.ddim), plain=True)
    yield Pair("LMS", ("LMSDiscreteScheduler", karras), of(s.lms, order=4), plain=True)
    yield Pair("PNDM", ("PNDMScheduler", {"set_alpha_to_one": True, **trailing}), of(s.pndm))
    for past, new, tau in ((2, 1, 1.0), (2, 2, 1.0), (3, 3, 1.0), (2, 2, 0.0)):
        # diffusers counts the new evaluation among those of the corrector
        options = {
            "predictor_order": past,
            "corrector_order": new + 1,
            "tau_func": lambda t, tau=tau: tau,
            "lower_order_final": False,
            **trailing,
        }
        name = f"SA-Solver, P{past} C{new}, tau {tau:g}"
        ours = of(s.sa_solver, predictor_steps=past, corrector_steps=new, tau=tau)
        yield Pair(name, ("SASolverScheduler", options), ours, False, note=ADDED)
        ours = of(_sa_solver_with_added_terms, past=past, new=new, tau=tau)
        yield Pair(f"{name}, terms added", ("SASolverScheduler", options), ours, False)


ADDED = (
    "diffusers adds a term of order h^3 to the exact integrals of the paper's eq. 14 and 17 wherever two "
    "nodes are joined; the next row puts it into our rule"
)


def _sa_solver_with_added_terms(
    num_steps: int, *, past: int, new: int, tau: float, t_min: float, grid: Explicit, denoise: bool
) -> Sampler:
    """Our SA-Solver with the term of diffusers: kappa alpha_s E (m_0 - m_1) / (lam_0 - lam_1) for two nodes,
    E = h^2 / 2 - (kappa h - 1 + exp(-kappa h)) / kappa^2 and kappa = 1 + tau^2."""
    kappa = 1 + tau**2

    def rule(k: ReverseSteps) -> Form:
        t, s, h = k.t, k.s, k.h

        def kernel(lam: Tensor) -> Tensor:
            return kappa * torch.exp(-kappa * (s.lam[:, None] - lam))

        def step(nodes: list[NoiseLevels], m: list[Form]) -> Form:
            x = s.sigma / t.sigma * torch.exp(-(tau**2) * h) * k.x
            for b, m_j in zip(kernel_weights(kernel, [u.lam for u in nodes], t.lam, s.lam), m, strict=True):
                x = x + s.alpha * b * m_j
            if len(nodes) == 2:
                e = h**2 / 2 - (kappa * h + torch.expm1(-kappa * h)) / kappa**2
                x = x + kappa * s.alpha * e / (nodes[0].lam - nodes[1].lam) * (m[0] - m[1])
            return x + s.sigma * (-torch.expm1(-2 * tau**2 * h)).sqrt() * k.z

        nodes, m = [t, *k.past], list(k.m)
        x = step(nodes[:past], m[:past])
        if k.last:
            return x
        return step([s, *nodes[:new]], [k.evaluate_end(x), *m[:new]])

    plain = s.sa_solver(num_steps, predictor_steps=past, corrector_steps=new, tau=tau, t_min=t_min, grid=grid)
    return replace(plain, equation=scheme(rule, "data", noisy=tau > 0), denoise=denoise)


def network() -> NetworkModel:
    """The shipped digits network in float64."""
    model = open_shipped("digits").model
    exact = copy.deepcopy(model.network).double()
    return NetworkModel(exact, model.sde, model.predicts, model.event_shape, model.data_std)


def _grid(made: Any, look: Look, pair: Pair) -> Explicit:
    """The times of the scheduler's steps, in our process."""
    made.set_timesteps(NUM_STEPS + pair.drop)
    if hasattr(made, "sigmas"):
        ratios = torch.unique_consecutive(made.sigmas.double())
    else:
        indices = torch.unique(made.timesteps).flip(0)
        if hasattr(made, "prk_timesteps"):  # those of the stages are no ends of steps
            indices = torch.from_numpy(made._timesteps[::-1].copy()).long()
        kept = made.alphas_cumprod[indices]
        ratios = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1, dtype=torch.float64)])
    times = look.model.sde.inverse_nsr(ratios)
    return Explicit(times.clamp(max=look.model.sde.T))


def difference(pair: Pair, model: ScoreModel) -> float:
    """The largest difference of the two runs, relative to the largest value."""
    name, options = pair.theirs
    z = Normals(SEED, NUM_SAMPLES, model.event_shape).draw(0)
    x_T = model.sde.prior_sample(z)
    look = Look(model, T_MIN)
    made = scheduler(name, look, **options)
    grid = _grid(made, look, pair)
    t_min = float(grid.ts[-1])
    end = float(model.sde.nsr(grid.ts[-1]))
    with torch.no_grad():
        y = drive(
            made, look, look.start(x_T), NUM_STEPS, seed=SEED, plain=pair.plain, end=end, drop=pair.drop
        )
    theirs = y * float(model.sde.alpha(grid.ts[-1]))
    noise = Replay(z, SEED, torch.float32 if pair.float32_noise else torch.float64)
    ours = pair.ours(len(grid.ts) - 1, grid, t_min).sample(model, NUM_SAMPLES, noise=noise).x
    return float((ours - theirs).abs().max() / theirs.abs().max())


def measure() -> list[dict[str, Any]]:
    """One row per pair."""
    model = network()
    return [{"sampler": p.name, "difference": difference(p, model), "note": p.note} for p in pairs()]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, notes below."""
    lines = [f"{'rule, ours against diffusers':<44}{'difference':>12}"]
    notes: list[str] = []
    for row in rows:
        mark = ""
        if row["note"] and row["difference"] > TOLERANCE:
            if row["note"] not in notes:
                notes.append(row["note"])
            mark = f"  [{notes.index(row['note']) + 1}]"
        lines.append(f"{row['sampler']:<44}{row['difference']:>12.2g}{mark}")
    return "\n".join([*lines, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def complaints(rows: list[dict[str, Any]]) -> list[str]:
    """Rows beyond the tolerance without a reason."""
    return [
        f"{row['sampler']}: {row['difference']:.2g} > {TOLERANCE:g}"
        for row in rows
        if not row["note"] and not row["difference"] <= TOLERANCE
    ]
