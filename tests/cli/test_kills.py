"""Commands that are killed at random moments end, when they are given again, as if nothing had happened.

What keeps its finished batches when it is asked to stop is asked as often as it is killed.

The moments are drawn with a fixed seed, from the time that an undisturbed run takes.
"""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from forking import Forks

from sde_toolkit import runs
from sde_toolkit.lab import load_records
from sde_toolkit.training import latest_checkpoint

KILLS = 20
TINY = [
    *("--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64"),
    *("--config.data.num_test=40", "--config.training.batch_size=16", "--config.training.num_steps=240"),
    *(
        "--config.training.log_every=7",
        "--config.training.checkpoint_every=20",
        "--config.comparison.num_samples=20",
    ),
    "--config.comparison.metrics=energy",
]


def run_killed(forks: Forks, verb: list[str], whole: list[str], killed: list[str], resumes: bool) -> None:
    """An undisturbed run of ``whole``, and one of ``killed``, killed ``KILLS`` times before its end.

    One that came to its end before begins once more, and kills come sooner; if it resumes, they count anew.
    """
    begin = time.perf_counter()
    assert forks.run([*verb, *whole]) == [0]
    length, rng, kills = time.perf_counter() - begin, random.Random(5), 0
    share = 0.2 if resumes else 1.0
    while kills < KILLS:
        process = forks.start([*verb, *killed])
        time.sleep(rng.uniform(0, share * length))
        number = signal.SIGKILL if resumes else rng.choice([signal.SIGKILL, signal.SIGTERM])
        code = forks.kill(process, number)
        kills += code in (-signal.SIGKILL, 130)
        if code == 0:
            shutil.rmtree(killed[-1].partition("=")[2])
            kills, share = 0 if resumes else kills, share / 1.5
        assert kills or time.perf_counter() - begin < 200, "no run was long enough to be killed"
    assert forks.run([*verb, *killed]) == [0]


def names(directory: Path) -> list[str]:
    """Every file below, the locks that the system frees with their processes excepted."""
    found = [path for path in directory.rglob("*") if path.is_file() and not path.name.endswith("lock")]
    return sorted(str(path.relative_to(directory)) for path in found)


def history(directory: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in runs.read_history(directory)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_killed_twenty_times_is_the_undisturbed_run(forks, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    watched = ["--config.training.snapshot_every=30", "--config.training.evaluate_every=15"]
    verb = ["train", "--config=ring", *watched, "--config.training.keep_best=true", *TINY]
    run_killed(forks, verb, [f"--workdir={whole}"], [f"--workdir={killed}"], True)
    one, other = latest_checkpoint(whole), latest_checkpoint(killed)
    assert one is not None
    assert other is not None
    assert one.step == other.step == 240
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.numpy().tobytes() == other.tensors[name].numpy().tobytes(), name
    assert history(killed) == history(whole)
    assert len(history(whole)) == 34
    assert names(killed) == names(whole)
    stored = sorted(path.name for path in (whole / "snapshots").iterdir())
    assert stored == [f"step-{step:08d}.safetensors" for step in range(30, 241, 30)]
    for name in stored:
        assert (killed / "snapshots" / name).read_bytes() == (whole / "snapshots" / name).read_bytes()
    (best,) = (whole / "best" / "checkpoints").iterdir()
    for path in (best, whole / "held_out.csv"):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("kills") / "ring"
    runs.train_run(path, "ring", dict(word.removeprefix("--config.").split("=") for word in TINY))
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_comparison_killed_twenty_times_is_the_undisturbed_one(forks, workdir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    verb = ["compare", f"--workdir={workdir}", "--samplers=ddim,heun", "--num_steps=2,3,4"]
    run_killed(forks, verb, [f"--output={whole}"], [f"--output={killed}"], False)
    (one, real), (other, real_again) = (load_records(path / "records.json") for path in (whole, killed))

    def plain(records):
        return {(r.sampler, r.num_steps): (r.nfe, r.value, r.standard_error, r.settings) for r in records}

    assert plain(one) == plain(other)
    assert len(one) == len(other) == 6
    assert real == real_again
    assert names(killed) == names(whole)
    for path in whole.rglob("*.npz"):
        with np.load(path) as a, np.load(killed / path.relative_to(whole)) as b:
            assert a["x"].tobytes() == b["x"].tobytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sampling_killed_twenty_times_is_the_undisturbed_run(forks, workdir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    verb = ["sample", f"--workdir={workdir}", "--num_samples=50", "--num_steps=30", "--sampler=heun"]
    verb += ["--config.sampling.batch_size=10"]
    run_killed(forks, verb, [f"--output={whole}"], [f"--output={killed}"], False)
    assert names(killed) == names(whole)
    (path,) = whole.rglob("*.npz")
    with np.load(path) as a, np.load(killed / path.relative_to(whole)) as b:
        assert a["x"].tobytes() == b["x"].tobytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_likelihood_killed_twenty_times_is_the_undisturbed_one(forks, workdir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    verb = ["likelihood", f"--workdir={workdir}", "--num_examples=40", "--config.likelihood.batch_size=8"]
    run_killed(forks, verb, [f"--output={whole}"], [f"--output={killed}"], False)
    assert names(killed) == names(whole)
    (one, other) = (json.loads((path / "likelihood-test.json").read_text()) for path in (whole, killed))
    assert one | {"seconds": 0} == other | {"seconds": 0}
