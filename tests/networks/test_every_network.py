"""What every network does inside a model: files, types, compilation, derivatives, training, conditions."""

import math
import shutil

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sde_toolkit import VPSDE, DenoisingLoss, NetworkModel, TrainState, ddim, fit, load_model, save_model
from sde_toolkit.guidance import guided
from sde_toolkit.networks import MLP, UNet, describe_network, described_network
from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.blocks import Resample
from sde_toolkit.training import Optimization, train_step
from tests.networks.kinds import IMAGE, KINDS, MADE, awake, batch, build

VECTOR, TOKENS = {"condition_shape": (3,)}, {"condition_shape": (4, 3)}
CONDITIONS = {"none": {}, "classes": {"num_classes": 3}, "vector": VECTOR, "tokens": TOKENS}
ATTENTION = {"unet": {"attention_levels": (1,)}, "ncsnpp": {"attention_levels": (0,)},
             "unet1d": {"attention_levels": (1,)}}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=CONDITIONS)
def options(request):
    return CONDITIONS[request.param]


def some(options, size=5, dtype=torch.float32):
    """Conditions for these options, the last of them null; None for a network without."""
    if "num_classes" in options:
        return torch.arange(size) % (options["num_classes"] + 1)
    if "condition_shape" not in options:
        return None
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(size, *options["condition_shape"], generator=generator, dtype=dtype)
    rows[-1] = math.nan
    return rows


def model_of(network, kind, predicts="noise"):
    return NetworkModel(network, VPSDE(), predicts, MADE[kind][1])


def test_a_network_is_its_description(kind, options):
    network = awake(build(kind, seed=3, **options, **ATTENTION.get(kind, {})))
    again = described_network(describe_network(network), len(network.state_dict()))
    assert again.arguments == network.arguments
    again.load_state_dict(network.state_dict())
    arguments = (*batch(kind), some(options))
    assert torch.equal(again.eval()(*arguments), network.eval()(*arguments))


def test_a_model_file_holds_every_network_and_its_conditions(kind, options, tmp_path):
    model = model_of(awake(build(kind, **options)), kind).eval()
    again = load_model(save_model(model, tmp_path / "a.safetensors"))
    assert again.condition_shape == model.condition_shape
    condition = some(options)
    a, b = (ddim(2).sample(m, 5, seed=1, condition=condition).x for m in (model, again))
    assert torch.equal(a, b)


def test_every_parameter_gets_a_gradient_with_every_condition(kind, options):
    network = awake(build(kind, **options, **ATTENTION.get(kind, {})))
    network(*batch(kind), some(options)).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


def test_an_untrained_network_returns_zeros_whatever_the_condition(kind, options):
    network = build(kind, **options)
    x, c = batch(kind)
    assert torch.equal(network(x, c, some(options)), torch.zeros_like(x))


@pytest.mark.parametrize("options", [VECTOR, TOKENS], ids=["vector", "tokens"])
def test_the_output_depends_on_the_condition_and_nan_rows_are_none(kind, options):
    network = awake(build(kind, **options)).eval().requires_grad_(False)
    x, c = batch(kind)
    x, c = x[:1].expand_as(x), c[:1].expand_as(c)
    rows = some(options)
    out = network(x, c, rows)
    differences = [(out[i] - out[j]).abs().amax() for i in range(5) for j in range(i)]
    assert min(map(float, differences)) > 1e-4
    torch.testing.assert_close(network(x, c)[:1], out[4:])
    rows[0, ..., 0] = math.nan
    assert bool(network(x, c, rows)[0].isnan().any())
    with pytest.raises(ValueError, match=r"condition must have shape \(5, .*one row per sample, got \(4, "):
        network(x, c, rows[:4])


def test_a_token_that_is_nan_is_left_out(kind):
    network = awake(build(kind, **TOKENS, **ATTENTION.get(kind, {}))).double().eval()
    x, c = batch(kind, dtype=torch.float64)
    rows = some(TOKENS, dtype=torch.float64)
    shorter = rows.clone()
    shorter[:, 2:] = math.nan
    short = awake(build(kind, condition_shape=(2, 3), **ATTENTION.get(kind, {}))).double().eval()
    torch.testing.assert_close(network(x, c, shorter), short(x, c, rows[:, :2]))
    assert not torch.allclose(network(x, c, shorter), network(x, c, rows))
    torch.testing.assert_close(network(x, c, rows.flip(1)), network(x, c, rows))


@pytest.mark.parametrize("kind", ["dit", "ncsnpp", "unet1d"])
def test_tokens_are_read_by_cross_attention(kind):
    assert any("cross" in name for name, _ in build(kind, **TOKENS).named_parameters())
    assert not any("cross" in name for name, _ in build(kind, **VECTOR).named_parameters())


def test_attention_is_that_of_torch():
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator).double() for n in (5, 6, 6))
    present = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]]).bool()
    torch.testing.assert_close(attend(q, k, v), scaled_dot_product_attention(q, k, v))
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None])
    torch.testing.assert_close(attend(q, k, v, present), wanted)


@pytest.mark.parametrize("dims", [1, 2])
def test_changes_of_resolution_keep_the_mean_and_undo_no_wave(dims):
    inner = (0, 0, *[slice(2, -2)] * dims)
    for up in (False, True):
        flat = Resample(dims, up)(torch.ones(1, 2, *[16] * dims))
        assert flat.shape == (1, 2, *[32 if up else 8] * dims)
        torch.testing.assert_close(flat[inner], torch.ones_like(flat[inner]))
    finest = torch.ones(16)
    finest[1::2] = -1  # what half the places cannot hold is gone, not folded into something slower
    wave = finest if dims == 1 else finest[:, None] * finest
    assert float(Resample(dims, up=False)(wave[None, None])[inner].abs().max()) < 1e-6


def test_rows_do_not_influence_each_other_under_conditions(kind, options):
    network = awake(build(kind, **options)).double().eval()
    x, c = batch(kind, dtype=torch.float64)
    condition = some(options, dtype=torch.float64)
    rows = [
        network(x[i : i + 1], c[i : i + 1], None if condition is None else condition[i : i + 1])
        for i in range(5)
    ]
    torch.testing.assert_close(network(x, c, condition), torch.cat(rows), rtol=1e-10, atol=1e-12)


def test_bfloat16_autocast_is_near_float32(kind, options):
    model = model_of(awake(build(kind, **options)), kind).eval()
    x, t = batch(kind)[0], torch.linspace(0.1, 0.9, 5)
    model.requires_grad_(False)
    plain = model.noise(x, t, some(options))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model.noise(x, t, some(options))
    assert narrow.dtype == torch.float32
    assert float((narrow - plain).norm() / plain.norm()) < 0.1


@pytest.mark.parametrize("kind", ["mlp", "dit", "ncsnpp", "unet1d"])
def test_networks_of_our_own_blocks_can_be_differentiated_twice(kind):
    network = awake(build(kind, **ATTENTION.get(kind, {}))).double().eval()
    x, c = batch(kind, size=1, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda y: network(y, c), (x.requires_grad_(),), fast_mode=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_networks_compute_the_same(kind):
    options = TOKENS
    network = awake(build(kind, **options, **ATTENTION.get(kind, {}))).eval().requires_grad_(False)
    arguments = (*batch(kind), some(options))
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), network(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, TOKENS], ids=["none", "tokens"])
def test_a_tiny_run_lowers_the_loss(kind, options):
    """The network learns the one batch by heart, with every third condition left out."""
    network = build(kind, **options)
    state = TrainState(model_of(network, kind, "data"), Optimization(3e-3, warmup_steps=0), seed=0)
    x0 = batch(kind, size=8)[0]
    condition = some(options, 8)
    if condition is not None and condition.is_floating_point():
        condition[::3] = math.nan
    loss = DenoisingLoss("noise", 1e-3)
    losses = [train_step(state, x0, loss, condition).loss for _ in range(40)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("options", [VECTOR, TOKENS], ids=["vector", "tokens"])
def test_guidance_by_vectors_and_tokens(options):
    model = model_of(awake(build("mlp", **options)).double(), "mlp").eval()
    x, t, rows = batch("mlp", dtype=torch.float64)[0], torch.tensor(0.5).double(), some(options).double()
    free, given = model.noise(x, t), model.noise(x, t, rows)
    strong = guided(ddim(2), 3.0).guidance(model)
    torch.testing.assert_close(strong.noise(x, t, rows), free + 3 * (given - free))
    samples = guided(ddim(2, denoise=False), 1.0).sample(model, 5, seed=0, condition=rows)
    assert samples.nfe == 2  # scale 1 is the prediction given the condition alone
    assert guided(ddim(2, denoise=False), 3.0).sample(model, 5, seed=0, condition=rows).nfe == 4
    torch.testing.assert_close(
        samples.x, ddim(2, denoise=False).sample(model, 5, seed=0, condition=rows).x, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("build_it", "words"),
    [
        (lambda: MLP((2,), condition_shape=(2, 3, 4)), r"condition_shape must be \(d,\) .*; flatten it"),
        (lambda: UNet(IMAGE, condition_shape=(0,)), "condition_shape must be an integer >= 1, got 0"),
        (
            lambda: build("dit", num_classes=2, condition_shape=(3,)),
            "condition_shape must be left out for a network with classes",
        ),
        (
            lambda: NetworkModel(MLP((2,), **VECTOR), VPSDE(), "noise", (2,), condition_shape=(4,)),
            r"condition_shape must be the network's own, \(3,\), got \(4,\); leave it out",
        ),
    ],
)
def test_conditions_that_cannot_be_get_a_sentence(build_it, words):
    with pytest.raises(ValueError, match=words):
        build_it()


def test_fit_asks_for_the_conditions_of_the_examples():
    state = TrainState(model_of(build("mlp", **VECTOR), "mlp"))
    with pytest.raises(ValueError, match=r"conditions_train with rows .*\(3,\), got none; give fit"):
        fit(state, torch.randn(20, 3), DenoisingLoss(), 1)
