"""Averages of any length from the stored ones of a real training run."""

import itertools

import pytest
import torch
from torch import nn

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import latest_checkpoint, read_checkpoint, restore, save_checkpoint
from sde_toolkit.training.loop import fit
from sde_toolkit.training.model_file import load_model
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.snapshots import export_average, reconstruct, snapshot_bytes
from sde_toolkit.training.state import Optimization, TrainState

STEPS, EVERY = 240, 12
LENGTHS = (0.04, 0.06, 0.075, 0.12, 0.15)
TRACES = (0.05, 0.1)


@pytest.fixture(scope="module")
def dataset():
    return gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=100, num_test=10)


def make_state(dataset, network=None, **options):
    network = MLP((2,), width=8, depth=1, seed=4) if network is None else network
    model = NetworkModel(network, VPSDE(), "velocity", (2,), dataset.data_std)
    return TrainState(model, Optimization(warmup_steps=5, **options), seed=4)


def trained(dataset, workdir, num_steps=STEPS, state=None, **options):
    state = make_state(dataset, ema_traces=TRACES, **options) if state is None else state
    fit(state, dataset, DenoisingLoss(), num_steps, 16, workdir, 60, snapshot_every=EVERY)
    return state


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, trained(dataset, workdir)


def distance(weights, network):
    """Relative, over all parameters."""
    gap = sum((weights[n] - p).double().square().sum() for n, p in network.named_parameters())
    size = sum(p.double().square().sum() for p in network.parameters())
    return float((gap / size).sqrt())


def names(workdir):
    return sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(("end", "most"), [(STEPS, 1e-4), (10 * EVERY, 1e-3)])
def test_reconstructed_weights_are_those_of_a_run_that_tracked_them(dataset, run, end, most):
    """To 1e-4 of the weights with twenty snapshots, to 1e-3 with ten; two lengths differ by more."""
    workdir, _ = run
    direct = make_state(dataset, ema_traces=LENGTHS)
    fit(direct, dataset, DenoisingLoss(), end, 16)
    found = reconstruct(workdir, LENGTHS, end)
    for average, network in zip(found, direct.traces, strict=True):
        assert average.step == average.nearest == end
        assert average.residual < (0.01 if end == STEPS else 0.04)
        assert distance(average.weights, network) < most
    for (a, _), (_, other) in itertools.combinations(zip(found, direct.traces, strict=True), 2):
        assert distance(a.weights, other) > 1e-3


@pytest.mark.slow
def test_the_profile_of_a_run_may_be_a_power(dataset, run):
    state = make_state(dataset, ema_profile="power", ema_sigma_rel=0.075)
    fit(state, dataset, DenoisingLoss(), STEPS, 16)
    (average,) = reconstruct(run[0], 0.075)
    assert distance(average.weights, state.ema.network) < 1e-5


def test_constant_decay_has_no_warm_up(dataset):
    state = make_state(dataset, ema_profile="constant", ema_decay=0.9)
    before = {n: p.detach().clone() for n, p in state.model.network.named_parameters()}
    fit(state, dataset, DenoisingLoss(), 1, 16)
    for name, p in state.ema.network.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * state.model.network.get_parameter(name))


def test_traces_change_nothing_of_the_run(dataset, run):
    plain = make_state(dataset)
    fit(plain, dataset, DenoisingLoss(), STEPS, 16)
    theirs = run[1].tensors()
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.slow
def test_a_run_that_was_stopped_stores_what_it_would_have_stored(dataset, run, tmp_path):
    whole, _ = run
    trained(dataset, tmp_path, 100)
    stale = tmp_path / "snapshots" / "step-00000096.safetensors"
    later = tmp_path / "snapshots" / "step-00000180.safetensors"
    later.write_bytes(stale.read_bytes())  # of a part that was lost with its checkpoint
    state = make_state(dataset, ema_traces=TRACES)
    restore(state, read_checkpoint(tmp_path / "checkpoints" / "step-00000060.safetensors"))
    (tmp_path / "checkpoints" / "step-00000100.safetensors").unlink()
    fit(state, dataset, DenoisingLoss(), 72, 16, tmp_path, 60, snapshot_every=EVERY)
    assert names(tmp_path / "snapshots") == [f"step-{n:08d}.safetensors" for n in range(12, 73, 12)]
    trained(dataset, tmp_path, state=state)
    assert names(tmp_path / "snapshots") == names(whole / "snapshots")
    for name in names(whole / "snapshots"):
        assert (tmp_path / "snapshots" / name).read_bytes() == (whole / "snapshots" / name).read_bytes()


def test_the_checkpoint_counts_as_a_snapshot(dataset, tmp_path):
    state = trained(dataset, tmp_path, 100)
    (average,) = reconstruct(tmp_path, 0.05)
    assert (average.step, average.nearest) == (100, 100)
    assert average.residual < 1e-7
    assert distance(average.weights, state.traces[0]) < 1e-7


def test_an_average_is_a_file_that_load_model_reads(run, tmp_path):
    workdir, _ = run
    (average,) = reconstruct(workdir, 0.12)
    path = tmp_path / "deep" / "average.safetensors"
    export_average(latest_checkpoint(workdir), average, path)
    model = load_model(path)
    for name, p in model.network.named_parameters():
        assert torch.equal(p, average.weights[name])
    assert model.moments is not None
    assert read_checkpoint(path).metrics == {"sigma_rel": 0.12, "residual": average.residual}
    with pytest.raises(ValueError, match="must not be a training checkpoint"):
        export_average(latest_checkpoint(workdir), average, latest_checkpoint(workdir).path)


def test_buffers_and_tied_weights(dataset, tmp_path):
    """Buffers are those of the step; two names of one weight get the same average."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, x, c):
            return self.b(torch.tanh(self.a(self.norm(x))))

    torch.manual_seed(0)
    state = trained(dataset, tmp_path, 48, make_state(dataset, Tied(), ema_traces=TRACES))
    (average,) = reconstruct(tmp_path, 0.07)
    assert torch.equal(average.weights["a.weight"], average.weights["b.weight"])
    assert not torch.equal(average.weights["a.weight"], state.traces[0].a.weight)
    assert torch.equal(average.weights["norm.running_mean"], state.model.network.norm.running_mean)
    assert int(average.weights["norm.num_batches_tracked"]) == 48
    assert set(average.weights) == set(state.model.network.state_dict())


def test_a_damaged_snapshot_is_left_out(dataset, tmp_path):
    trained(dataset, tmp_path, 120)
    path = tmp_path / "snapshots" / "step-00000108.safetensors"
    whole = reconstruct(tmp_path, 0.075)[0]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.warns(RuntimeWarning, match="a snapshot is left out: .*step-00000108"):
        part = reconstruct(tmp_path, 0.075)[0]
    assert whole.residual < part.residual < 0.2


def test_wrong_requests_get_sentences(dataset, run, tmp_path):
    workdir, state = run
    with pytest.raises(ValueError, match="step must be at most 240, that of the newest checkpoint, got 241"):
        reconstruct(workdir, 0.05, 241)
    with pytest.raises(ValueError, match="sigma_rel must be between"):
        reconstruct(workdir, (0.05, 0.5))
    with pytest.raises(ValueError, match="got none"):
        reconstruct(workdir, ())
    with pytest.raises(ValueError, match="holds no checkpoint"):
        reconstruct(tmp_path, 0.05)
    plain = make_state(dataset)
    fit(plain, dataset, DenoisingLoss(), 2, 16, tmp_path)
    with pytest.raises(ValueError, match="must hold a run that stores averages"):
        reconstruct(tmp_path, 0.05)
    with pytest.raises(ValueError, match="snapshot_every must be 0 for a run that tracks no averages"):
        fit(plain, dataset, DenoisingLoss(), 4, 16, snapshot_every=1)
    with pytest.raises(ValueError, match="needs a workdir"):
        fit(state, dataset, DenoisingLoss(), 241, 16, snapshot_every=1)
    with pytest.raises(ValueError, match="two or more different lengths"):
        Optimization(ema_traces=(0.05,))
    with pytest.raises(ValueError, match="ema_profile must be one of warmup, constant, power, got 'linear'"):
        Optimization(ema_profile="linear")


def test_a_checkpoint_of_before_these_fields_is_resumed(dataset, tmp_path):
    state = make_state(dataset)
    fit(state, dataset, DenoisingLoss(), 2, 16, tmp_path)
    checkpoint = latest_checkpoint(tmp_path)
    for name in ("ema_profile", "ema_sigma_rel", "ema_traces"):
        del checkpoint.run["optimization"][name]
    restore(make_state(dataset), checkpoint)
    with pytest.raises(ValueError, match=r"optimization.ema_traces: \[\] -> \[0.05, 0.1\]"):
        restore(make_state(dataset, ema_traces=TRACES), checkpoint)


def test_a_file_takes_four_bytes_for_each_weight_and_trace(run):
    workdir, state = run
    size = (workdir / "snapshots" / "step-00000012.safetensors").stat().st_size
    assert snapshot_bytes(state) == 8 * sum(p.numel() for p in state.model.network.parameters())
    assert snapshot_bytes(state) < size < snapshot_bytes(state) + 6000
    assert save_checkpoint(state, workdir / "other").stat().st_size > 3 * snapshot_bytes(state)
