"""Likelihoods shared by several processes: the same bits, no waiting, failures that are told."""

import json
import os
import subprocess
import sys
import textwrap
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sde_toolkit import cli
from sde_toolkit.lab import Store
from sde_toolkit.utils.processes import ALONE, launched, leading

TINY = [
    "--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64",
    "--config.data.num_test=40", "--config.training.num_steps=12", "--config.training.batch_size=16",
]  # fmt: skip
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


class Doubled(NamedTuple):
    """A result by rows."""

    value: Tensor
    first: Tensor


def double(first: int, rows: Tensor) -> Doubled:
    return Doubled(2 * rows, torch.full((len(rows),), first))


def torchrun(*words: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone"]
    return subprocess.run(
        [*command, *words], env=QUIET, capture_output=True, text=True, timeout=240, check=False
    )


def test_one_process_does_all_batches_in_order():
    found = ALONE.map(double, torch.arange(5.0), 2)
    assert torch.equal(found.value, 2 * torch.arange(5.0))
    assert found.first.tolist() == [0, 0, 2, 2, 4]
    with launched() as processes:
        assert processes == ALONE
    assert leading()


@pytest.mark.slow
def test_more_processes_give_the_same_rows_or_the_same_failure(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(
        textwrap.dedent(
            """
            from pathlib import Path
            from typing import NamedTuple
            import torch
            from sde_toolkit.utils import launched

            class Found(NamedTuple):
                value: torch.Tensor

            def work(first, rows):
                return Found(rows * first)

            def broken(first, rows):
                if first == 4:
                    raise ValueError("broken row")
                return Found(rows)

            with launched() as processes:
                x = torch.arange(5.0)
                assert processes.map(work, x, 2).value.tolist() == [0, 0, 4, 6, 16]
                assert processes.map(work, x, 9).value.tolist() == [0] * 5  # nothing left for the others
                try:
                    processes.map(broken, x, 2)
                except (ValueError, RuntimeError) as error:
                    Path(__file__).with_name(f"{processes.rank}.txt").write_text(f"{processes.rank} {error}")
            """
        )
    )
    done = torchrun(str(script), count=3)
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)]  # printed lines would run together
    other = "another process failed; its message tells why"
    assert told == [f"0 {other}", f"1 {other}", "2 broken row"]


@pytest.mark.slow
def test_likelihoods_under_torchrun_are_those_of_one_process(tmp_path):
    run, alone, shared = (tmp_path / name for name in ("run", "alone", "shared"))
    assert cli.main(["train", "--config=ring", f"--workdir={run}", *TINY]) == 0
    # adaptive: the batches need different numbers of steps
    words = ["likelihood", f"--workdir={run}", "--config.likelihood.batch_size=9"]
    single = subprocess.run(
        [sys.executable, "-m", "sde_toolkit", *words, f"--output={alone}"],
        env=QUIET, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert single.returncode == 0, single.stderr
    several = torchrun("-m", "sde_toolkit", *words, f"--output={shared}")
    assert several.returncode == 0, several.stderr
    first, second = (json.loads((path / "likelihood-test.json").read_text()) for path in (alone, shared))
    assert first["bits_per_dim"] == second["bits_per_dim"]
    assert first["nfe"] == second["nfe"]
    assert first["budget"] == second["budget"]
    assert several.stdout.count("bits/dim (") == 1  # one process prints


@pytest.mark.slow
def test_samples_and_comparisons_under_torchrun_are_those_of_one_process(tmp_path):
    words = ["--problem=ring", "--sampler=ddim", "--num_steps=4", "--num_samples=1000", "--format=npz"]
    assert cli.main(["sample", *words, f"--output={tmp_path / 'one'}"]) == 0
    several = torchrun("-m", "sde_toolkit", "sample", *words, f"--output={tmp_path / 'two'}")
    assert several.returncode == 0, several.stderr
    assert several.stdout.count("1000 samples by") == 1
    one, two = (next((tmp_path / name).rglob("*.npz")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    words = ["--problems=ring", "--samplers=ddim,heun", "--num_steps=2,3,4", "--num_samples=30"]
    assert cli.main(["compare", *words, f"--output={tmp_path / 'one'}"]) == 0
    several = torchrun("-m", "sde_toolkit", "compare", *words, f"--output={tmp_path / 'two'}")
    assert several.returncode == 0, several.stderr
    assert several.stdout.count("wrote") == 3
    found = [Store(tmp_path / name / "records.sqlite").records() for name in ("one", "two")]
    first, second = ({(r.sampler, r.num_steps): r.estimates for r in rows} for rows in found)
    assert len(first) == 6
    assert first == second
