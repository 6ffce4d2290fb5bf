import copy
import math
import os
import subprocess
import sys

import pytest
import torch

from sde_toolkit.networks.dit import DiT
from sde_toolkit.networks.embeddings import time_features
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.networks.ncsnpp import NCSNpp
from sde_toolkit.networks.unet import UNet
from sde_toolkit.networks.unet1d import UNet1D
from tests.networks.kinds import IMAGE, KINDS, awake, batch, build


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_an_untrained_network_returns_zeros_with_the_shape_of_the_state(kind):
    x, c = batch(kind)
    out = build(kind)(x, c)
    assert out.shape == x.shape
    assert torch.equal(out, torch.zeros_like(x))


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_untouched(kind):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (build(kind, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_influence_each_other(kind, dtype):
    network = awake(build(kind).to(dtype)).eval()
    x, c = batch(kind, dtype=dtype)
    rows = torch.cat([network(x[i : i + 1], c[i : i + 1]) for i in range(len(x))])
    out = network(x, c)
    assert out.dtype == dtype
    torch.testing.assert_close(out, rows, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_the_output_depends_on_the_time(kind):
    network = awake(build(kind)).eval()
    x, c = batch(kind)
    moved = (network(x, c) - network(x, c + 1)).flatten(1).abs().amax(1)
    assert bool((moved > 1e-4).all())


def test_every_parameter_gets_a_gradient(kind):
    network = awake(build(kind))
    network(*batch(kind)).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []


def test_a_copy_computes_the_same_bits(kind):
    network = awake(build(kind)).eval()
    x, c = batch(kind)
    assert torch.equal(copy.deepcopy(network)(x, c), network(x, c))


def test_the_default_unet_fits_the_shipped_checkpoint():
    assert sum(p.numel() for p in UNet(IMAGE).parameters()) <= 700_000


def test_ncsnpp_has_as_many_parameters_as_the_papers():
    """Counted from the structure published for CIFAR-10 (2011.13456, with a residual input pyramid)."""
    with torch.device("meta"):
        network = NCSNpp((3, 32, 32), (128, 256, 256, 256), 4, (1,), num_groups=32, dropout=0.1)
    width, levels, layers = 512, (128, 256, 256, 256), 4

    def conv(a, b, size=3):
        return (a * size**2 + 1) * b

    def block(a, b, resamples=False):
        skip = conv(a, b, 1) if a != b or resamples else 0
        return 2 * a + conv(a, b) + (width + 1) * b + 2 * b + conv(b, b) + skip

    def attention(a):
        return 2 * a + 4 * (a + 1) * a

    total = (256 + 1) * width + (width + 1) * width + conv(3, 128)
    kept, now, pyramid = [128], 128, 3
    for k, count in enumerate(levels):
        for _ in range(layers):
            total, now = total + block(now, count) + (k == 1) * attention(count), count
            kept.append(now)
        if k < 3:
            total, pyramid = total + block(now, now, True) + conv(pyramid, now), now
            kept.append(now)
    total += 2 * block(now, now) + attention(now)
    for k, count in reversed(list(enumerate(levels))):
        for _ in range(layers + 1):
            total, now = total + block(now + kept.pop(), count), count
        total += (k == 1) * attention(now) + (k > 0) * block(now, now, True)
    total += 2 * now + conv(now, 3)
    assert sum(p.numel() for p in network.parameters()) == total == 62_758_787


def test_dit_has_as_many_parameters_as_the_papers():
    """DiT-S/2 on latents has 33 million, 6,160 of them for the variance, which is not predicted here."""
    with torch.device("meta"):
        network = DiT((4, 32, 32), 2, 384, 12, 6, num_frequencies=128, num_classes=1000)
    assert round((sum(p.numel() for p in network.parameters()) + 6160) / 1e6) == 33


def test_a_unet_takes_other_images_attention_and_dropout():
    network = awake(UNet((3, 16, 8), channels=(8, 16, 16), attention_levels=(1, 2), dropout=0.5))
    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    c = torch.tensor([0.0, 1000.0])
    assert network(x, c).shape == x.shape
    assert not torch.equal(network(x, c), network(x, c))
    network.eval()
    assert torch.equal(network(x, c), network(x, c))


def test_patches_are_folded_into_channels_and_back():
    network = awake(UNet((2, 8, 12), channels=(16,), patch_size=2))
    assert network.unet.config.in_channels == 8
    assert network.unet.config.sample_size == (4, 6)
    x = torch.randn(3, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    assert network(x, torch.zeros(3)).shape == x.shape


def test_an_mlp_takes_any_event_shape():
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    assert awake(MLP((2, 3), width=8, depth=1))(x, torch.zeros(4)).shape == (4, 2, 3)


def test_time_features_are_the_published_ones():
    features = time_features(torch.tensor([3.0], dtype=torch.float64), 2)
    angles = torch.tensor([3.0, 0.03], dtype=torch.float64)
    torch.testing.assert_close(features[0], torch.cat([angles.cos(), angles.sin()]))


def test_a_smaller_angle_slows_the_time_down(kind):
    usual, slow = awake(build(kind)), awake(build(kind, max_angle=10.0))
    x, c = batch(kind)
    torch.testing.assert_close(slow(x, c), usual(x, 0.01 * c))
    assert not torch.allclose(slow(x, c), usual(x, c))


@pytest.mark.parametrize(
    ("build_it", "words"),
    [
        (lambda: MLP((2,), width=0), "width must be an integer >= 1, got 0"),
        (lambda: MLP((2,), depth=0), "depth must be"),
        (lambda: MLP((0,)), "event_shape must be"),
        (lambda: UNet((2,)), r"event_shape must be \(C, H, W\)"),
        (lambda: UNet((1, 9, 8)), "divisible by 2"),
        (lambda: UNet(IMAGE, channels=(12, 16)), "multiples of num_groups = 8"),
        (lambda: UNet(IMAGE, channels=()), "channels must be"),
        (lambda: UNet(IMAGE, attention_levels=(2,)), "attention_levels must be among 0 .. 1"),
        (lambda: UNet(IMAGE, channels=(16,), patch_size=3), "divisible by 3"),
        (lambda: UNet(IMAGE, patch_size=0), "patch_size must be"),
        (lambda: UNet(IMAGE, max_angle=0.0), "max_angle must be a finite positive number, got 0.0"),
        (lambda: MLP((2,), max_angle=float("inf")), "max_angle must be a finite positive number, got inf"),
        (lambda: UNet(IMAGE, dropout=1.0), "dropout must be in"),
        (lambda: UNet(IMAGE, layers_per_block=0), "layers_per_block must be"),
        (lambda: DiT((2,)), r"event_shape must be \(C, H, W\) for a DiT, got \(2,\); use an MLP for vectors"),
        (lambda: DiT((1, 8, 9)), r"divisible by patch_size 2, got \(8, 9\); use smaller patches or pad"),
        (
            lambda: DiT(IMAGE, width=20, num_heads=8),
            "width must be divisible by 4 and by num_heads = 8, got 20",
        ),
        (lambda: DiT(IMAGE, mlp_ratio=0.0), r"mlp_ratio must give 1 to 10\^9 hidden units"),
        (lambda: DiT(IMAGE, depth=2000), "depth must be an integer of at most 1024, got 2000"),
        (
            lambda: NCSNpp((1, 6, 8), channels=(8, 8, 8)),
            "height and width must be divisible by 4 for 3 levels, got",
        ),
        (lambda: NCSNpp(IMAGE, time_embedding="sine"), "time_embedding must be one of .*, got 'sine'"),
        (lambda: UNet1D(IMAGE), r"event_shape must be \(C, L\) for a UNet1D, .*use a UNet for images"),
        (
            lambda: UNet1D((1, 9)),
            "length must be divisible by 2 for 2 levels, got 9; use fewer levels or pad the",
        ),
        (lambda: UNet1D((1, 8), channels=(12, 16)), "multiples of num_groups = 8"),
        (lambda: MLP((2,))(torch.zeros(4, 3), torch.zeros(4)), r"x must have shape \(B, 2\), got \(4, 3\)"),
        (lambda: UNet(IMAGE)(torch.zeros(4, 8, 8), torch.zeros(4)), r"x must have shape \(B, 1, 8, 8\)"),
    ],
)
def test_bad_input_gets_a_sentence(build_it, words):
    with pytest.raises(ValueError, match=words):
        build_it()


def test_diffusers_is_imported_only_when_an_image_network_is_built(fresh, tmp_path):
    program = "import sys, sde_toolkit.networks as n; n.MLP((2,)); sys.exit('diffusers' in sys.modules)"
    assert fresh(tmp_path, program) == (0, "", "")


def with_classes(kind, num_classes=3):
    return build(kind, num_classes=num_classes)


def test_the_output_depends_on_the_class_and_no_label_is_the_null_class(kind):
    network = awake(with_classes(kind)).eval().requires_grad_(False)
    x, c = batch(kind, size=4)
    x, c = x[:1].expand_as(x), c[:1].expand_as(c)
    out = network(x, c, torch.arange(4))
    differences = [(out[i] - out[j]).abs().amax() for i in range(4) for j in range(i)]
    assert min(map(float, differences)) > 1e-4
    torch.testing.assert_close(network(x[:1], c[:1]), out[3:])
    torch.testing.assert_close(
        network(x, c, torch.tensor([2, 1, 0, 3], dtype=torch.uint8))[:3], out[[2, 1, 0]]
    )


def test_every_class_gets_a_gradient(kind):
    network = awake(with_classes(kind))
    x, c = batch(kind)
    network(x, c, torch.tensor([0, 1, 2, 3, 0])).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []


def test_classes_leave_networks_without_them_as_they_were(kind):
    plain, zero = build(kind).state_dict(), with_classes(kind, num_classes=0).state_dict()
    assert plain.keys() == zero.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)


def test_wrong_labels_get_a_sentence(kind):
    x, c = batch(kind)
    with pytest.raises(ValueError, match="build it with num_classes"):
        build(kind)(x, c, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), one per sample, got \(4,\)"):
        with_classes(kind)(x, c, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_classes must be"):
        with_classes(kind, num_classes=-1)


def test_fourier_features_let_the_network_see_small_differences():
    x = torch.linspace(-1, 1, 2 * 64).reshape(2, *IMAGE)
    network = awake(UNet(IMAGE, channels=(8, 16), fourier=(0, 3)))
    assert network.unet.conv_in.in_channels == IMAGE[0] * 5
    c = torch.tensor([0.0, 500.0])
    features = network._features(x, c)
    waves = [(math.pi * x).cos(), (math.pi * x).sin(), (8 * math.pi * x).cos(), (8 * math.pi * x).sin()]
    assert torch.allclose(features, torch.cat([x, *waves], 1), atol=1e-5)
    assert network(x, c).shape == x.shape
    plain = UNet(IMAGE, channels=(8, 16))
    assert torch.equal(plain._features(x, c), x)
    folded = awake(UNet((2, 8, 12), channels=(16,), patch_size=2, fourier=(1,)))
    assert folded(torch.ones(1, 2, 8, 12), torch.zeros(1)).shape == (1, 2, 8, 12)


def test_fourier_features_keep_what_noise_leaves_of_a_wave():
    network = UNet(IMAGE, channels=(8, 16), fourier=(1,), noise_level=lambda c: c / 1000)
    generator = torch.Generator().manual_seed(0)
    x, level = torch.full(IMAGE, 0.3), 0.2
    noisy = x + level * torch.randn(20_000, *IMAGE, generator=generator)
    wave = (2 * math.pi * noisy).cos().mean()
    features = network._features(x[None], torch.tensor([1000 * level]))
    assert float(features[0, 1, 0, 0]) == pytest.approx(float(wave), abs=2e-3)


def without_diffusers(code, tmp_path, *paths):
    """Run ``code`` in a new process with these folders in front of the path; return what it printed."""
    path = os.pathsep.join([*map(str, paths), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_a_unet_without_diffusers_says_what_to_install_and_the_rest_works(tmp_path):
    code = """
import sys
sys.modules["diffusers"] = None
import torch
import solvers
from sde_toolkit import MLP, NetworkModel, UNet, VPSDE, cli, ddim
model = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,))
assert ddim(3).sample(model, 4).x.shape == (4, 2)
try:
    UNet((1, 8, 8), (8, 16))
except ImportError as error:
    print(error)
assert cli.main(["sample", "--config=digits", "--num_samples=1"]) == 2
"""
    shown = without_diffusers(code, tmp_path)
    assert shown.count("\n") == 1
    assert "a U-Net is built from diffusers, which is not installed" in shown
    assert "pip install 'sde-toolkit[images]'" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        'raise RuntimeError("operator torchvision::nms does not exist")',
        pytest.param('raise AttributeError("no attribute torchvision::nms")', marks=pytest.mark.slow),
        pytest.param('raise ImportError("undefined symbol: torchvision::nms")', marks=pytest.mark.slow),
    ],
    ids=["RuntimeError", "AttributeError", "ImportError"],
)
def test_a_broken_torchvision_is_told_in_a_sentence(tmp_path, broken):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    (tmp_path / "torchvision-0.9.dist-info").mkdir()
    (tmp_path / "torchvision-0.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.9\n"
    )
    code = """
from sde_toolkit import UNet
try:
    UNet((1, 8, 8), (8, 16))
except ImportError as error:
    print(error)
"""
    shown = without_diffusers(code, tmp_path, tmp_path)
    assert shown.count("\n") == 1
    assert "fails to import" in shown
    assert "torchvision::nms" in shown
    assert "pip uninstall torchvision" in shown
