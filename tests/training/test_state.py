import json
import os
import pickle
import warnings

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import (
    COMPARED_SECTIONS,
    FREE_FIELDS,
    checkpoint_paths,
    config_differences,
    export_checkpoint,
    latest_checkpoint,
    load_ema,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from sde_toolkit.training.state import Optimization, TrainState
from sde_toolkit.training.tensor_file import FORMAT_VERSION
from sde_toolkit.utils import files

CONFIG = {"seed": 0, "model": {"name": "mlp", "width": 4, "sizes": (1, 2)}, "training": {"num_steps": 3}}


def make_state(width=4, config=CONFIG, **options):
    model = NetworkModel(MLP((2,), width=width, depth=1), VPSDE(), "noise", (2,))
    return TrainState(model, Optimization(warmup_steps=2, learning_rate=0.1), config=config, **options)


def advance(state, num_steps, seed=0):
    """Updates with gradients from a fixed sequence."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        for parameter in state.model.network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.update()
    return state


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def snapshot(state):
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def test_the_average_includes_the_last_update_and_follows_its_rule():
    state = make_state()
    expected = {name: p.detach().clone() for name, p in state.model.network.named_parameters()}
    for step in range(5):
        advance(state, 1, seed=step)
        decay = (1 + step) / (10 + step)
        for name, p in state.model.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
    for name, p in state.ema.network.named_parameters():
        torch.testing.assert_close(p, expected[name])
        assert not p.requires_grad
    assert state.step == 5


def test_schedules():
    rule = Optimization(learning_rate=1.0, warmup_steps=4, ema_decay=0.9)
    assert [rule.learning_rate_at(n) for n in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [rule.ema_decay_at(n) for n in (0, 1, 1000)] == [0.1, 2 / 11, 0.9]
    assert Optimization(learning_rate=2.0, warmup_steps=0).learning_rate_at(0) == 2.0
    falling = Optimization(learning_rate=1.0, warmup_steps=0, decay_steps=4)
    assert [falling.learning_rate_at(n) for n in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.01, 0.01]
    state = advance(make_state(), 1)
    assert state.optimizer.param_groups[0]["lr"] == 0.05


def test_the_first_update_is_that_of_a_fresh_adamw():
    state, other = make_state(), make_state()
    plain = torch.optim.AdamW(
        other.model.network.parameters(), lr=0.05, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    advance(state, 1)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.model.network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    plain.step()
    assert_same(state.model.network.state_dict(), other.model.network.state_dict())


def test_the_average_keeps_buffers():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = TrainState(NetworkModel(network, VPSDE(), "noise", (2,)))
    network[1].running_mean.fill_(3.0)
    advance(state, 1)
    assert torch.equal(state.ema.network[1].running_mean, torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_restored_run_goes_on_bit_for_bit(tmp_path, num_steps):
    state = advance(make_state(), num_steps)
    state.data = {"mean": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    path = save_checkpoint(state, tmp_path, metrics={"loss": 0.5})
    other = advance(make_state(), 1, seed=9)
    other.updating = True
    checkpoint = read_checkpoint(path)
    restore(other, checkpoint)
    assert not other.updating
    assert_same(state.tensors(), other.tensors())
    assert state.step == other.step == num_steps
    for run in (state, other):
        advance(run, 2, seed=5)
    assert_same(state.tensors(), other.tensors())
    assert_same(checkpoint.part("data"), state.data)


def test_the_header_says_what_the_file_is(tmp_path):
    state = advance(make_state(), 3)
    path = save_checkpoint(state, tmp_path, metrics={"loss": 0.5})
    assert path == tmp_path / "checkpoints" / "step-00000003.safetensors"
    checkpoint = read_checkpoint(path)
    assert (checkpoint.kind, checkpoint.step, checkpoint.metrics) == ("training", 3, {"loss": 0.5})
    assert checkpoint.config == {**CONFIG, "model": {**CONFIG["model"], "sizes": [1, 2]}}
    assert checkpoint.run["optimization"]["learning_rate"] == 0.1
    assert checkpoint.libraries["torch"] == torch.__version__.split("+")[0] or "torch" in checkpoint.libraries
    with safetensors.safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["sde_toolkit"])
    assert document["format_version"] == FORMAT_VERSION


def test_memory_layouts_survive(tmp_path):
    network = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    state = advance(TrainState(NetworkModel(network, VPSDE(), "noise", (2, 3, 3))), 2)
    checkpoint = read_checkpoint(save_checkpoint(state, tmp_path))
    strides = {name: tensor.stride() for name, tensor in state.tensors().items()}
    before = snapshot(state)
    restore(state, checkpoint)
    assert_same(state.tensors(), before)
    assert {name: tensor.stride() for name, tensor in state.tensors().items()} == strides


def test_the_last_checkpoints_are_kept(tmp_path):
    state = make_state()
    for _ in range(5):
        save_checkpoint(advance(state, 1), tmp_path, keep=2)
    assert [path.name for path in checkpoint_paths(tmp_path)] == [
        "step-00000004.safetensors",
        "step-00000005.safetensors",
    ]
    _, descriptor = files._new_temporary(tmp_path / "checkpoints")
    os.close(descriptor)
    files._mine.clear()  # as if its writer had been another process of this number
    save_checkpoint(state, tmp_path, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005.safetensors"]


def test_pruning_never_removes_the_newest_write(tmp_path):
    state = advance(make_state(), 2)
    save_checkpoint(state, tmp_path)
    late = tmp_path / "checkpoints" / "step-00000009.safetensors"
    late.write_bytes(b"damaged")
    save_checkpoint(advance(state, 1), tmp_path, keep=1)
    names = [path.name for path in checkpoint_paths(tmp_path)]
    assert names == ["step-00000003.safetensors", "step-00000009.safetensors"]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    state = advance(make_state(), 1)
    path = save_checkpoint(state, tmp_path, keep=1)
    before = path.read_bytes()
    advance(state, 1)
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(files, "_new_temporary", lambda directory: (directory / "none", full))
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(state, tmp_path, keep=1)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before
    assert latest_checkpoint(tmp_path).step == 1


def test_latest_is_none_without_checkpoints(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_latest_goes_back_over_a_damaged_file(tmp_path):
    state = make_state()
    paths = [save_checkpoint(advance(state, 1), tmp_path) for _ in range(2)]
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match=r"going back to the checkpoint before step-00000002.*truncated"):
        assert latest_checkpoint(tmp_path).step == 1
    paths[0].write_bytes(b"")
    with (
        pytest.warns(RuntimeWarning, match="going back"),
        pytest.raises(ValueError, match=r"no checkpoint in .* can be read"),
    ):
        latest_checkpoint(tmp_path)


def test_export_holds_the_averaged_weights_alone(tmp_path):
    state = advance(make_state(), 3)
    state.data = {"mean": torch.zeros(2)}
    exported = tmp_path / "digits.safetensors"
    export_checkpoint(read_checkpoint(save_checkpoint(state, tmp_path)), exported)
    checkpoint = read_checkpoint(exported)
    assert checkpoint.kind == "inference"
    assert {name.split(".")[0] for name in checkpoint.tensors} == {"ema", "data"}
    network = MLP((2,), width=4, depth=1, seed=8)
    load_ema(network, checkpoint)
    assert_same(network.state_dict(), state.ema.network.state_dict())
    with pytest.raises(ValueError, match="must be of kind 'training' to resume, got 'inference'"):
        restore(make_state(), checkpoint)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    "write", [lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))]
)
def test_a_pickled_file_is_refused_and_never_run(tmp_path, write):
    target, path = tmp_path / "was-here", tmp_path / "step-00000001.safetensors"
    write({"model": Bomb(target)}, path)
    with pytest.raises(ValueError, match="must be a safetensors file, got a pickled one"):
        read_checkpoint(path)
    assert not target.exists()


def test_old_pickles_without_a_mark_are_refused_too(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps({"model": Bomb(tmp_path / "was-here")}, protocol=0))
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        read_checkpoint(path)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "of another kind"),
        ({"format": "pt"}, "of another kind"),
        ({"sde_toolkit": "{"}, "of another kind"),
        ({"sde_toolkit": "[]"}, "of another kind"),
        ({"sde_toolkit": '{"format_version": 1, "libraries": {}}'}, "of another kind"),
        ({"sde_toolkit": '{"format_version": 99, "libraries": {}}'}, "format version 1, got 99"),
    ],
)
def test_a_foreign_safetensors_file_is_refused(tmp_path, header, words):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, header)
    with pytest.raises(ValueError, match=words):
        read_checkpoint(path)


class WholeFile:
    """A checkpoint file, to be damaged again and again."""

    def __init__(self, path):
        self.path, self.data = path, path.read_bytes()


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    return WholeFile(save_checkpoint(advance(make_state(), 1), tmp_path_factory.mktemp("run")))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(whole_file, fraction):
    path, data = whole_file.path, whole_file.data
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(ValueError, match="checkpoint must be"):
        read_checkpoint(path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_with_a_sentence(whole_file, position, byte):
    path, data = whole_file.path, whole_file.data
    path.write_bytes(data[:position] + bytes([byte]) + data[position + 1 :])
    try:
        restore(make_state(), read_checkpoint(path))
    except ValueError as error:
        assert "must" in str(error)  # noqa: PT017


def drop(checkpoint, name):
    del checkpoint.tensors[name]


def reshape(checkpoint, name):
    checkpoint.tensors[name] = torch.zeros(7)


def widen(checkpoint, name):
    checkpoint.tensors[name] = checkpoint.tensors[name].double()


@pytest.mark.parametrize("spoil", [drop, reshape, widen])
@pytest.mark.parametrize("name", ["model.last.bias", "ema.last.bias", "optimizer.last.bias.exp_avg"])
def test_missing_and_foreign_tensors_are_refused_before_anything_changes(whole_file, spoil, name):
    path, data = whole_file.path, whole_file.data
    path.write_bytes(data)
    checkpoint, state = read_checkpoint(path), make_state()
    spoil(checkpoint, name)
    before = snapshot(state)
    with pytest.raises(ValueError, match=name):
        restore(state, checkpoint)
    assert_same(state.tensors(), before)


def test_a_checkpoint_of_another_config_is_refused_with_the_fields(tmp_path):
    checkpoint = read_checkpoint(save_checkpoint(make_state(), tmp_path))
    config = {**CONFIG, "model": {"name": "mlp", "width": 8, "sizes": (1, 2)}, "loss": {"weighting": "noise"}}
    words = r"model.width: 4 -> 8; loss.weighting: '\(absent\)' -> 'noise'"
    with pytest.raises(ValueError, match=words):
        restore(make_state(config=config), checkpoint)
    with pytest.raises(ValueError, match="seed: 0 -> 3"):
        restore(make_state(seed=3), checkpoint)
    state = make_state()
    state.optimization = Optimization(learning_rate=0.2, warmup_steps=2)
    with pytest.raises(ValueError, match=r"optimization.learning_rate: 0.1 -> 0.2"):
        restore(state, checkpoint)


def test_fields_that_may_change_between_runs():
    old = {"training": {"num_steps": 1, "batch_size": 2}, "sampling": {"sampler": "ddim"}}
    new = {
        "training": {"num_steps": 5, "batch_size": 2},
        "sampling": {"sampler": "heun"},
        "comparison": {"x": 1},
    }
    assert config_differences(old, new) == []
    new["training"]["batch_size"] = 4
    assert config_differences(old, new) == ["training.batch_size: 2 -> 4"]
    assert all(field.split(".")[0] in COMPARED_SECTIONS for field in FREE_FIELDS)


def test_a_state_in_the_middle_of_an_update_is_not_saved(tmp_path):
    state = make_state()
    state.updating = True
    with pytest.raises(ValueError, match="state must be between two updates"):
        save_checkpoint(state, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0"),
        ({"betas": (0.9, 1.0)}, r"betas and ema_decay must be in \[0, 1\)"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
    ],
)
def test_a_rule_out_of_range_gets_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        Optimization(**options)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep must be an integer >= 1, got 0"):
        save_checkpoint(make_state(), tmp_path, keep=0)
    with pytest.raises(TypeError, match="config must hold numbers"):
        make_state(config={"a": object()})
    with pytest.raises(ValueError, match="seed must be"):
        make_state(seed=-1)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.safetensors")


def test_reading_warns_of_nothing(tmp_path):
    path = save_checkpoint(make_state(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_checkpoint(path)
