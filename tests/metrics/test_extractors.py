"""Features by name, path, module and function."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from sde_toolkit.metrics import (
    FrechetDistance,
    InceptionFeatures,
    KernelInceptionDistance,
    OnFeatures,
    bootstrap,
    digit_features,
    feature_extractor,
)

WITHOUT = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed"
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_function_a_module_a_path_and_a_file_give_the_same(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import torch\nlayer = torch.tanh\n\nclass Layer(torch.nn.Tanh):\n    pass\n")
    x = normal(300, 2, 3)
    for features in (torch.tanh, nn.Tanh(), "torch:tanh", "torch.nn:Tanh", f"{path}:layer", f"{path}:Layer"):
        found = feature_extractor(features)(x)
        torch.testing.assert_close(found.double(), x.tanh().flatten(1), rtol=1e-6, atol=1e-6)


def test_modules_run_in_their_own_type_in_evaluation_mode():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(0.5))
    found = feature_extractor(network)(normal(5, 2, 3))
    assert found.dtype == torch.float32
    assert found.shape == (5, 4)
    assert not found.requires_grad
    assert not network.training


def test_digits_by_name():
    assert feature_extractor("digits") is digit_features()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("nothing", "features must be digits, inception:WEIGHTS.pth, package.module:name, file.py:name"),
        ("no_such_module:f", "module 'no_such_module' cannot be imported"),
        ("torch:no_such_name", "must name a function or a torch module, found None"),
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("inception", "features 'inception' must name the file of weights"),
        (
            "inception:nowhere.pth",
            "weights must be the file of Inception's weights, there is none",
        ),
    ],
)
def test_what_is_not_there_is_named(features, message):
    with pytest.raises(ValueError, match=message):
        feature_extractor(features)


def test_a_file_that_fails_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"broken\.py cannot be run: ZeroDivisionError"):
        feature_extractor(f"{path}:f")


def test_features_without_a_row_for_each_sample_are_refused():
    with pytest.raises(ValueError, match=r"features must have shape \(5, F\) for 5 samples, got \(2,\)"):
        feature_extractor(lambda x: x.mean(0))(normal(5, 2))


@WITHOUT
def test_inception_without_its_package_says_what_to_install(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"torch-fidelity, which is not installed; run pip install"):
        feature_extractor(f"inception:{path}")
    with pytest.raises(ValueError, match=r"value_range must be \(black, white\)"):
        InceptionFeatures(path, (1.0, 0.0))


def test_images_become_256_levels_of_three_channels():
    features = InceptionFeatures.__new__(InceptionFeatures)
    features.low, features.high = -1.0, 1.0
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0]).reshape(1, 1, 1, 5)
    levels = features.levels(x)
    assert levels.shape == (1, 3, 1, 5)
    assert levels.dtype == torch.uint8
    assert levels[0, 2, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("n", "m"), [(12, 12), (9, 14)])
def test_kid_is_the_double_loop(n, m):
    x, y = normal(n, 3), normal(m, 3, seed=1) + 0.5

    def mean(a, b, same):
        pairs = [(u, v) for i, u in enumerate(a) for j, v in enumerate(b) if not same or i != j]
        return math.fsum((float(u @ v) / 3 + 1) ** 3 for u, v in pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert KernelInceptionDistance()(x, y) == pytest.approx(expected, rel=1e-10)
    assert KernelInceptionDistance()(x.flip(0), y) == pytest.approx(expected, rel=1e-10)


def test_kid_of_degree_one_is_unbiased_for_the_squared_distance_of_means():
    """k = x.y / F + 1: the square of the difference of means over F, less its noise."""
    x, y = normal(40, 2) + 1, normal(30, 2, seed=1)
    gap = (x.mean(0) - y.mean(0)).square().sum()
    noise = x.var(0).sum() / 40 + y.var(0).sum() / 30
    assert KernelInceptionDistance(1)(x, y) == pytest.approx(float(gap - noise) / 2, rel=1e-10)


def test_distances_on_digit_features():
    from sde_toolkit.data import digits

    x = digits().scaled_train()
    features = feature_extractor("digits")
    for distance in (FrechetDistance(), KernelInceptionDistance()):
        same = bootstrap(OnFeatures(features, distance), x[:300], x[300:600])
        other = bootstrap(OnFeatures(features, distance), x[:300].flip(-1), x[300:600])
        assert other.value > same.value + 5 * other.standard_error
        assert OnFeatures(features, distance).facts == distance.facts
