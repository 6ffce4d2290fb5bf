"""Latent diffusion: tiny directories of the real classes, sampled by us and by the stock pipelines alike."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from pipeline_parts import dit, scheduler, stable_diffusion, states, texts, vae
from torch import Tensor

from sde_toolkit import cli, runs, samplers
from sde_toolkit.config import parse_config
from sde_toolkit.guidance import guided
from sde_toolkit.interop import from_diffusers, open_latent, toolkit_scheduler
from sde_toolkit.likelihood import FlowSolver, Hutchinson, log_likelihood
from sde_toolkit.models import Moments
from sde_toolkit.utils import Stream
from solvers import RK4, Normals

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
SHAPE = (4, 8, 8)
LAW = Moments(torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory of Stable Diffusion's layout and its pipeline."""
    folder = tmp_path_factory.mktemp("latent")
    made = stable_diffusion(folder, scheduler("DDIM", clip_sample=False, beta_schedule="scaled_linear"))
    made.save_pretrained(folder / "sd")
    made.set_progress_bar_config(disable=True)
    return folder / "sd", made


@pytest.fixture(scope="module")
def dit_place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    made = dit(scheduler("DDIM", clip_sample=False))
    made.save_pretrained(folder / "dit")
    made.set_progress_bar_config(disable=True)
    return folder / "dit", made


class SameStart:
    """The start of a pipeline, and the draws of a seed."""

    def __init__(self, start: Tensor) -> None:
        self.start, self.rest = start, Normals(5, len(start), start.shape[1:], start.dtype)

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        return self.start if stream == Stream.PRIOR else self.rest.draw(index, stream)


def preset(name: str, model) -> samplers.Sampler:
    more = {"moments": LAW} if name == "gaussian_residual" else {}
    return samplers.PRESETS[name].make(5, model=model, **more)


PRESETS = (
    "unipc", "gaussian_residual", "dpm_solver_pp", "ddim", "ddpm", "edm", "dpm_solver", "sde_dpm_solver_pp",
)  # fmt: skip


def those_quick(*quick: str) -> list:
    """The eight presets, all but these in slow tests."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in PRESETS]


@pytest.mark.parametrize("name", those_quick("unipc", "gaussian_residual"))
def test_stable_diffusion_with_our_presets_is_our_guided_sampler(place, name):
    folder, pipeline = place
    space, law = open_latent(folder), LAW if name == "gaussian_residual" else None
    trained = pipeline.scheduler
    start, prompts = states(2, SHAPE), ["a cat", "dogs"]
    try:
        pipeline.scheduler = toolkit_scheduler(trained, name, seed=5, moments=law)
        theirs = pipeline(
            prompts, num_inference_steps=5, guidance_scale=3.0, latents=start, output_type="latent"
        ).images
    finally:
        pipeline.scheduler = trained
    sampler = guided(preset(name, space.model), 3.0)
    ours = sampler.sample(space.model, 2, condition=space.condition(prompts), noise=SameStart(start)).x
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(ours.abs().max()))


@pytest.mark.parametrize("name", those_quick("dpm_solver_pp"))
def test_dit_with_our_presets_is_our_guided_sampler(dit_place, name):
    folder, pipeline = dit_place
    space, law = open_latent(folder, learned_variance=True), LAW if name == "gaussian_residual" else None
    assert space.model.num_classes == 1000
    assert space.model.learned_variance
    trained, kept = pipeline.scheduler, []
    try:
        pipeline.scheduler = made = toolkit_scheduler(trained, name, seed=5, moments=law)
        step = made.step

        def last(*args, **options):
            kept.append(step(*args, **options))
            return kept[-1]

        made.step = last
        pipeline(
            [3, 999], guidance_scale=4.0, num_inference_steps=5, generator=torch.Generator().manual_seed(2)
        )
    finally:
        pipeline.scheduler = trained
    start = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    sampler = guided(preset(name, space.model), 4.0)
    ours = sampler.sample(space.model, 2, condition=[3, 999], noise=SameStart(start)).x
    theirs = kept[-1].prev_sample[:2]
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(ours.abs().max()))


IMAGE_TO_IMAGE = {
    "edm": {}, "gaussian_residual": {}, "ddpm": {}, "heun": {"corrector": samplers.Langevin(0.1)},
    "dpm_solver": {"order": 3},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i > 1)) for i, name in enumerate(IMAGE_TO_IMAGE)]
)
def test_image_to_image_in_a_stock_pipeline_is_our_sampler_from_there(place, name):
    import diffusers

    folder, pipeline = place
    space, law = open_latent(folder), LAW if name == "gaussian_residual" else None
    stock = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = made = toolkit_scheduler(
        pipeline.scheduler, name, seed=5, moments=law, **IMAGE_TO_IMAGE[name]
    )
    seen, add, step = [], made.add_noise, made.step
    made.add_noise = lambda *given: seen.append(given) or add(*given)
    made.step = lambda *given, generator=None, **options: step(*given, **options)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    theirs = stock(
        "a cat", image=image, strength=0.5, num_inference_steps=6, guidance_scale=3.0, output_type="latent"
    ).images
    x0, z, timesteps = seen[0]
    options = dict(IMAGE_TO_IMAGE[name])
    corrector = options.pop("corrector", None)
    whole = samplers.PRESETS[name].make(6, model=space.model, **({"moments": LAW} if law else options))
    whole = replace(guided(whole, 3.0), corrector=corrector).on(space.model.sde)
    ts = whole.grid(space.model.sde, whole.num_steps, whole.t_min)
    begins = (space.model.sde.time(timesteps[0].double() + 1) - ts).abs().argmin()
    ts = torch.cat([ts[begins : begins + 1] * (1 + 1e-6), ts[begins:]]) if law else ts[begins:]
    grid = samplers.grids.Explicit(ts)
    part = replace(whole, grid=grid, num_steps=len(ts) - 1, t_min=float(ts[-1]))
    expected = part.sample(
        space.model, 1, condition=space.condition(["a cat"]), x_start=x0, t_start=float(ts[0]),
        noise=SameStart(z),
    ).x  # fmt: skip
    assert (theirs - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


def test_latents_are_images_and_back(place):
    folder, pipeline = place
    space = open_latent(folder, slicing=True, tiling=True)
    x = states(2, SHAPE)
    images = space.decode(x, batch_size=1)
    with torch.no_grad():
        theirs = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
    assert torch.allclose(images, (theirs / 2 + 0.5).clamp(0, 1), atol=1e-5)
    samples = samplers.ddim(3).sample(space.model, 2, condition=space.condition(["a", "b"]))
    assert samples.data.shape == (2, 3, 16, 16)
    latents = space.encode(images)
    assert latents.shape == x.shape
    assert not torch.equal(space.encode(images, states(2, SHAPE)), latents)
    empty, none = space.condition(""), space.model.raw(x, torch.tensor(0.5))
    assert torch.allclose(space.model.raw(x, torch.tensor(0.5), empty.expand(2, -1, -1)), none, atol=1e-6)


@pytest.mark.slow
def test_latents_have_a_likelihood(place):
    folder, _ = place
    space = open_latent(folder, moments=LAW)
    found = log_likelihood(
        space.model, states(1, SHAPE), condition=space.condition(["a"]), num_diagnostic_samples=0,
        solver=FlowSolver(RK4, num_steps=4), divergence=Hutchinson(),
    )  # fmt: skip
    assert found.nats.isfinite().all()


def problem_of(folder, prompts: str):
    """The problem of a directory, and the conditions of its prompts."""
    fields = {"problems": f"diffusers:{folder}", "prompts": prompts, "metrics": "flow_error"}
    config = parse_config({f"comparison.{name}": value for name, value in fields.items()})
    (problem,) = runs.open_problems(config, None)
    plan = runs.plan_comparison(config, [problem], runs.comparison_conditions(config, None))
    return problem, [group.condition for group in plan.groups]


def test_prompts_are_conditions_of_a_comparison(place):
    problem, conditions = problem_of(place[0], "a cat | a dog, oil")
    assert [condition.name for condition in conditions] == ["a cat", "a dog, oil"]
    wanted = open_latent(place[0]).condition(["a cat", "a dog, oil"])
    for condition, row in zip(conditions, wanted, strict=True):
        assert torch.allclose(condition.value, row, atol=1e-6)
    assert problem.model.conditions(conditions[0].rows(3), 3).shape == (3, 6, 8)


@pytest.mark.slow
def test_samplers_are_compared_under_prompts(place, tmp_path, capsys):
    """By the error of their maps in the space of latents, with guidance."""
    line = [
        "compare", f"--problems=diffusers:{place[0]}", "--prompts=a dog, oil", "--num_steps=2,8",
        "--samplers=dpm_solver_pp", "--num_samples=10", "--metrics=flow_error", "--device=cpu",
        "--config.sampling.guidance_scale=3", f"--output={tmp_path}",
    ]  # fmt: skip
    assert cli.main(line) == 0
    records, _ = runs.read_records(tmp_path)
    assert {str(record.settings["condition"]).partition(" (")[0] for record in records} == {"a dog, oil"}
    errors = {record.num_steps: record.value for record in records}
    assert errors[8] < errors[2] / 2
    assert "a-dog-oil" in capsys.readouterr().out


def changed(folder, to, how):
    """A directory with something wrong."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    if how == "no text encoder":
        shutil.rmtree(to / "text_encoder")
    if how == "other text encoder":
        texts(to / "t", width=16)[1].save_pretrained(to / "text_encoder")
    if how == "other tokenizer":
        texts(to / "t", tokens=40)[0].save_pretrained(to / "tokenizer")
    if how == "other vae":
        vae(channels=3).save_pretrained(to / "vae")
    if how == "no vae":
        del index["vae"]
        (to / "model_index.json").write_text(json.dumps(index))
    return to


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no text encoder", "must have a text_encoder for a network of prompts"),
        ("other text encoder", "text_encoder must have the 8 features"),
        ("other tokenizer", "tokenizer must be the text encoder's, with at most 54 tokens and 6 places"),
        ("other vae", "vae must have the 4 channels"),
        ("no vae", "must have a vae .*use from_diffusers"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_a_sentence(place, tmp_path, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_latent(changed(place[0], tmp_path / "changed", how))


@pytest.mark.parametrize(("prompts", "said"), [("a||b", "different texts"), ("a|a", "different texts")])
def test_prompts_that_are_none_are_refused(place, prompts, said):
    with pytest.raises(ValueError, match=said):
        problem_of(place[0], prompts)


def test_prompts_and_shapes_are_refused_with_a_sentence(place, dit_place):
    with pytest.raises(ValueError, match="prompts need a latent diffusion model with a text encoder"):
        problem_of(dit_place[0], "a cat")
    with pytest.raises(ValueError, match="open_latent"):
        from_diffusers(place[0])
    with pytest.raises(ValueError, match="prompts need a text encoder"):
        open_latent(dit_place[0]).condition("a cat")
    space = open_latent(place[0])
    with pytest.raises(TypeError, match="prompts must be"):
        space.condition([3])
    with pytest.raises(ValueError, match="latents must have shape"):
        space.decode(torch.zeros(2, 4, 7, 7))
