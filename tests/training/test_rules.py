"""Rules that watch a run: held-out losses, the best average, early stopping, spikes, suspects."""

import csv
import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sde_toolkit.data import batch_indices
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import latest_checkpoint, restore
from sde_toolkit.training.loop import fit
from sde_toolkit.training.model_file import load_model
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import NonFiniteError, Optimization, TrainState
from sde_toolkit.training.watching.held_out import loss_by_level
from sde_toolkit.training.watching.rules import Evaluation, Spikes, together


@pytest.fixture(scope="module")
def dataset():
    return gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=100, num_test=40)


def make_state(dataset, **options):
    model = NetworkModel(MLP((2,), width=8, depth=1, seed=4), VPSDE(), "velocity", (2,), dataset.data_std)
    return TrainState(model, Optimization(warmup_steps=5, **options), seed=4)


def trained(dataset, num_steps, state=None, workdir=None, every=3, rules=(), **options):
    state = make_state(dataset) if state is None else state
    rule = Evaluation(state, dataset, DenoisingLoss(), every, workdir=workdir, num_bins=2, **options)
    fit(state, dataset, DenoisingLoss(), num_steps, 16, workdir, 4, on_update=together(rule, *rules))
    return state, rule


def rows(workdir):
    with open(workdir / "held_out.csv", newline="") as file:
        return list(csv.DictReader(file))


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, c):
        return self.value + torch.zeros_like(x)


def test_the_error_by_level_is_the_closed_form():
    """Of a constant c: 1 + c^2 at every level.  The bins share out the log-SNRs from T to t_min."""
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    sde = VPSDE()
    found = loss_by_level(NetworkModel(Constant(0.5), sde, "noise", (2,)), Dataset("x", x, x), 4, 1e-3)
    ends = [2 * float(sde.lam(torch.tensor(t, dtype=torch.float64))) for t in (sde.T, 1e-3)]
    assert found[0].low == pytest.approx(ends[0])
    assert found[-1].high == pytest.approx(ends[1])
    assert all(a.high == pytest.approx(b.low) for a, b in pairwise(found))
    for level in found:
        assert abs(level.mean - 1.25) < 4 * level.standard_error < 0.3


def test_the_score_of_a_gaussian_has_its_known_error_at_every_level():
    """Of N(0, I) under VP, z_hat = sigma x has the error alpha^2 = 1 / (1 + exp(-log_snr))."""
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = NetworkModel(lambda x, c: -x, VPSDE(), "score", (2,), dtype=torch.float64)
    for level in loss_by_level(model, Dataset("x", x, x), 5, 1e-3):
        between = torch.linspace(level.low, level.high, 2001, dtype=torch.float64).sigmoid().mean()
        assert abs(level.mean - float(between)) < 4.5 * level.standard_error


def test_watching_changes_nothing_of_the_run(dataset, tmp_path):
    state, _ = trained(dataset, 12, workdir=tmp_path, keep_best=True, patience=50)
    plain = make_state(dataset)
    fit(plain, dataset, DenoisingLoss(), 12, 16)
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, state.tensors()[name]), name


def test_losses_go_to_a_file_and_a_tracker(dataset, tmp_path):
    told = []
    trained(dataset, 10, workdir=tmp_path, tracker=lambda step, values: told.append((step, dict(values))))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["3", "6", "9"]
    assert [step for step, _ in told] == [3, 6, 9]
    for row, (_, values) in zip(found, told, strict=True):
        assert set(values) == {f"held_out/{name}" for name in row if name != "step"}
        for name, value in row.items():
            if name != "step":
                assert float(value) == pytest.approx(values[f"held_out/{name}"], rel=1e-5)
    assert sum(name.startswith("log_snr_") for name in found[0]) == 2


def test_the_best_average_is_kept(dataset, tmp_path):
    """At a rate at which the loss jumps: the best is neither the first nor the last."""
    state = make_state(dataset, learning_rate=1.0, ema_profile="constant", ema_decay=0.0)
    trained(dataset, 30, state, tmp_path, keep_best=True)
    found = rows(tmp_path)
    losses = {int(row["step"]): float(row["loss"]) for row in found}
    best = min(losses, key=losses.get)
    assert 3 < best < 30
    (path,) = (tmp_path / "best" / "checkpoints").iterdir()
    assert path.name == f"step-{best:08d}.safetensors"
    assert state.notes["held_out"]["step"] == best
    model = load_model(path)
    again = make_state(dataset, learning_rate=1.0, ema_profile="constant", ema_decay=0.0)
    fit(again, dataset, DenoisingLoss(), best, 16)
    for name, p in again.ema.network.named_parameters():
        assert torch.equal(p, model.network.get_parameter(name))
    assert model.moments is not None


def test_a_run_without_gain_ends_with_a_checkpoint(dataset, tmp_path):
    """At the rate of nothing the held-out loss stays what it is."""
    state = make_state(dataset, learning_rate=1e-30)
    _, rule = trained(dataset, 90, state, tmp_path, every=5, patience=3)
    assert state.step == 20
    assert rule.finished
    assert latest_checkpoint(tmp_path).step == 20
    other = make_state(dataset, learning_rate=1e-30)
    restore(other, latest_checkpoint(tmp_path))
    assert Evaluation(other, dataset, DenoisingLoss(), 5, patience=3).finished
    assert not Evaluation(other, dataset, DenoisingLoss(), 5, patience=9).finished
    assert not Evaluation(other, dataset, DenoisingLoss(), 5, patience=3, num_examples=7).finished


def test_a_run_that_goes_on_decides_as_one_that_was_not_stopped(dataset, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    one, _ = trained(dataset, 24, workdir=whole, keep_best=True)
    trained(dataset, 16, workdir=parts, keep_best=True)
    (parts / "checkpoints" / "step-00000016.safetensors").unlink()
    other = make_state(dataset)
    restore(other, latest_checkpoint(parts))
    assert other.step == 12
    trained(dataset, 24, other, parts, keep_best=True)
    assert one.notes == other.notes
    assert (whole / "held_out.csv").read_bytes() == (parts / "held_out.csv").read_bytes()
    (a,), (b,) = (list((path / "best" / "checkpoints").iterdir()) for path in (whole, parts))
    assert a.read_bytes() == b.read_bytes()


class Broken(DenoisingLoss):
    """Losses of one update that are multiplied, for the rows that are given."""

    def __new__(cls, *args):
        return object.__new__(cls)

    def __init__(self, factor, at, which):
        super().__init__()
        object.__setattr__(self, "_how", [factor, at, which, 0])

    def __call__(self, model, x0, generator, condition=None):
        losses = super().__call__(model, x0, generator, condition)
        factor, at, which, count = self._how
        self._how[3] += 1
        scale = torch.ones_like(losses)
        if count == at:
            scale[list(which)] = factor
        return losses * scale


def test_a_loss_that_is_not_finite_names_its_examples(dataset, tmp_path):
    state, loss = make_state(dataset), Broken(math.nan, 4, (3, 7))
    indices = batch_indices(100, 16, 4, 4)
    named = ", ".join(str(int(indices[i])) for i in (3, 7))
    with pytest.raises(NonFiniteError, match=r"got nan at step 5.*without a finite loss: ") as error:
        fit(state, dataset, loss, 9, 16, tmp_path)
    assert f"without a finite loss: {named}." in str(error.value)
    path = tmp_path / "checkpoints" / "nonfinite-step-00000005.json"
    assert str(path) in str(error.value)
    found = json.loads(path.read_text())
    assert (found["kind"], found["step"], found["seed"], found["loss"]) == ("nonfinite", 5, 4, "nan")
    assert [one["index"] for one in found["examples"][:2]] == [int(indices[i]) for i in (3, 7)]
    assert sorted(one["index"] for one in found["examples"]) == sorted(indices.tolist())
    rest = [one["loss"] for one in found["examples"][2:]]
    assert rest == sorted(rest, reverse=True)


def test_without_a_directory_the_sentence_is_all(dataset):
    with pytest.raises(NonFiniteError, match=r"without a finite loss: \d+$"):
        fit(make_state(dataset), dataset, Broken(math.inf, 0, (5,)), 9, 16)


def test_a_spike_lists_its_examples_and_the_run_goes_on(dataset, tmp_path):
    state, loss = make_state(dataset), Broken(1e4, 110, (2,))
    fit(state, dataset, loss, 115, 16, tmp_path, on_update=together(Spikes(state, 20.0, 100, tmp_path)))
    assert state.step == 115
    (path,) = (tmp_path / "checkpoints").glob("spike-*.json")
    found = json.loads(path.read_text())
    assert found["step"] == 111
    assert found["examples"][0]["index"] == int(batch_indices(100, 16, 110, 4)[2])
    assert state.notes["spikes"]["files"] == 1
    assert state.notes["spikes"]["mean"] < 100


def test_wrong_rules_get_sentences(dataset, tmp_path):
    state = make_state(dataset)
    with pytest.raises(ValueError, match="keep_best needs a workdir"):
        Evaluation(state, dataset, DenoisingLoss(), 3, keep_best=True)
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        Evaluation(state, dataset, DenoisingLoss(), 0)
    with pytest.raises(ValueError, match="factor of a spike must be above 1"):
        Spikes(state, 1.0, 100, tmp_path)
    with pytest.raises(ValueError, match="t_min must be in"):
        loss_by_level(state.model, dataset, t_min=2.0)


def test_schedules_of_the_learning_rate():
    def rates(steps, **options):
        rule = Optimization(learning_rate=2.0, warmup_steps=0, **options)
        return [rule.learning_rate_at(n) for n in steps]

    cosine = rates((0, 50, 100, 1000), decay_steps=100, schedule="cosine")
    assert cosine == pytest.approx([2.0, 2 * (0.01 + 0.99 / 2), 0.02, 0.02])
    inverse = rates((0, 100, 400, 10000), decay_steps=100, schedule="inverse_sqrt")
    assert inverse == pytest.approx([2.0, 2.0, 1.0, 0.2])
    assert rates((0, 10**6), schedule="constant") == [2.0, 2.0]
    assert rates((0, 50, 400), decay_steps=100) == pytest.approx([2.0, 1.0, 0.02])
    for options in ({"schedule": "cosine"}, {"schedule": "constant", "decay_steps": 5}):
        with pytest.raises(ValueError, match="decay_steps must be"):
            Optimization(**options)
    with pytest.raises(ValueError, match="schedule must be one of linear, constant, cosine, inverse_sqrt"):
        Optimization(schedule="step")
