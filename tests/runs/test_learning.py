"""A run from the shell that is watched, and one that goes on under other fields."""

import csv
import json

import pytest

from sde_toolkit import cli, runs
from sde_toolkit.config import load_config
from sde_toolkit.training import latest_checkpoint, load_model

TINY = [
    *("--config=ring", "--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64"),
    *("--config.data.num_test=40", "--config.training.batch_size=16", "--config.training.num_steps=12"),
    *("--config.training.checkpoint_every=4", "--config.training.log_every=2"),
]
WATCHED = [
    *("--config.training.evaluate_every=3", "--config.training.evaluate_bins=2"),
    *(
        "--config.training.keep_best=true",
        "--config.training.sample_every=6",
        "--config.sampling.num_steps=2",
    ),
    *("--config.training.patience=99", "--config.training.spike_factor=50"),
]
RATE = "optimization.learning_rate"


def train(workdir, *words):
    return cli.main(["train", f"--workdir={workdir}", *TINY, *words])


def weights(workdir):
    return {n: t for n, t in latest_checkpoint(workdir).tensors.items() if not n.startswith("data")}


def test_a_watched_run_has_the_bits_of_another(tmp_path):
    assert train(tmp_path / "a") == train(tmp_path / "b", *WATCHED) == 0
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(t.numpy().tobytes() == b[n].numpy().tobytes() for n, t in a.items())
    with open(tmp_path / "b" / "held_out.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["step"] for row in found] == ["3", "6", "9", "12"]
    pictures = sorted(path.name for path in (tmp_path / "b" / "samples").iterdir())
    assert pictures == ["training-00000006.png", "training-00000012.png"]
    assert runs.open_run(tmp_path / "b" / "best").step in (3, 6, 9, 12)
    (path,) = (tmp_path / "b" / "best" / "checkpoints").iterdir()
    assert load_model(path).network is not None


def test_trackers_of_the_configuration_are_told(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def tracker(workdir, config):\n"
        "    file = open(workdir / 'mine.txt', 'a')\n"
        "    def tell(step, values):\n"
        "        print(step, *sorted(values), file=file, flush=True)\n"
        "    tell.close = file.close\n"
        "    return tell\n"
    )
    words = f"--config.training.trackers={tmp_path / 'mine.py'}:tracker"
    assert train(tmp_path / "run", *WATCHED, words) == 0
    lines = (tmp_path / "run" / "mine.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [2, 3, 4, 6, 6, 8, 9, 10, 12, 12]
    assert lines[0] == "2 grad_norm learning_rate loss seconds"
    assert lines[1].startswith("3 held_out/log_snr_")
    # what a checkpoint alone names is not imported
    assert runs.open_run(tmp_path / "run").config.training.trackers == ""
    more = {"training.num_steps": 14}
    with pytest.warns(UserWarning, match="nothing that a file names is imported"):
        runs.train_run(tmp_path / "run", None, more)
    assert len((tmp_path / "run" / "mine.txt").read_text().splitlines()) == len(lines)


def test_a_run_without_gain_stays_at_its_end(tmp_path, capsys):
    words = [f"--config.{RATE}=1e-30", "--config.training.evaluate_every=2", "--config.training.patience=2"]
    for _ in range(2):
        assert train(tmp_path, *words) == 0
        assert "trained 6 steps" in capsys.readouterr().out
    assert train(tmp_path, *words, "--config.training.patience=0") == 0
    assert "trained 12 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_changed_field_must_be_allowed_and_is_written_down(tmp_path, capsys):
    assert train(tmp_path, "--config.training.num_steps=5") == 0
    changed = [f"--config.{RATE}=0.01", "--config.training.batch_size=8"]
    assert train(tmp_path, *changed) == 2
    assert f"--allow={RATE},training.batch_size" in capsys.readouterr().err
    assert train(tmp_path, *changed, f"--allow={RATE}") == 2
    assert "--allow=training.batch_size" in capsys.readouterr().err
    allow = f"--allow={RATE},config.training.batch_size"
    assert train(tmp_path, *changed, allow, "--config.training.num_steps=5") == 2
    assert "nothing is left to train under the new" in capsys.readouterr().err
    assert train(tmp_path, *changed, allow) == 0
    written = f"{RATE}=0.001 until step 5; training.batch_size=16 until step 5"
    assert latest_checkpoint(tmp_path).config["training"]["changes"] == written
    assert json.loads((tmp_path / "config.json").read_text())["training"]["changes"] == written
    assert latest_checkpoint(tmp_path).run["optimization"]["learning_rate"] == 0.01
    run = runs.open_run(tmp_path)
    assert (run.step, run.config.optimization.learning_rate, run.config.training.batch_size) == (12, 0.01, 8)
    # the same command again, and one that goes on by itself
    assert train(tmp_path, *changed, allow) == 0
    assert train(tmp_path) == 2
    assert cli.main(["train", f"--workdir={tmp_path}", "--config.training.num_steps=14"]) == 0
    assert latest_checkpoint(tmp_path).config["training"]["changes"] == written
    again = [f"--config.{RATE}=0.002", "--config.training.num_steps=16", f"--allow={RATE}"]
    assert cli.main(["train", f"--workdir={tmp_path}", *again]) == 0
    assert (
        latest_checkpoint(tmp_path).config["training"]["changes"] == f"{written}; {RATE}=0.01 until step 14"
    )


@pytest.mark.parametrize("field", ["model.width", "seed", "nothing", "optimization.ema_profile"])
def test_what_decides_the_network_cannot_be_allowed(tmp_path, field, capsys):
    assert train(tmp_path, f"--allow={field}") == 2
    assert f"allow must name fields among {RATE}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config.training.keep_best=true"], "add --config.training.evaluate_every=500"),
        (["--config.training.patience=3"], "add --config.training.evaluate_every=500"),
        (["--config.training.spike_factor=0.5"], "must be above 1, or 0, got 0.5"),
        (["--config.optimization.schedule=cosine"], "decay_steps must be the number of updates"),
        (["--config.optimization.schedule=cos"], "did you mean 'cosine'?"),
        (["--config.training.trackers=tensorbord"], "must be tensorboard or the path of a function"),
    ],
)
def test_wrong_fields_get_sentences(tmp_path, words, sentence, capsys):
    assert train(tmp_path, *words) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_every_field_that_may_change_exists():
    config = load_config("ring")
    for path in runs.ALLOWED:
        section, _, name = path.partition(".")
        assert name in config[section]
