import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.data.toy import digits
from sde_toolkit.metrics import features
from sde_toolkit.metrics.features import RECIPE, Recipe, cache_dir, classifier, digit_features, train

SHORT = Recipe(num_steps=8)


@pytest.fixture(scope="module")
def trained():
    """The full training, once: network, seconds of processor time."""
    network, start = classifier(RECIPE), time.process_time()
    train(network, digits(), RECIPE)
    return network, time.process_time() - start


@pytest.fixture
def cached(trained, tmp_path, monkeypatch):
    """A cache folder that holds the trained weights; returns the file."""
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    path = tmp_path / f"digit-features-{RECIPE.digest()}.safetensors"
    features._keep(path, trained[0])
    digit_features.cache_clear()
    yield path
    digit_features.cache_clear()


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.slow
def test_the_classifier_is_accurate_and_quick(trained, cached):
    extractor, dataset = digit_features(), digits()
    accuracy = (extractor.predict(dataset.scaled_test()) == dataset.labels_test).double().mean()
    assert float(accuracy) >= 0.97
    assert trained[1] < 30


def test_features_are_finite_smooth_and_blind_to_dequantisation(cached):
    extractor, dataset = digit_features(), digits()
    x = dataset.scaled_test(seed=1)
    phi = extractor(x)
    assert phi.shape == (297, RECIPE.num_features)
    assert phi.dtype == torch.float32
    assert not phi.requires_grad
    assert torch.equal(phi, extractor(dataset.scaled_test(seed=2)))
    torch.testing.assert_close(extractor.logits(x), extractor.head(phi))
    assert torch.equal(extractor.predict(x), extractor.logits(x).argmax(1))
    # Values outside the box count as the nearest level; float64 input is the same input.
    assert torch.equal(extractor(torch.full((1, 1, 8, 8), 9.0)), extractor(torch.ones(1, 1, 8, 8).double()))
    # Every feature varies over the data, so that covariances have full rank.
    assert torch.linalg.matrix_rank(torch.cov(phi.double().T)) == RECIPE.num_features


def test_large_batches_are_split_without_trace(cached):
    x = digits().scaled_train()
    assert torch.allclose(digit_features()(x)[1100:], digit_features()(x[1100:]), atol=1e-6)


def test_training_is_deterministic_whatever_the_number_of_threads():
    networks, state, threads = [], torch.get_rng_state(), torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            networks.append(classifier(SHORT))
            train(networks[-1], digits(), SHORT)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert same_weights(*networks)
    assert not same_weights(networks[0], classifier(SHORT))
    assert torch.equal(state, torch.get_rng_state())


def test_weights_come_from_the_process_then_from_the_disk(cached, trained):
    first = digit_features()
    assert digit_features() is first
    digit_features.cache_clear()
    start = time.process_time()
    again = digit_features()
    assert time.process_time() - start < 2
    assert again is not first
    assert same_weights(first.body, again.body)
    assert same_weights(again.head, trained[0][-1])


def test_a_missing_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path / "new" / "folder"))
    digit_features.cache_clear()
    first = digit_features(SHORT)
    digit_features.cache_clear()
    (path,) = (tmp_path / "new" / "folder").iterdir()
    network = classifier(SHORT)
    assert features._restore(path, network)
    assert same_weights(first.body, network[:-1])


def damage(kind, path):
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not safetensors":
        path.write_bytes(b"\x80\x04pickle" * 100)
    elif kind == "one flipped bit":
        data[-5] ^= 1
        path.write_bytes(data)
    elif kind == "no digest":
        save_file(load_file(path), path)
    elif kind == "another network":
        path.unlink()
        features._keep(path, torch.nn.Linear(2, 3))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()


DAMAGES = [
    "truncated",
    "empty",
    "not safetensors",
    "one flipped bit",
    "no digest",
    "another network",
    "a folder",
]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_refused_and_leaves_the_network_alone(cached, kind):
    damage(kind, cached)
    network = classifier(RECIPE)
    assert not features._restore(cached, network)
    assert same_weights(network, classifier(RECIPE))


def test_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    digit_features.cache_clear()
    first = digit_features(SHORT)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damage("truncated", path)
    digit_features.cache_clear()
    assert same_weights(digit_features(SHORT).body, first.body)
    digit_features.cache_clear()
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path / "file"))
    digit_features.cache_clear()
    assert digit_features(SHORT)(torch.zeros(2, 1, 8, 8)).shape == (2, 48)
    digit_features.cache_clear()


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SDE_TOOLKIT_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "sde-toolkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "home" / ".cache" / "sde-toolkit"


def test_recipes_have_their_own_files():
    assert RECIPE.digest() == Recipe().digest() != SHORT.digest()


@pytest.mark.parametrize("shape", [(), (1, 8, 8), (3, 8, 8), (2, 3, 8, 8), (0, 1, 8, 8), (2, 1, 28, 28)])
def test_other_shapes_are_refused(cached, shape):
    with pytest.raises(ValueError, match=r"x must have shape \(B, 1, 8, 8\) with B >= 1, got"):
        digit_features()(torch.zeros(shape))


def test_non_finite_images_and_unlabelled_data_are_refused(cached):
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN or infinite values"):
        digit_features()(x)
    v = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match="dataset must have labels to train a classifier, got 'bare' without"
    ):
        train(classifier(SHORT), Dataset("bare", v, v, Scaling.grey(17)), SHORT)
