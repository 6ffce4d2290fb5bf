"""Training by several processes: equal weights, a killed process, resuming with another number of them.

torchrun starts what trains first and what is killed; the others are told by its variables of each other.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sde_toolkit.runs import open_run
from sde_toolkit.training import latest_checkpoint

pytestmark = pytest.mark.slow
STEPS = 100


def command(workdir, count, *more):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    fields = {"num_steps": STEPS, "checkpoint_every": 20, "batch_size": 64}
    words = [f"--config.training.{name}={value}" for name, value in fields.items()]
    train = ["-m", "sde_toolkit", "train", "--config=ring", f"--workdir={workdir}", *words, *more]
    return [sys.executable, *launcher, *train]


@pytest.fixture(scope="module")
def trained(forks, tmp_path_factory):
    """(workdir, number of processes, more words) -> the last checkpoint of a run that comes to its end."""
    log = tmp_path_factory.mktemp("logs") / "log"

    def train(workdir, count, *more):
        words = command(workdir, 1, *more)
        codes = forks.run(words[words.index("train") :], log, count)
        assert codes == [0] * count, log.read_text()
        return latest_checkpoint(workdir)

    return train


def largest_difference(a, b):
    assert a.step == b.step == STEPS
    assert set(a.tensors) == set(b.tensors)
    return max(float((a.tensors[n].double() - b.tensors[n].double()).abs().max()) for n in a.tensors)


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone") / "run", 1)


def test_two_processes_train_the_same_weights(trained, alone, tmp_path):
    done = subprocess.run(command(tmp_path / "two", 2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = latest_checkpoint(tmp_path / "two")
    assert largest_difference(alone, two) < 1e-5
    halves = trained(tmp_path / "halves", 1, "--config.training.accumulate=2")
    assert all(torch.equal(two.tensors[name], value) for name, value in halves.tensors.items())
    assert two.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


def test_sharded_weights_are_the_same_and_go_on_in_one_process(trained, alone, tmp_path):
    shard = "--config.training.shard=true"
    workdir = tmp_path / "shard"
    trained(workdir, 2, shard, "--config.training.num_steps=60")
    assert largest_difference(alone, trained(workdir, 1)) < 1e-5
    again = tmp_path / "again"
    trained(again, 1, "--config.training.num_steps=60")
    assert largest_difference(alone, trained(again, 2, shard)) < 1e-5


def test_sharded_weights_are_gathered_for_held_out_losses_and_pictures(trained, tmp_path):
    watch = ["--config.training.num_steps=20", "--config.training.evaluate_every=10",
             "--config.training.keep_best=true", "--config.training.sample_every=20",
             "--config.training.evaluate_examples=64"]  # fmt: skip
    found, best = [], []
    for count, more in ((1, []), (2, ["--config.training.shard=true"])):
        workdir = tmp_path / str(count)
        trained(workdir, count, *watch, *more)
        with open(workdir / "held_out.csv", newline="") as file:
            found.append([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
        assert (workdir / "samples" / "training-00000020.png").is_file()
        best.append(open_run(workdir / "best"))
    assert len(found[0]) == 2
    for mine, other in zip(*found, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    assert best[0].step == best[1].step
    for a, b in zip(*(run.model.network.parameters() for run in best), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def ranks(launcher):
    """The process of every rank under torchrun."""
    children = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout.split()
    found = {}
    for child in map(int, children):
        rank = re.search(r"(?:^|\0)RANK=(\d+)", Path(f"/proc/{child}/environ").read_text())
        found |= {int(rank[1]): child} if rank else {}
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks by /proc")
@pytest.mark.parametrize(("killed", "resumed_by"), [(1, 2), (0, 1)])
def test_a_killed_process_ends_the_run_which_goes_on(killed, resumed_by, trained, alone, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    with open(log, "w") as stream:
        running = subprocess.Popen(command(workdir, 2), stderr=stream, stdout=stream)
        while not latest_saved(workdir):
            assert running.poll() is None, log.read_text()
            time.sleep(0.05)
        found = ranks(running.pid)
        begin = time.monotonic()
        os.kill(found[killed], signal.SIGKILL)
        assert running.wait(timeout=120) != 0
        assert time.monotonic() - begin < 60
    assert re.search(
        r"steps are saved in .*; the same command goes on|stopped by the system", log.read_text()
    )
    assert 20 <= latest_checkpoint(workdir).step < STEPS
    assert largest_difference(alone, trained(workdir, resumed_by)) < 1e-5


def latest_saved(workdir):
    return list(workdir.glob("checkpoints/step-*.safetensors"))


def test_products_in_bfloat16_and_unknown_types(forks, trained, alone, tmp_path):
    narrow = trained(tmp_path / "narrow", 1, "--config.training.autocast=bfloat16")
    assert largest_difference(alone, narrow) > 0
    assert narrow.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=0.05)
    assert all(tensor.dtype != torch.bfloat16 for tensor in narrow.tensors.values())
    words = command(tmp_path / "none", 1, "--config.training.autocast=float8")
    assert forks.run(words[words.index("train") :], tmp_path / "log") == [2]
    told = (tmp_path / "log").read_text()
    assert "config.training.autocast 'float8' is unknown; did you mean 'bfloat16'?" in told
