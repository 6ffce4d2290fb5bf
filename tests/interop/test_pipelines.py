"""Directories that diffusers wrote as score models: the network's own output at every index, and one step."""

import copy
import dataclasses
import json

import pytest
import torch
from pipeline_parts import FAMILIES, QUICK, save, scheduler, states, unet
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.interop import from_diffusers, matching_sampler
from sde_toolkit.interop.pipelines.matching import first_steps
from sde_toolkit.interop.pipelines.schedules import beta_chain, read_schedule
from sde_toolkit.models import IndexedModel
from sde_toolkit.sdes import ChainSDE
from sde_toolkit.utils import Stream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Name -> network, scheduler and the model of the directory, each made once."""
    found = {}

    def make(name: str):
        if name not in found:
            build, kind, options = FAMILIES[name]
            network, other = build(), scheduler(kind, **options)
            folder = tmp_path_factory.mktemp("pipeline")
            found[name] = network, other, from_diffusers(save(folder, network, other))
        return found[name]

    return make


def schedule_of(other):
    """What is read of a scheduler."""
    return read_schedule(type(other).__name__, other.config)


def asked(model, other, count: int) -> tuple[Tensor, Tensor]:
    """Times of ours, and what diffusers calls the network with there; both with shape (B,)."""
    if isinstance(model, IndexedModel):
        N = model.sde.chain.num_steps
        indices = torch.linspace(0, N - 1, min(count, N)).round().long()
        return (indices + 1).double() / N, indices
    family, sde = schedule_of(other).family, model.sde
    times = torch.linspace(0.01, 0.99, count, dtype=torch.float64)
    if family == "flow":
        return times, (1000 * times).float()
    return times, sde.sigma(times).float() if family == "ve" else (sde.sigma(times).log() / 4).float()


@pytest.mark.parametrize("name", QUICK)
def test_the_network_puts_out_the_same(made, name):
    compare_outputs(made, name, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_puts_out_the_same_at_every_index(made, name):
    compare_outputs(made, name, 1000)


@torch.no_grad()
def compare_outputs(made, name, count):
    """One row for every time; a row of a network is its output alone."""
    network, other, model = copy.deepcopy(made(name))
    x = states(1)
    if schedule_of(other).scaled:  # theirs rounds the scale to float32
        network, model, x = network.double(), model.double(), x.double()
    for t, tau in zip(*(part.split(100) for part in asked(model, other, count)), strict=True):
        rows = x.expand(len(t), *x.shape[1:])
        seen = rows
        if schedule_of(other).scaled:
            seen = other.precondition_inputs(rows, model.sde.sigma(t)[:, None, None, None])
        theirs = network(seen, tau).sample[:, :1]
        if "edm dpm v" in name:
            theirs = -theirs
        raw = (
            model._output(rows, t, None, 2)[:, :1] if model.learned_variance else model._output(rows, t, None)
        )
        error = (raw - theirs).abs().flatten(1).amax(1)
        allowed = 1e-6 * theirs.abs().flatten(1).amax(1).clamp(min=1.0)
        assert (error < allowed).all(), t[error >= allowed]


class Start:
    """A start, and one draw."""

    def __init__(self, start: Tensor, z: Tensor) -> None:
        self.start, self.z = start, z

    def draw(self, index: int, stream: int = 0) -> Tensor:
        return self.start if stream == Stream.PRIOR else self.z


def of_families(names) -> list:
    """The names, those that are not quick in slow tests."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize(
    "name", of_families(name for name in FAMILIES if name not in ("score_sde_ve", "pndm linear epsilon"))
)
@torch.no_grad()
def test_one_step_of_the_matching_preset_is_that_of_the_scheduler(made, name):
    network, other, model = made(name)
    steps = 10
    whole = matching_sampler(other, steps)
    other.set_timesteps(steps)
    skipped = int("flow" in name or "zero" in name)  # theirs begins at alpha = 0, which ours leaves out
    ts = whole.grid(model.sde, whole.num_steps, whole.t_min, model.sde.T)
    if hasattr(other, "set_begin_index"):
        other.set_begin_index(skipped)
    one = first_steps(whole, model.sde, skipped, 1)
    tau, x, z = other.timesteps[skipped], states(seed=2), states(seed=3)
    alpha, end = float(model.sde.alpha(ts[skipped])), float(model.sde.alpha(ts[skipped + 1]))
    in_sigma = FAMILIES[name][1] in ("HeunDiscrete", "EulerDiscrete", "LMSDiscrete")
    scale = float(model.sde.sigma(ts[skipped])) if model.sde.prior_std > 2 else 1.0
    x = scale * x
    theirs = x / alpha if in_sigma else x
    calls = 2 if FAMILIES[name][1] == "HeunDiscrete" else 1
    for k in range(calls):
        tau = other.timesteps[skipped + k]
        seen = theirs if "flow" in name else other.scale_model_input(theirs, tau)
        out = network(seen, tau.expand(3)).sample
        options = {"generator": torch.Generator().manual_seed(3)} if FAMILIES[name][1] == "DDPM" else {}
        theirs = other.step(out, tau, theirs, **options).prev_sample
    theirs = theirs * end if in_sigma else theirs
    start = x / model.sde.prior_std
    ours = one.sample(model, 3, noise=Start(start, z)).x
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


@torch.no_grad()
def test_a_reverse_diffusion_step_is_that_of_score_sde_ve(made):
    network, other, model = made("score_sde_ve")
    x, z = states(seed=2), states(seed=3)
    other.set_timesteps(100)
    other.set_sigmas(100)
    i = 10
    t = other.timesteps[i]
    number = int(float(t) * (len(other.timesteps) - 1))
    score = network(x, other.sigmas[i] * torch.ones(3)).sample
    theirs = other.step_pred(score, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
    ts = torch.tensor([number, number - 1], dtype=torch.float64) / (len(other.timesteps) - 1)
    one = samplers.reverse_diffusion(1, grid=samplers.grids.Explicit(ts), t_min=float(ts[1]), denoise=False)
    ours = one.sample(model, 3, noise=Start(x / model.sde.prior_std, z)).x
    # theirs asks the network at a time that lies 1e-5 above the index which it steps from
    assert (ours - theirs).abs().max() < 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("table", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
@pytest.mark.parametrize("zero", [False, True])
def test_tables_are_those_of_diffusers(table, zero):
    other = scheduler("DDPM", beta_schedule=table, rescale_betas_zero_snr=zero)
    chain = beta_chain(other.config)
    assert (chain.alphas[1:].square() - other.alphas_cumprod.double()).abs().max() < 1e-6
    assert chain.ends_in_noise == zero


def test_a_model_is_a_score_model_with_a_process(made):
    _, _, model = made("ddpm linear epsilon")
    assert isinstance(model.sde, ChainSDE)
    assert not model.training
    x = samplers.ddim(4).sample(model, 3, seed=1)
    assert x.x.shape == (3, 1, 8, 8)
    assert x.nfe == 5


def test_learned_variances_are_kept(made):
    network, _, model = made("ddpm learned range")
    assert model.learned_variance
    x, t = states(), torch.tensor(0.5)
    _, fraction = model.raw_and_fraction(x, t)
    with torch.no_grad():
        out = network(x, torch.tensor(499).expand(3)).sample
    assert torch.allclose(fraction, 0.5 * (out[:, 1:] + 1), atol=1e-6)


def test_labels_are_the_condition():
    network = unet(num_class_embeds=4)
    model = from_diffusers(network, scheduler("DDPM"), null_class=3)
    assert model.num_classes == 3
    x, t = states(), torch.tensor(0.5)
    with torch.no_grad():
        theirs = network(x, torch.tensor(499), class_labels=torch.tensor([0, 2, 1])).sample
        none = network(x, torch.tensor(499), class_labels=torch.tensor([3, 3, 3])).sample
        assert torch.allclose(model.raw(x, t, [0, 2, 1]), theirs, atol=1e-6)
        assert torch.allclose(model.raw(x, t), none, atol=1e-6)
    plain = from_diffusers(network, scheduler("DDPM"))
    assert plain.num_classes == 4
    for condition in (None, [4, 4, 4]):
        with pytest.raises(ValueError, match="condition must be given for a network that was trained with"):
            plain.raw(x, t, condition)


def test_outputs_may_be_tuples():
    class Network(torch.nn.Module):
        def forward(self, x, tau):
            return (0 * x + tau[:, None, None, None].to(x.dtype), "more")

    model = from_diffusers(Network(), scheduler("DDPM"), event_shape=(1, 4, 4))
    assert float(model.raw(torch.zeros(2, 1, 4, 4), torch.tensor(0.5)).max()) == 499


def broken(folder, how):
    """A directory with something wrong."""
    save(folder, unet(), scheduler("DDPM"))
    index = json.loads((folder / "model_index.json").read_text())
    if how == "no index":
        (folder / "model_index.json").unlink()
    if how == "no weights":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    if how == "pickled":
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
    if how == "no scheduler":
        (folder / "scheduler" / "scheduler_config.json").unlink()
    if how in ("own code", "wrong class"):
        index["unet"] = ["mine", "Network"] if how == "own code" else ["diffusers", "DDPMScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
    if how == "other weights":
        save(folder / "other", unet(block_out_channels=(24, 24)), scheduler("DDPM"))
        (folder / "other/unet/config.json").replace(folder / "unet/config.json")
    return folder


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no index", "must have a file model_index.json"),
        ("no weights", r"must be a \.safetensors file in .*unet"),
        ("pickled", "a pickle, which can run code of whoever wrote it; .*use_safetensors=False"),
        ("no scheduler", "must have a file scheduler_config.json"),
        ("own code", "must be a class of diffusers, got 'Network' of 'mine'; code of others is not run"),
        ("wrong class", "must be a network of diffusers"),
        ("other weights", "cannot be loaded as a UNet2DModel|must be those of its config.json"),
    ],
)
def test_a_directory_with_something_wrong_is_refused_with_a_sentence(tmp_path, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_diffusers(broken(tmp_path, how))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: from_diffusers("nowhere"), "must be a directory on this machine, got 'nowhere'"),
        (lambda: from_diffusers(unet()), "scheduler must be given beside a network"),
        (lambda: from_diffusers(3), "source must be a directory, a pipeline"),
        (lambda: from_diffusers(unet(), scheduler("LCM")), "LCMScheduler: it is made for consistency models"),
        (lambda: from_diffusers(unet(out_channels=2), scheduler("DDPM")), "learned_variance must be given"),
        (lambda: from_diffusers(unet(), scheduler("DDPM", variance_type="learned_range")), "twice as many"),
        (lambda: from_diffusers(unet(), scheduler("DDPM", variance_type="learned")), "twice as many"),
        (lambda: from_diffusers(unet(), scheduler("DDPM"), null_class=1), "null_class must be the last"),
        (lambda: from_diffusers(unet(), scheduler("DDIM", rescale_betas_zero_snr=True)), "alpha_N = 0"),
        (lambda: matching_sampler(scheduler("LCM"), 4), "scheduler must be one of DDPMScheduler"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_a_sentence(build, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build()


def test_clipping_is_an_option_of_sampling():
    sampler = matching_sampler(scheduler("DDPM", clip_sample=True, clip_sample_range=2.0), 5)
    assert "StaticThreshold(limit=2.0)" in repr(sampler.settings["guidance"])
    sampler = matching_sampler(scheduler("DDPM", thresholding=True, sample_max_value=1.5), 5)
    threshold = sampler.guidance.threshold
    assert (threshold.quantile, threshold.limit, threshold.most) == (0.995, 1.0, 1.5)
    x = 3 * states()
    theirs = scheduler("DDPM", thresholding=True, sample_max_value=1.5)._threshold_sample(x)
    assert torch.allclose(threshold(x), theirs, atol=1e-5)
    assert dataclasses.is_dataclass(threshold)


@pytest.mark.slow
def test_a_directory_is_a_problem_of_the_command_line(tmp_path):
    from sde_toolkit.cli import main

    save(tmp_path / "unet", unet(), scheduler("DDPM"))
    main(["sample", f"--problem=diffusers:{tmp_path / 'unet'}", "--num_samples=2", "--sampler=ddim",
          "--num_steps=2", f"--output={tmp_path / 'out'}", "--device=cpu"])  # fmt: skip
    assert list((tmp_path / "out").rglob("*.safetensors")) or list((tmp_path / "out").rglob("*.np*"))
