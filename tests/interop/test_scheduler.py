"""Our samplers inside stock pipelines: the samples of our own runs from the same start and the same noise."""

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
    assert made.order == max(1, round((len(made.timesteps) - made._idle) / N))


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


@pytest.mark.parametrize("preset", of_presets(["dpm_solver_pp", "edm", "unipc"], ["edm"]))
@pytest.mark.filterwarnings("ignore:.*begins at t")
def test_image_to_image_begins_at_a_later_timestep(network, preset):
    trained = scheduler("DDPM", clip_sample=False)
    model = from_diffusers(network, trained)
    made = toolkit_scheduler(trained, preset, seed=5)
    made.set_timesteps(N)
    first = 3 * made.order
    x0, z = 0.5 * states(2, seed=8), states(2, seed=9)
    t = made.timesteps[first]
    x = made.add_noise(x0, z, t[None])
    alpha = float(model.sde.alpha(model.sde.time(t.double() + 1)))
    sigma = float(model.sde.sigma(model.sde.time(t.double() + 1)))
    assert torch.allclose(x, alpha * x0 + sigma * z, atol=1e-6)
    sampler = samplers.PRESETS[preset].make(N).on(model.sde)
    ts = sampler.grid(model.sde, N, sampler.t_min, model.sde.T)[3:]
    part = samplers.PRESETS[preset].make(3, grid=samplers.grids.Explicit(ts), t_min=float(ts[-1]))
    expected = part.sample(model, 2, noise=SameStart(x)).x
    theirs = drive(made, network, x, first=first)
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    if made.order > 1:
        with pytest.raises(ValueError, match="must begin where a step of edm begins"):
            drive(made, network, x, first=first + 1)


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
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(build, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build()
