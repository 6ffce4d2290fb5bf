import contextlib
import math
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.toy import digits, gaussian_mixture
from sde_toolkit.models.exact import ExactModel, GaussianMixture
from sde_toolkit.models.moments import class_moments_from_tensors
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.networks.unet import UNet
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import (
    checkpoint_paths,
    latest_checkpoint,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from sde_toolkit.training.conditioning import class_moments
from sde_toolkit.training.loop import NonFiniteError, UpdateInfo, fit, train_step
from sde_toolkit.training.objective import ChainLoss, DenoisingLoss
from sde_toolkit.training.state import Optimization, TrainState
from sde_toolkit.utils import files
from sde_toolkit.utils.files import WorkdirLock

MEANS, STD = [[-1.0, 0.0], [1.0, 0.5]], 0.2
ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.training.kill_training"]


@pytest.fixture(scope="module")
def dataset():
    return gaussian_mixture(MEANS, std=STD, num_train=200, num_test=10)


def make_state(network=None, seed=0, event_shape=(2,), **options):
    network = network or MLP((2,), width=8, depth=1)
    model = NetworkModel(network, VPSDE(), "velocity", event_shape)
    return TrainState(model, Optimization(**{"warmup_steps": 3, **options}), seed=seed)


class DropoutMLP(nn.Module):
    """A network that draws in its forward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.dropout = MLP((2,), width=8, depth=1), nn.Dropout(0.5)

    def forward(self, x, c):
        return self.body(self.dropout(x), c)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("kind", ["mlp", "dropout", "unet"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, dataset, kind):
    if kind == "unet":
        dataset = digits()

    def make():
        if kind == "unet":
            return make_state(UNet((1, 8, 8), channels=(8, 16)), event_shape=(1, 8, 8))
        return make_state(DropoutMLP() if kind == "dropout" else None)

    whole, parts = make(), make()
    parts.model.network.load_state_dict(whole.model.network.state_dict())
    parts.ema.network.load_state_dict(whole.model.network.state_dict())
    fit(whole, dataset, DenoisingLoss(), 10, batch_size=8)
    fit(parts, dataset, DenoisingLoss(), 5, batch_size=8)
    checkpoint = read_checkpoint(save_checkpoint(parts, tmp_path))
    torch.manual_seed(123)  # whatever the new process did with the global generator
    resumed = make()
    restore(resumed, checkpoint)
    fit(resumed, dataset, DenoisingLoss(), 10, batch_size=8)
    assert resumed.step == 10
    assert_same(whole.tensors(), resumed.tensors())


def test_the_global_generator_is_neither_used_nor_moved(dataset):
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = torch.get_rng_state()
        state = make_state()
        fit(state, dataset, DenoisingLoss(), 3, batch_size=8)
        assert torch.equal(torch.get_rng_state(), expected)
        states.append(state)
    assert_same(states[0].tensors(), states[1].tensors())


def test_the_seed_of_the_run_matters(dataset):
    states = [make_state(seed=seed) for seed in (0, 1)]
    for state in states:
        fit(state, dataset, DenoisingLoss(), 2, batch_size=8)
    assert not torch.equal(*(state.model.network.last.weight for state in states))


@pytest.mark.slow
def test_training_reaches_the_loss_of_the_exact_score(dataset):
    exact = ExactModel(GaussianMixture([0.5, 0.5], MEANS, [STD**2] * 2), VPSDE(), dtype=torch.float32)
    big = gaussian_mixture(MEANS, std=STD, num_train=8192, num_test=4000)
    state = TrainState(NetworkModel(MLP((2,), width=32, depth=2), VPSDE(), "noise", (2,), big.data_std))
    fit(state, big, DenoisingLoss(t_min=1e-3), 600, batch_size=128)

    def held_out(model):
        with torch.no_grad():
            return float(DenoisingLoss(t_min=1e-3)(model, big.test, torch.Generator().manual_seed(0)).mean())

    best, reached = held_out(exact), held_out(state.ema)
    assert best < reached < 1.15 * best
    assert reached < held_out(state.model) + 0.05 * best


def test_the_discrete_loss_trains_too(dataset):
    state, losses = make_state(learning_rate=3e-3), []
    loss = ChainLoss(VPSDE().discretize(50))
    fit(state, dataset, loss, 150, batch_size=64, on_step=lambda info: losses.append(info.loss))
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def test_progress_goes_through_the_callback(dataset, capsys):
    infos = []
    state = make_state(learning_rate=0.3)
    fit(state, dataset, DenoisingLoss(), 4, batch_size=8, on_step=infos.append)
    assert [info.step for info in infos] == [1, 2, 3, 4]
    assert [info.learning_rate for info in infos] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert all(info.seconds > 0 and info.grad_norm > 0 and info.loss > 0 for info in infos)
    assert UpdateInfo(1, 0.5, 1.0, 0.1, batch_size=8, seconds=0.5).images_per_second == 16
    assert capsys.readouterr().out == ""


def test_the_gradient_is_clipped(dataset):
    state = make_state(max_grad_norm=1e-3)
    info = train_step(state, dataset.batch(0, 8, 0), DenoisingLoss())
    assert info.grad_norm > 1e-3
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in state.model.network.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


class Overflow(nn.Module):
    """A loss that is scaled by a number from some step on."""

    def __init__(self, factor, calls=2):
        super().__init__()
        self.factor, self.calls = factor, calls

    def forward(self, model, x0, generator):
        self.calls -= 1
        values = DenoisingLoss()(model, x0, generator)
        if self.calls >= 0:
            return values
        if math.isfinite(self.factor):  # a finite loss whose gradient is not: sqrt at 0
            return values + (0 * values).sqrt()
        return values * self.factor


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (math.nan, "the loss must be finite, got nan at step 3"),
        (math.inf, "the loss must be finite, got inf at step 3"),
        (0.0, "the norm of the gradient must be finite, got nan at step 3"),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(tmp_path, dataset, factor, words):
    state, expected = make_state(), make_state()
    fit(expected, dataset, DenoisingLoss(), 2, batch_size=8)
    with WorkdirLock(tmp_path) as workdir, pytest.raises(NonFiniteError, match=words):
        fit(state, dataset, Overflow(factor), 9, batch_size=8, workdir=workdir, checkpoint_every=1)
    assert state.step == 2
    assert_same(state.tensors(), expected.tensors())
    restored = make_state()
    restore(restored, latest_checkpoint(tmp_path))
    assert_same(restored.tensors(), expected.tensors())
    assert issubclass(NonFiniteError, FloatingPointError)


def test_checkpoints_come_in_time_and_at_the_end(tmp_path, dataset):
    state, seen = make_state(), []

    def on_step(info):
        seen.append([int(path.stem.split("-")[1]) for path in checkpoint_paths(tmp_path)])

    with WorkdirLock(tmp_path) as workdir:
        loss = DenoisingLoss("noise")
        fit(state, dataset, loss, 5, 8, workdir, checkpoint_every=2, keep=2, on_step=on_step)
        assert seen == [[], [2], [2], [2, 4], [4, 5]]
        checkpoint = latest_checkpoint(tmp_path)
        assert 0 < checkpoint.metrics["loss"] < 10
        torch.testing.assert_close(checkpoint.part("data")["mean"], dataset.mean)
        torch.testing.assert_close(checkpoint.part("data")["std"].square(), dataset.variance)
        fit(state, dataset, DenoisingLoss(), 5, 8, workdir, on_step=on_step)
    assert len(seen) == 5


def test_an_interrupt_saves_and_goes_on_upwards(tmp_path, dataset):
    def on_step(info):
        if info.step == 3:
            raise KeyboardInterrupt

    state = make_state()
    with WorkdirLock(tmp_path) as workdir, pytest.raises(KeyboardInterrupt):
        fit(state, dataset, DenoisingLoss(), 10, batch_size=8, workdir=workdir, on_step=on_step)
    resumed, whole = make_state(), make_state()
    restore(resumed, latest_checkpoint(tmp_path))
    assert resumed.step == 3
    for run in (resumed, whole):
        fit(run, dataset, DenoisingLoss(), 6, batch_size=8)
    assert_same(resumed.tensors(), whole.tensors())


class InterruptedAdamW(torch.optim.AdamW):
    """Interrupted by the user while the weights are being written."""

    def step(self, closure=None):
        with contextlib.suppress(StopIteration):
            super().step(closure)
        raise KeyboardInterrupt


def test_an_interrupt_in_the_middle_of_an_update_saves_nothing_torn(tmp_path, dataset):
    state = make_state()
    with WorkdirLock(tmp_path) as workdir:
        fit(state, dataset, DenoisingLoss(), 2, batch_size=8, workdir=workdir)
        state.optimizer = InterruptedAdamW(state.model.network.parameters())
        with pytest.raises(KeyboardInterrupt):
            fit(state, dataset, DenoisingLoss(), 9, batch_size=8, workdir=workdir)
    assert state.updating
    assert latest_checkpoint(tmp_path).step == 2


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, dataset, monkeypatch):
    state = make_state()

    def fill(info):
        if info.step == 2:
            full = os.open("/dev/full", os.O_WRONLY)
            monkeypatch.setattr(files, "_new_temporary", lambda directory: (directory / "none", full))

    with WorkdirLock(tmp_path) as workdir, pytest.raises(OSError, match="No space left on device"):
        fit(state, dataset, DenoisingLoss(), 9, 8, workdir, checkpoint_every=2, on_step=fill)
    assert latest_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"keep": 0}, "keep must be"),
    ],
)
def test_counts_out_of_range_get_a_sentence(dataset, options, words):
    with pytest.raises(ValueError, match=words):
        fit(make_state(), dataset, DenoisingLoss(), **{"num_steps": 2, **options})


def test_a_foreign_data_set_or_an_open_lock_gets_a_sentence(tmp_path, dataset):
    other = Dataset("other", torch.randn(5, 3), torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"model's event shape \(2,\), got \(3,\)"):
        fit(make_state(), other, DenoisingLoss(), 1)
    with pytest.raises(ValueError, match="workdir must be locked by this run"):
        fit(make_state(), dataset, DenoisingLoss(), 1, workdir=WorkdirLock(tmp_path))


def run_script(workdir, num_steps, checkpoint_every, kill=None):
    """Run the script to its end, or kill it (``kill`` = updates, seconds); return where it began."""
    command = [*SCRIPT, str(workdir), str(num_steps), str(checkpoint_every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        begin = int(process.stdout.readline().split()[1])
        if kill is None:
            process.stdout.read()
            assert process.wait() == 0
            return begin
        for line in process.stdout:
            if int(line) >= begin + kill[0]:
                break
        time.sleep(kill[1])
        process.kill()
    return begin


def kill_and_compare(tmp_path, num_steps, checkpoint_every, kills):
    run_script(tmp_path / "whole", num_steps, checkpoint_every)
    begins = [run_script(tmp_path / "killed", num_steps, checkpoint_every, kill) for kill in kills]
    for path in checkpoint_paths(tmp_path / "killed"):
        read_checkpoint(path)
    begins.append(run_script(tmp_path / "killed", num_steps, checkpoint_every))
    whole, killed = (latest_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert whole.step == killed.step == num_steps
    assert_same(whole.tensors, killed.tensors)
    return begins


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    begins = kill_and_compare(tmp_path, num_steps=120, checkpoint_every=7, kills=[(25, 0.003)])
    assert begins[0] == 0
    assert 21 <= begins[1] < 120


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_many_times_at_random_ends_with_the_same_bits(tmp_path, seed):
    draw = random.Random(seed)
    kills = [(draw.randrange(1, 40), draw.uniform(0.0, 0.02)) for _ in range(5)]
    # A checkpoint at every step, so that most kills fall into the writing of one.
    kill_and_compare(tmp_path, num_steps=300, checkpoint_every=1, kills=kills)


@pytest.mark.slow
def test_reading_beside_a_writer_never_sees_a_broken_file(tmp_path):
    """The latest checkpoint can be read at any moment of a run that writes one at every step."""
    steps = set()
    with subprocess.Popen(
        [*SCRIPT, str(tmp_path), "150", "1"], stdout=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        while process.poll() is None:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                checkpoint = latest_checkpoint(tmp_path)
            if checkpoint is not None:
                steps.add(checkpoint.step)
                assert all(bool(value.isfinite().all()) for value in checkpoint.tensors.values())
    assert len(steps) > 3
    assert max(steps) <= 150


LABELLED = {"means": [[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], "std": 0.3, "num_train": 600, "num_test": 30}


def class_state(num_classes=3, **options):
    return make_state(MLP((2,), width=16, depth=1, num_classes=num_classes), **options)


def test_a_resumed_run_with_classes_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    data = gaussian_mixture(**LABELLED)
    whole, parts, resumed = class_state(), class_state(), class_state()
    fit(whole, data, DenoisingLoss(), 10, batch_size=8)
    fit(parts, data, DenoisingLoss(), 5, batch_size=8)
    restore(resumed, read_checkpoint(save_checkpoint(parts, tmp_path)))
    fit(resumed, data, DenoisingLoss(), 10, batch_size=8)
    assert_same(whole.tensors(), resumed.tensors())


def test_the_share_of_dropped_labels_is_the_one_asked_for():
    seen = []

    def loss(model, x0, generator, condition):
        seen.append(condition)
        return DenoisingLoss()(model, x0, generator, condition)

    data = gaussian_mixture(**LABELLED)
    for share in (0.0, 0.25, 1.0):
        seen.clear()
        fit(class_state(), data, loss, 40, batch_size=50, label_dropout=share)
        labels = torch.cat(seen)
        expected = torch.cat([data.batch_labels(step, 50, 0) for step in range(40)])
        dropped = labels == 3
        assert torch.equal(labels[~dropped], expected[~dropped])
        spread = 5 * math.sqrt(share * (1 - share) / len(labels))
        assert abs(float(dropped.double().mean()) - share) <= spread


@pytest.mark.slow
def test_every_class_and_all_of_them_are_learned():
    data, state = gaussian_mixture(**LABELLED | {"num_train": 8192, "num_test": 3000}), class_state()
    network = MLP((2,), width=32, depth=2, num_classes=3)
    state = TrainState(NetworkModel(network, VPSDE(), "noise", (2,), data.data_std))
    fit(state, data, DenoisingLoss(t_min=1e-3), 800, batch_size=128, label_dropout=0.25)
    exact = ExactModel(GaussianMixture([1 / 3] * 3, LABELLED["means"], [0.09] * 3), VPSDE(), torch.float32)

    def held_out(model, x):
        with torch.no_grad():
            return float(DenoisingLoss(t_min=1e-3)(model, x, torch.Generator().manual_seed(0)).mean())

    for label in range(3):
        mine = data.test[data.labels_test == label]
        best = held_out(exact.given(label), mine)
        assert held_out(state.ema.given(label), mine) < 1.25 * best
        assert held_out(state.ema.given((label + 1) % 3), mine) > 1.5 * best
    best = held_out(exact, data.test)
    assert held_out(state.ema, data.test) < 1.25 * best


def test_the_moments_of_every_class_are_kept(tmp_path):
    data = gaussian_mixture(**LABELLED)
    state = class_state()
    fit(state, data, DenoisingLoss(), 1, batch_size=8)
    checkpoint = read_checkpoint(save_checkpoint(state, tmp_path))
    found = class_moments_from_tensors(checkpoint.part("data"))
    assert found is not None
    for label, moments in enumerate(found):
        mine = data.train[data.labels_train == label].double()
        torch.testing.assert_close(moments.mean, mine.mean(0))
        torch.testing.assert_close(moments.covariance, mine.T.cov(correction=0))
    fit(plain := make_state(), data, DenoisingLoss(), 1, batch_size=8)
    assert class_moments_from_tensors(plain.data) is None
    assert class_moments(digits(), 10)[3].kind == "full"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_dropout": 1.5}, r"label_dropout must be in \[0, 1\], got 1.5"),
        ({"num_classes": 2}, r"classes 0 .. 1, got 0 .. 2"),
        ({"num_classes": 4}, "got none of class 3"),
    ],
)
def test_classes_that_do_not_fit_get_a_sentence(options, words):
    data, num_classes = gaussian_mixture(**LABELLED), options.pop("num_classes", 3)
    with pytest.raises(ValueError, match=words):
        fit(class_state(num_classes), data, DenoisingLoss(), 1, **options)


def test_a_network_with_classes_needs_labels():
    data = Dataset("unlabelled", torch.randn(9, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="got none"):
        fit(class_state(), data, DenoisingLoss(), 1)
