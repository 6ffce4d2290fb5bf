"""Our networks as directories of diffusers: their pipelines draw the samples of our own samplers."""

import pytest
import torch
from pipeline_parts import scheduler, unet

from sde_toolkit import samplers
from sde_toolkit.interop import from_diffusers, to_diffusers
from sde_toolkit.models import ExactModel, Gaussian, IndexedModel, NetworkModel
from sde_toolkit.networks import MLP, UNet
from sde_toolkit.sdes import VPSDE, Chain, ChainSDE, SubVPSDE
from sde_toolkit.utils import Stream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (1, 8, 8)
LEVELS = torch.linspace(0.1, 9, 9)
CHAIN = Chain.from_betas(torch.linspace(1e-3, 0.4, 40, dtype=torch.float64))


def network(seed: int = 0, **options) -> UNet:
    """A U-Net of ours with random weights, those of the end included."""
    made = UNet(SHAPE, channels=(8, 8), num_groups=4, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in (made.unet.conv_out.weight, made.unet.conv_out.bias):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.eval()


class TheirDraws:
    """The draws of a generator in the order of DDPMPipeline: the start, then one for every step."""

    def __init__(self, seed: int, count: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.z = [torch.randn(2, *SHAPE, generator=generator) for _ in range(count + 1)]

    def draw(self, index: int, stream: int = Stream.STEPS):
        return self.z[0] if stream == Stream.PRIOR else self.z[index + 1]


MODELS = {
    "ours": lambda predicts: IndexedModel(network(), CHAIN, predicts, SHAPE),
    "continuous features": lambda predicts: NetworkModel(network(), ChainSDE(CHAIN), predicts, SHAPE),
    "theirs": lambda predicts: IndexedModel(unet(), CHAIN, predicts, SHAPE),
}


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
@pytest.mark.parametrize("name", MODELS)
def test_a_ddpm_pipeline_draws_our_samples(tmp_path, name, predicts):
    import diffusers

    model = MODELS[name](predicts)
    place = to_diffusers(model, tmp_path / "written")
    pipeline = diffusers.DDPMPipeline.from_pretrained(place, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    kept = []
    step = pipeline.scheduler.step

    def last(*args, **options):
        kept.append(step(*args, **options).prev_sample)
        return step_output(kept[-1])

    step_output = diffusers.schedulers.scheduling_utils.SchedulerOutput
    pipeline.scheduler.step = last
    pipeline(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=40, output_type="pt"
    )
    grid = samplers.grids.Explicit(CHAIN.times.flip(0))
    ours = samplers.ddpm(40, grid=grid, t_min=0.0, denoise=False).sample(model, 2, noise=TheirDraws(3, 40)).x
    assert (kept[-1] - ours).abs().max() < 1e-4 * max(1.0, float(ours.abs().max()))


def test_a_ddim_pipeline_loads_it_and_the_model_comes_back(tmp_path):
    import diffusers

    model = MODELS["ours"]("velocity")
    to_diffusers(model, tmp_path / "written", pipeline="DDIM")
    to_diffusers(model, tmp_path / "written")  # over an earlier one
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "written", low_cpu_mem_usage=False)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    again, model = from_diffusers(tmp_path / "written", dtype=torch.float64), model.double()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    for i in (1, 7, 40):
        with torch.no_grad():
            assert (model.raw(x, CHAIN.times[i]) - again.raw(x, CHAIN.times[i])).abs().max() < 1e-6


def test_classes_come_back(tmp_path):
    model = IndexedModel(network(num_classes=3), CHAIN, "noise", SHAPE)
    to_diffusers(model, tmp_path / "written")
    again = from_diffusers(tmp_path / "written", null_class=3, dtype=torch.float64)
    model.double()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for condition in ([0, 2], None):
            difference = model.raw(x, CHAIN.times[7], condition) - again.raw(x, CHAIN.times[7], condition)
            assert difference.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: NetworkModel(network(), VPSDE(), "noise", SHAPE), "of a chain .*train it with Indexed"),
        (lambda: NetworkModel(network(), SubVPSDE(), "noise", SHAPE), "indices of a chain"),
        (lambda: NetworkModel(network(), ChainSDE(CHAIN), "noise", SHAPE, 0.5), "data_std = 0.5"),
        (lambda: IndexedModel(network(), CHAIN, "edm", SHAPE), "must predict noise, data or velocity"),
        (lambda: IndexedModel(MLP((2,)), CHAIN, "noise", (2,)), "got MLP"),
        (lambda: IndexedModel(network(patch_size=2), CHAIN, "noise", SHAPE), "without patches"),
        (lambda: IndexedModel(network(), Chain.from_sigmas(LEVELS), "noise", SHAPE), "betas"),
        (lambda: ExactModel(Gaussian([0.0], 1.0), VPSDE()), "model must be"),
        (lambda: from_diffusers(unet(), scheduler("EDMEuler")), "indices of a chain"),
    ],
)  # fmt: skip
def test_what_a_pipeline_cannot_say_is_refused(tmp_path, build, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        to_diffusers(build(), tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_a_directory_with_other_files_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="directory must be new, empty or a pipeline's"):
        to_diffusers(MODELS["ours"]("noise"), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"
