"""Sampling that is killed at any moment leaves whole files or none, and ends as usual when repeated."""

import os
import random
import time

import pytest

WORDS = ["sample", "--sampler=ddim", "--num_steps=2", "--num_samples=300", "--format=npz,grid,png"]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".npz"
    }


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(forks, tmp_path):
    begin = time.monotonic()
    assert forks.run([*WORDS, f"--output={tmp_path / 'whole'}"]) == [0]
    seconds = time.monotonic() - begin
    moments = random.Random(0)
    for _ in range(20):
        process = forks.start([*WORDS, f"--output={tmp_path / 'killed'}"])
        time.sleep(seconds * moments.uniform(0, 1.05))
        forks.kill(process)
        pictures = tmp_path / "killed" / "samples" / "ddim-2-seed0"
        if pictures.exists():
            assert len(os.listdir(pictures)) == 300
    assert forks.run([*WORDS, f"--output={tmp_path / 'killed'}"]) == [0]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "killed" / "samples")) == sorted(
        os.listdir(tmp_path / "whole" / "samples")
    )
