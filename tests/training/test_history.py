"""What ``fit`` takes for a directory, shows on request, and returns."""

from pathlib import Path

import pytest
import torch

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import latest_checkpoint, restore
from sde_toolkit.training.loop import fit
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import TrainState
from sde_toolkit.utils.files import WorkdirLock

DATA = gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=64, num_test=8)


def make_state():
    torch.manual_seed(0)
    return TrainState(NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "velocity", (2,)))


def test_fit_returns_every_update_of_the_call():
    state, seen = make_state(), []
    history = fit(state, DATA, DenoisingLoss(), 3, 8, on_step=seen.append)
    assert history == seen
    assert [info.step for info in history] == [1, 2, 3]
    assert [info.step for info in fit(state, DATA, DenoisingLoss(), 5, 8)] == [4, 5]
    assert fit(state, DATA, DenoisingLoss(), 5, 8) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_fit_locks_a_path_by_itself_and_leaves_it_free(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    fit(make_state(), DATA, DenoisingLoss(), 2, 8, workdir=kind("~/run"))
    assert latest_checkpoint(tmp_path / "run").step == 2
    with WorkdirLock(tmp_path / "run"):
        pass


def test_a_path_with_a_later_checkpoint_is_refused_and_a_resume_may_change_the_batch_size(tmp_path):
    fit(make_state(), DATA, DenoisingLoss(), 2, 8, workdir=tmp_path)
    with pytest.raises(ValueError, match="got step-00000002"):
        fit(make_state(), DATA, DenoisingLoss(), 4, 8, workdir=tmp_path)
    state = make_state()
    restore(state, latest_checkpoint(tmp_path))
    history = fit(state, DATA, DenoisingLoss(), 4, 16, workdir=tmp_path)
    assert [(info.step, info.batch_size) for info in history] == [(3, 16), (4, 16)]
    assert latest_checkpoint(tmp_path).step == 4


def test_fit_refuses_an_empty_path():
    with pytest.raises(ValueError, match="got an empty one"):
        fit(make_state(), DATA, DenoisingLoss(), 2, 8, workdir="")


def test_a_bar_is_shown_on_request_only(capsys):
    fit(make_state(), DATA, DenoisingLoss(), 2, 8)
    assert capsys.readouterr() == ("", "")
    fit(make_state(), DATA, DenoisingLoss(), 2, 8, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
