"""Sampling that is killed at any moment leaves whole files or none, and ends as usual when repeated."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

WORDS = ["sample", "--sampler=ddim", "--num_steps=2", "--num_samples=300", "--format=npz,grid,png"]


def command(output):
    return [sys.executable, "-m", "sde_toolkit", *WORDS, f"--output={output}"]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".npz"
    }


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    begin = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, timeout=300, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    moments = random.Random(0)
    for _ in range(20):
        with subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL) as process:
            time.sleep(seconds * moments.uniform(0.6, 1.05))  # most of it is imports
            process.send_signal(signal.SIGKILL)
        pictures = tmp_path / "killed" / "samples" / "ddim-2-seed0"
        if pictures.exists():
            assert len(os.listdir(pictures)) == 300
    subprocess.run(command(tmp_path / "killed"), check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "killed" / "samples")) == sorted(
        os.listdir(tmp_path / "whole" / "samples")
    )
