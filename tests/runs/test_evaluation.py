"""Log-likelihoods of a run's examples, as its configuration asks."""

import json
import math

import pytest
import torch

from sde_toolkit import cli
from sde_toolkit.config.loading import override_config
from sde_toolkit.lab.table import plus_minus
from sde_toolkit.runs.evaluation import evaluate_likelihood, evaluation_path, load_evaluation
from sde_toolkit.runs.store import open_run

TINY = [
    "--config.model.channels=8,8", "--config.model.num_groups=4", "--config.training.num_steps=3",
    "--config.training.batch_size=16", "--config.likelihood.num_steps=4",
    "--config.likelihood.num_examples=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "digits"
    assert cli.main(["train", "--config=digits", f"--workdir={path}", *TINY]) == 0
    return path


def found(workdir, directory, **changes):
    run = open_run(workdir)
    config = override_config(run.config, {f"likelihood.{name}": value for name, value in changes.items()})
    return evaluate_likelihood(type(run)(**{**vars(run), "config": config}), directory)


@pytest.fixture(scope="module")
def grey(workdir, tmp_path_factory):
    """Where likelihoods with both bounds are written, and they."""
    directory = tmp_path_factory.mktemp("grey")
    result, reused = found(workdir, directory, bounds="both", num_diagnostic_samples=2)
    assert not reused
    return directory, result


@pytest.mark.slow
def test_grey_levels_have_a_bound_with_every_entry_of_the_budget(workdir, grey):
    directory, result = grey
    assert len(result.bits_per_dim) == 6
    assert result.uniform == pytest.approx(math.log2(17))
    names = [line.split()[0] for line in result.budget]
    assert names == ["solver", "probes", "truncation", "prior", "dequantization", "total"]
    assert [name for name, _, _ in result.bounds] == ["continuous bound", "discrete bound"]
    assert all(math.isfinite(mean) and error > 0 for _, mean, error in result.bounds)
    again, reused = found(workdir, directory, bounds="both", num_diagnostic_samples=2)
    assert reused
    assert again == result


def test_errors_are_in_the_unit_of_the_value(grey):
    _, result = grey
    bits = torch.tensor(result.bits_per_dim, dtype=torch.float64)
    assert result.mean == pytest.approx(float(bits.mean()))
    assert result.standard_error == pytest.approx(float(bits.std()) / math.sqrt(6))
    assert f"{plus_minus(result.mean, result.standard_error)} bits/dim" in result.sentence
    for line in result.budget:
        _, _, nats, unit, per_dim, other_unit, *_ = line.split()
        assert (unit, other_unit) == ("nats", "bits/dim")
        assert float(nats) == pytest.approx(float(per_dim) * 64 * math.log(2), rel=0.1)


@pytest.mark.slow
def test_other_dequantisations_and_more_draws(workdir, tmp_path):
    truncated, _ = found(workdir, tmp_path, dequantization="truncated_normal", num_diagnostic_samples=2)
    assert "the density at t_min is the one bounded" in "".join(truncated.budget)
    once, _ = found(workdir, tmp_path, num_diagnostic_samples=0)
    several, _ = found(workdir, tmp_path, num_importance=2, num_diagnostic_samples=0)
    assert once.budget == ()
    assert several.nfe == 4 * once.nfe  # two draws, two sets of probes
    assert several.mean != once.mean


@pytest.fixture(scope="module")
def run(workdir):
    """The run, which nothing changes."""
    return open_run(workdir)


@pytest.mark.parametrize(
    "change",
    [
        {"bits_per_dim": None}, {"bits_per_dim": []}, {"bits_per_dim": ["1"]}, {"bits_per_dim": [math.nan]},
        {"bounds": None}, {"bounds": [[1]]}, {"bounds": [["a", None, 1.0]]}, {"settings": None},
        {"settings": []}, {"nfe": "1"}, {"uniform": "4"}, {"budget": None}, {"split": None}, {"more": 1},
        {"seconds": 10**400}, {"nfe": True},
    ],
    ids=repr,
)  # fmt: skip
def test_null_and_missing_parts_of_a_file_are_named(run, tmp_path, change):
    path = evaluation_path(tmp_path, "test")
    whole = {
        "split": "test", "bits_per_dim": [1.0, 2.0], "uniform": None, "nfe": 3.0, "seconds": 0.5,
        "budget": [],
        "bounds": [["a", 1.0, math.inf]], "settings": {"model": "x"},
    }  # fmt: skip
    path.write_text(json.dumps(whole))
    assert load_evaluation(run, tmp_path) is None
    for content in ({**whole, **change}, {k: v for k, v in whole.items() if k not in change} | {"more": 1}):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="remove it and run again"):
            load_evaluation(run, tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, None])
def test_what_is_no_file_of_likelihoods_is_named(run, tmp_path, content):
    path = evaluation_path(tmp_path, "test")
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match="remove it and run again"):
        load_evaluation(run, tmp_path)


def test_a_broken_file_is_named(workdir, tmp_path):
    path = evaluation_path(tmp_path, "test")
    path.write_text(json.dumps({"split": "test"}))
    with pytest.raises(ValueError, match="remove it and run again"):
        load_evaluation(open_run(workdir), tmp_path)
