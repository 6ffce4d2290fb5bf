"""What should a network put out, and at which times should it be trained?

    python -m benchmarks.predictions                 both questions
    python -m benchmarks.predictions predictions     what it puts out
    python -m benchmarks.predictions times           which law of t

Small MLPs on data known in closed form, under VP: a ring of eight Gaussians in two dimensions, and a mixture
in 16 whose axes' standard deviations span 50 to 1.  All arms have equal numbers of updates, batches, learning
rates, networks and initial weights; every figure is a mean over three seeds of training, with the largest
deviation of a seed from it among the results.

    loss          mean squared error of the noise over that of the exact score, less 1, at times uniform in t
    score(t)      root mean square error of the score over the root mean square of the exact one
    nats          E[log p - log p_model] per sample, by the probability flow on fresh data
    own flow      error of the default sampler and of UniPC-3 against the network's own flow (200 steps), in
                  standard deviations of the data
    energy        squared energy distance of samples to the law of the data, whitened, times 1000

``predictions`` compares them under the noise weighting, uniform in t; "residual, own units" has the loss in
which its targets have variance 1.  ``times`` compares laws of t, with the weighting that they go with.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit.likelihood import ExactDivergence, FlowSolver, log_likelihood
from sde_toolkit.metrics import energy_distance
from sde_toolkit.models import ExactData, ExactModel, GaussianMixture, Moments, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import Sampler, default, unipc
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, Optimization

SEEDS = (0, 1, 2)
NETWORK = {"width": 64, "depth": 2}
STEPS, BATCH, RATE, TRAIN = 1000, 256, 2e-3, 20_000
TIMES = (1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
EVALUATIONS = (5, 10, 20, 50)
FINE = 200
LEGACY = DenoisingLoss("noise", time_sampling="stratified")
OWN = DenoisingLoss("residual", time_sampling="stratified")
PREDICTIONS: dict[str, tuple[str, DenoisingLoss]] = {
    "noise": ("noise", LEGACY),
    "velocity": ("velocity", LEGACY),
    "edm": ("edm", LEGACY),
    "residual": ("residual", LEGACY),
    "residual, own units": ("residual", OWN),
}
LAWS: dict[str, tuple[str, DenoisingLoss]] = {
    "residual: noise, stratified": ("residual", LEGACY),
    "residual: likelihood, log_snr": ("residual", DenoisingLoss("likelihood", time_sampling="log_snr")),
    "residual: likelihood, moments": ("residual", DenoisingLoss("likelihood", time_sampling="moments")),
    "noise: noise, stratified": ("noise", LEGACY),
    "noise: likelihood, moments": ("noise", DenoisingLoss("likelihood", time_sampling="moments")),
}


def ring() -> GaussianMixture:
    """Eight round Gaussians of standard deviation .15 on a circle of radius 1."""
    angles = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    return GaussianMixture([1 / 8] * 8, torch.stack([angles.cos(), angles.sin()], 1), [0.15**2] * 8)


def scales() -> GaussianMixture:
    """Five Gaussians in 16 dimensions; the standard deviations along turned axes span 50 to 1."""
    generator = torch.Generator().manual_seed(3)

    def normals(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    std = torch.logspace(0, -1.5, 16, dtype=torch.float64)
    turn = torch.linalg.qr(normals(16, 16))[0]
    means, factors = normals(5, 16) * std, 0.4 * normals(5, 16, 16) / 4 * std[:, None]
    covariances = turn @ (factors @ factors.mT + 0.02 * torch.diag(std**2)) @ turn.mT
    covariances = 0.5 * (covariances + covariances.mT)
    return GaussianMixture((0.5 * normals(5)).softmax(0), means @ turn.mT, covariances)


PROBLEMS = {"ring": ring, "scales16": scales}


def train(data: ExactData, predicts: str, loss: DenoisingLoss, seed: int) -> NetworkModel:
    """One network, averaged over its updates; it knows the moments of its examples.

    A plain loop with the updates of ``fit``, without its checks, which take longer than so small a network.
    """
    x = data.sample(TRAIN, seed=11)
    moments = Moments(x.mean(0), torch.cov(x.mT))
    x, network = x.float(), MLP(data.event_shape, seed=seed, **NETWORK)
    model = NetworkModel(network, VPSDE(), predicts, data.event_shape, moments.std, moments)
    rule, generator = Optimization(RATE, decay_steps=STEPS, ema_decay=0.999), torch.Generator()
    generator.manual_seed(seed)
    weights, average = list(network.parameters()), [w.detach().clone() for w in network.parameters()]
    optimizer = torch.optim.AdamW(weights, betas=rule.betas, weight_decay=0.0, fused=True)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rule.learning_rate_at(step)
        optimizer.zero_grad()
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        loss(model, x[rows], generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, rule.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - rule.ema_decay_at(step))
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    return model


@torch.no_grad()
def judge(model: NetworkModel, data: ExactData) -> dict[str, Tensor]:
    """The figures of the module's head, each with shape (k,)."""
    sde, exact, x0 = model.sde, ExactModel(data, model.sde, torch.float32), data.sample(2000, seed=5).float()
    z = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    score = []
    for t in torch.tensor(TIMES, dtype=torch.float64):
        x_t = sde.perturb(x0, t, z)
        truth = exact.score(x_t, t)
        score.append((model.score(x_t, t) - truth).norm() / truth.norm())
    t = torch.linspace(1e-5, 1, len(x0), dtype=torch.float64)
    x_t = sde.perturb(x0, t, z)
    loss = (model.noise(x_t, t) - z).square().mean() / (exact.noise(x_t, t) - z).square().mean() - 1
    x = data.sample(300, seed=77)
    solver = FlowSolver(rtol=1e-3, atol=1e-4)
    found = log_likelihood(
        model, x.float(), divergence=ExactDivergence(), solver=solver, num_diagnostic_samples=0
    )
    reference, whole = data.sample(2000, seed=99), Moments(data.mean, data.covariance)
    std = whole.variances.sqrt()
    return {
        "loss": loss[None],
        "score": torch.stack(score),
        "nats": (data.log_prob(x) - found.nats.double()).mean()[None],
        "own": _own_flow(model, lambda n: default(model, n)),
        "unipc": _own_flow(model, lambda n: unipc(n, order=3, denoise=False)),
        "energy": torch.tensor(
            [1e3 * energy_distance(whole.project(_draw(model, n)) / std, whole.project(reference) / std)
             for n in (10, 50)]
        ),
    }  # fmt: skip


def _own_flow(model: NetworkModel, sampler: Any) -> Tensor:
    fine = _run(default(model, FINE), model)
    ends = [_run(sampler(n), model) for n in EVALUATIONS]
    return torch.stack([(x - fine).square().mean().sqrt() / fine.std() for x in ends])


def _run(sampler: Sampler, model: NetworkModel) -> Tensor:
    return sampler.sample(model, 300, seed=3, start="prior").x.double()


def _draw(model: NetworkModel, n: int) -> Tensor:
    return default(model, n).sample(model, 2000, seed=4, start="prior").x.double()


def measure(arms: dict[str, tuple[str, DenoisingLoss]], done: dict[str, Any]) -> dict[str, Any]:
    """Every arm on every problem: means over the seeds, and the largest deviation of a seed."""
    found: dict[str, Any] = {}
    for problem, make in PROBLEMS.items():
        data = make()
        for name, (predicts, loss) in arms.items():
            key = f"{problem}: {predicts} {loss}"
            if key not in done:
                start = time.perf_counter()
                each = [judge(train(data, predicts, loss, seed), data) for seed in SEEDS]
                stacked = {k: torch.stack([e[k] for e in each]).double() for k in each[0]}
                done[key] = {
                    k: {"mean": [digits(float(v)) for v in x.mean(0)],
                        "deviation": [digits(float(v)) for v in (x - x.mean(0)).abs().amax(0)]}
                    for k, x in stacked.items()
                }  # fmt: skip
                print(f"  {problem}, {name}: {time.perf_counter() - start:.0f} s", flush=True)
            found.setdefault(problem, {})[name] = done[key]
    return found


def show(found: dict[str, Any]) -> None:
    """The tables."""
    for problem, arms in found.items():
        flow = f"own flow {EVALUATIONS}"
        print(f"\n{problem:<34}{'loss':>8}{'nats':>8}{'energy 10, 50':>15}{flow:>33}")
        for name, row in arms.items():
            cells = [f"{row['loss']['mean'][0]:>8.3f}", f"{row['nats']['mean'][0]:>8.3f}"]
            cells += [" ".join(f"{v:>7.2f}" for v in row["energy"]["mean"])]
            cells += ["  ", " ".join(f"{v:>7.4f}" for v in row["own"]["mean"])]
            print(f"{name:<34}" + "".join(cells))
        print(f"{'UniPC-3 against the own flow':<34}")
        for name, row in arms.items():
            print(f"  {name:<32}" + " ".join(f"{v:>8.4f}" for v in row["unipc"]["mean"]))
        print(f"{'score error at t =':<34}" + " ".join(f"{t:>8.0e}" for t in TIMES))
        for name, row in arms.items():
            print(f"  {name:<32}" + " ".join(f"{v:>8.3f}" for v in row["score"]["mean"]))


def main(arguments: Sequence[str] = ()) -> None:
    """Train and judge the arms of the parts that are named, all by default; print tables and write JSON."""
    parts = {"predictions": PREDICTIONS, "times": LAWS}
    chosen = list(parts) if not arguments else [name for name in parts if name in arguments]
    torch.set_num_threads(1)
    done: dict[str, Any] = {}
    for part in chosen:
        found = measure(parts[part], done)
        show(found)
        settings = {
            "seeds": SEEDS, "network": NETWORK, "steps": STEPS, "batch": BATCH, "learning_rate": RATE,
            "examples": TRAIN, "times": TIMES, "evaluations": EVALUATIONS, "fine": FINE,
            "arms": {name: {"predicts": p, "loss": loss} for name, (p, loss) in parts[part].items()},
        }  # fmt: skip
        name = "predictions" if part == "predictions" else "training_times"
        write_result(name, settings, found)


if __name__ == "__main__":
    main(sys.argv[1:])
