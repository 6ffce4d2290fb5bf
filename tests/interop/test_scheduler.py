"""Our samplers inside stock pipelines: the samples of our own runs from the same start and the same noise."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pipeline_parts import scheduler, states, unet
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.interop import from_diffusers, toolkit_scheduler
from sde_toolkit.models import Moments
from sde_toolkit.utils import Stream
from solvers import Normals

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (1, 8, 8)
N = 6
LAW = Moments(0.1 * torch.ones(SHAPE, dtype=torch.float64), 0.3 * torch.ones(SHAPE, dtype=torch.float64))


class SameStart:
    """The start of a pipeline, and the draws of a seed."""

    def __init__(self, start: Tensor, seed: int = 5) -> None:
        self.start = start
        self.rest = Normals(seed, len(start), start.shape[1:], start.dtype)

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        return self.start if stream == Stream.PRIOR else self.rest.draw(index, stream)


PRESETS = {
    "ddpm": {}, "unipc": {"order": 3}, "dpm_solver": {"order": 3}, "gaussian_residual": {},
    "stochastic_heun": {}, "ddim": {}, "dpm_solver_pp": {"order": 2}, "edm": {}, "sde_dpm_solver_pp": {},
    "deis": {}, "pndm": {}, "sa_solver": {}, "heun": {"grid": "log_snr"}, "ancestral": {"denoise": False},
}  # fmt: skip
QUICK = list(PRESETS)[:4]


def of_presets(names, quick) -> list:
    """The names, those that are not quick in slow tests."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


def ours(model, preset: str, options, start: Tensor, steps: int = N) -> Tensor:
    options = dict(options)
    if "grid" in options:
        options["grid"] = getattr(samplers.grids, options["grid"])
    if preset == "gaussian_residual":
        options["moments"] = LAW
    made = samplers.PRESETS[preset].make(steps, model=model, **options)
    return made.sample(model, len(start), noise=SameStart(start)).x


@pytest.fixture(scope="module")
def network():
    return unet()


@pytest.mark.parametrize("preset", of_presets(PRESETS, QUICK))
@pytest.mark.filterwarnings("ignore:.*multiplies errors")
def test_presets_in_ddpm_pipeline_are_our_samplers(network, preset):
    import diffusers

    trained = scheduler("DDPM", clip_sample=False)
    law = LAW if preset == "gaussian_residual" else None
    made = toolkit_scheduler(trained, preset, seed=5, moments=law, **PRESETS[preset])
    pipeline = diffusers.DDPMPipeline(network, made)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    images = []
    pipeline.scheduler.step, step = None, pipeline.scheduler.step

    def kept(*args, generator=None, **options):  # the pipeline's generator draws the start alone
        out = step(*args, **options)
        images.append(out.prev_sample)
        return out

    pipeline.scheduler.step = kept
    pipeline(batch_size=2, generator=generator, num_inference_steps=N, output_type="pt")
    start = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    model = from_diffusers(network, trained, moments=law)
    expected = ours(model, preset, PRESETS[preset], start)
    assert (images[-1] - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    denoise = PRESETS[preset].get("denoise", preset != "gaussian_residual")
    assert made.order == max(1, round((len(made.timesteps) - made._idle - denoise) / N))


def drive(made, network, x: Tensor, steps: int = N, first: int = 0) -> Tensor:
    """The loop of a pipeline, from a timestep on."""
    made.set_timesteps(steps)
    made.set_begin_index(first)
    with torch.no_grad():
        for t in made.timesteps[first:]:
            x = made.step(network(made.scale_model_input(x, t), t.expand(len(x))).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize("name", ["EDMEuler", "FlowMatchEulerDiscrete"])
@pytest.mark.parametrize("preset", of_presets(["ddim", "dpm_solver_pp", "edm"], ["dpm_solver_pp"]))
def test_other_families_scale_their_input(network, name, preset):
    trained = scheduler(name)
    model = from_diffusers(network, trained)
    made = toolkit_scheduler(trained, preset, seed=5)
    x = states(2)
    expected = ours(model, preset, {}, x)
    theirs = drive(made, network, made.init_noise_sigma * x)
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


def test_learned_variances_are_used():
    network = unet(out_channels=2)
    trained = scheduler("DDPM", variance_type="learned_range", clip_sample=False)
    model, x = from_diffusers(network, trained), states(2)
    made = toolkit_scheduler(trained, "ddpm", seed=5, variance="learned")
    expected = ours(model, "ddpm", {"variance": "learned"}, x)
    assert (drive(made, network, x) - expected).abs().max() < 1e-4 * float(expected.abs().max())


LATER = {
    "edm": {}, "dpm_solver": {"order": 3}, "unipc": {"order": 3}, "ddpm": {}, "dpm_solver_pp": {}, "heun": {},
    "stochastic_heun": {}, "sa_solver": {}, "deis_rho_rk": {}, "sde_dpm_solver_pp": {},
}  # fmt: skip


def remaining(preset: str, options, model, number: int) -> samplers.Sampler:
    """Our sampler on the times that a run of N steps has left at the beginning of a step."""
    whole = samplers.PRESETS[preset].make(N, model=model, **options).on(model.sde)
    ts = whole.grid(model.sde, N, whole.t_min, model.sde.T)[number:]
    grid = samplers.grids.Explicit(ts)
    return replace(whole, num_steps=len(ts) - 1, grid=grid, t_min=float(ts[-1]))


@pytest.mark.parametrize("preset", of_presets(LATER, ["edm", "dpm_solver", "ddpm"]))
def test_image_to_image_begins_at_a_later_timestep(network, preset):
    trained = scheduler("DDPM", clip_sample=False)
    model = from_diffusers(network, trained)
    made = toolkit_scheduler(trained, preset, seed=5, **LATER[preset])
    made.set_timesteps(N)
    first = 3 * made.order
    x0, z = 0.5 * states(2, seed=8), states(2, seed=9)
    x = made.add_noise(x0, z, made.timesteps[first][None])
    part = remaining(preset, LATER[preset], model, 3)
    t_start = float(part.grid(model.sde, N - 3, 0)[0])
    expected = part.sample(model, 2, x_start=x0, t_start=t_start, noise=SameStart(z)).x
    theirs = drive(made, network, x, first=first)
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


def test_a_gaussian_residual_run_begins_with_an_evaluation(network):
    trained = scheduler("DDPM", clip_sample=False)
    model = from_diffusers(network, trained, moments=LAW)
    made = toolkit_scheduler(trained, "gaussian_residual", moments=LAW)
    made.set_timesteps(N)
    x0, z = 0.5 * states(2, seed=8), states(2, seed=9)
    x = made.add_noise(x0, z, made.timesteps[3][None])
    whole = samplers.gaussian_residual(model, N)
    ts = whole.grid(model.sde, N + 1, whole.on(model.sde).t_min)[3 + (not made._idle) :]
    ts = torch.cat([ts[:1] * (1 + 1e-6), ts])
    part = replace(whole, num_steps=len(ts) - 1, grid=samplers.grids.Explicit(ts), t_min=float(ts[-1]))
    expected = part.sample(model, 2, x_start=x, noised=True, t_start=float(ts[0])).x
    theirs = drive(made, network, x, first=3)
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


def test_pndm_goes_on_without_its_first_steps(network):
    trained = scheduler("DDPM", clip_sample=False)
    model, x = from_diffusers(network, trained), states(2)
    made = toolkit_scheduler(trained, "pndm")
    made.set_timesteps(N)
    numbers = [request.key[1] for request in made._plan if request.key[0] == "step"]
    expected = remaining("ipndm", {}, model, 4)
    t_start = float(expected.grid(model.sde, N - 4, 0)[0])
    ours = expected.sample(model, 2, x_start=x, noised=True, t_start=t_start).x
    theirs = drive(made, network, x, first=numbers.index(4))
    assert (theirs - ours).abs().max() < 1e-4 * max(1.0, float(ours.abs().max()))


class Exact(torch.nn.Module):
    """The noise in data N(0, s^2 I) under a chain, as a network of diffusers returns it."""

    def __init__(self, sde) -> None:
        super().__init__()
        self.sde = sde

    def forward(self, x: Tensor, tau: Tensor):
        t = self.sde.time(tau.double() + 1)
        alpha, sigma = (level.to(x)[:, None, None, None] for level in (self.sde.alpha(t), self.sde.sigma(t)))
        return SimpleNamespace(sample=sigma * x / (0.09 * alpha**2 + sigma**2))


RESTART = samplers.Restart(0.3, 1.5, num_steps=4, repeats=2)


def pipeline():
    import diffusers

    return diffusers.DDPMPipeline(unet(), scheduler("DDPM"))


OTHER_GRID = samplers.Restart(0.1, 1.0, grid=samplers.grids.Karras(5.0))


ANYWHERE = {
    "pndm": {}, "dpm_solver": {"order": 3}, "edm": {"restarts": [RESTART]}, "heun": {},
    "dpm_solver_pp": {"corrector": samplers.AnnealedLangevin(0.1)}, "unipc": {"restarts": [RESTART]},
    "stochastic_heun": {},
}  # fmt: skip


@pytest.mark.parametrize("preset", of_presets(ANYWHERE, []))
def test_runs_may_begin_at_any_timestep(preset):
    """From the exact law at any timestep: the standard deviation of the data, but for few steps."""
    trained = scheduler("DDPM", clip_sample=False)
    made = toolkit_scheduler(trained, preset, seed=2, grid="log_snr", **ANYWHERE[preset])
    made.set_timesteps(24)
    exact = Exact(made._schedule.sde)
    z = states(64, seed=4).double()
    z = z / z.std()
    for first in range(1, len(made.timesteps), 7):
        levels = made._levels(made.timesteps[first : first + 1])
        alpha, sigma = (float(level) for level in levels)
        x = (0.09 * alpha**2 + sigma**2) ** 0.5 * z
        out = drive(made, exact, x, 24, first)
        assert abs(float(out.std()) / 0.3 - 1) < 0.08, (first, out.std())


AROUND = {
    "corrected": ("heun", {"corrector": samplers.Langevin(0.1, num_steps=2)}),
    "corrected first": (
        "ddim", {"eta": 1.0, "corrector": samplers.AnnealedLangevin(0.1), "corrector_first": True}),
    "evaluates its end": ("unipc", {"order": 3, "corrector": samplers.Langevin(0.1)}),
    "restarts": ("heun", {"restarts": [RESTART, samplers.Restart(0.05, 0.2, 3, stream=4711)]}),
    "restarts, multistep": ("dpm_solver_pp", {"order": 3, "restarts": [RESTART]}),
    "without the last draw": ("ddpm", {"last_draw": False, "denoise": False}),
}  # fmt: skip


def around_ours(model, name: str) -> samplers.Sampler:
    preset, options = AROUND[name]
    options = dict(options)
    corrector, first = options.pop("corrector", None), options.pop("corrector_first", False)
    restarts, last = options.pop("restarts", ()), options.pop("last_draw", True)
    made = samplers.PRESETS[preset].make(N, **options).on(model.sde)
    made = replace(made, restarts=tuple(restarts), last_draw=last)
    return replace(made, corrector=corrector, corrector_first=first)


@pytest.mark.parametrize("name", of_presets(AROUND, ["corrected", "corrected first", "restarts, multistep"]))
def test_correctors_and_restarts_are_our_own(network, name):
    import diffusers

    preset, options = AROUND[name]
    trained = scheduler("DDPM", clip_sample=False)
    model, x = from_diffusers(network, trained), states(2)
    made = toolkit_scheduler(trained, preset, seed=5, **options)
    expected = around_ours(model, name).sample(model, 2, noise=SameStart(x)).x
    theirs = drive(made, network, x)
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    again = diffusers.DDPMPipeline(network, type(made).from_config(made.config))
    assert torch.equal(drive(again.scheduler, network, x), theirs)


@pytest.mark.parametrize("name", ["corrected", "corrected first"])
def test_corrected_runs_begin_later(network, name):
    preset, options = AROUND[name]
    trained = scheduler("DDPM", clip_sample=False)
    model, x = from_diffusers(network, trained), states(2)
    made = toolkit_scheduler(trained, preset, seed=5, **options)
    made.set_timesteps(N)
    whole = around_ours(model, name)
    ts = whole.grid(model.sde, N, whole.t_min, model.sde.T)[3:]
    part = replace(whole, num_steps=N - 3, grid=samplers.grids.Explicit(ts), t_min=float(ts[-1]))
    expected = part.sample(model, 2, x_start=x, noised=True, t_start=float(ts[0]), noise=SameStart(x)).x
    theirs = drive(made, network, x, first=3 * made.order)
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


def test_a_state_that_was_changed_is_taken_where_a_step_begins(network):
    trained = scheduler("DDPM", clip_sample=False)
    x = states(2)
    results = []
    for preset in ("ddim", "edm"):
        made = toolkit_scheduler(trained, preset)
        made.set_timesteps(3)
        out = made.step(x, made.timesteps[0], x).prev_sample
        if preset == "edm":
            with pytest.raises(ValueError, match="inside a step of edm"):
                made.step(x, made.timesteps[1], out + 1)
            continue
        results = [
            made.step(x, made.timesteps[1], out + 1).prev_sample,
        ]
    assert results[0].isfinite().all()


def test_the_configuration_makes_the_round_trip(tmp_path, network):
    import diffusers

    trained = scheduler("DDPM", beta_schedule="scaled_linear", clip_sample=False)
    made = toolkit_scheduler(trained, "unipc", order=3, seed=4)
    diffusers.DDPMPipeline(network, made).save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path / "scheduler")
    assert dict(again.config)["options"] == {"order": 3}
    assert again.config["trained_as"] == "DDPMScheduler"
    x = states(2)
    assert torch.equal(drive(made, network, x), drive(again, network, x))
    model = from_diffusers(tmp_path)
    assert model.sde.chain.num_steps == 1000


def test_a_generator_makes_the_noise(network):
    made = toolkit_scheduler(scheduler("DDPM", clip_sample=False), "ddpm")
    made.set_timesteps(3)
    x, runs = states(2), []
    for seed in (1, 1, 2):
        made.set_timesteps(3)
        y, generator = x, torch.Generator().manual_seed(seed)
        for t in made.timesteps:
            y = made.step(0.1 * y, t, y, generator=generator).prev_sample
        runs.append(y)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: toolkit_scheduler(scheduler("DDPM"), "dopri5"), "preset must be one on a fixed grid"),
        (lambda: toolkit_scheduler(scheduler("LCM")), "no score|predict no score"),
        (lambda: toolkit_scheduler(3), "scheduler must be one of diffusers' schedulers"),
        (lambda: toolkit_scheduler(scheduler("DDPM"), "ddim", eta2=1).set_timesteps(3), "got eta2"),
        (lambda: toolkit_scheduler(scheduler("DDPM")).step(states(), 3, states()), "set_timesteps must be"),
        (lambda: toolkit_scheduler(scheduler("DDPM"), restarts=[OTHER_GRID]), "by name"),
        (lambda: toolkit_scheduler(scheduler("DDPM"), "ddim", grid="karas").set_timesteps(3),
         "grid must be one of arcsinh, arctan, cosine, karras"),
        (lambda: toolkit_scheduler(scheduler("DDPM"), corrector_first=True), "needs a corrector, got none"),
        (lambda: toolkit_scheduler(pipeline()), "got DDPMPipeline; give its scheduler"),
        (lambda: toolkit_scheduler(scheduler("DDPM"), "ddpm", restarts=[RESTART]).set_timesteps(3),
         "restarts need a deterministic sampler"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(build, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build()
