"""Inverse problems from the command line."""

import csv
import json
import re

import numpy as np
import pytest

import sde_toolkit as sde
from sde_toolkit import cli

QUICK = ["--num_steps=3", "--draws=3"]


def shell(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


def refused(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two images for the shipped model of digits, as files: whole, a mask, and coarse."""
    folder = tmp_path_factory.mktemp("digits")
    x = np.random.default_rng(0).integers(0, 17, size=(2, 8, 8))
    mask = np.ones((8, 8), bool)
    mask[2:5, 1:7] = False
    np.save(folder / "x.npy", x)
    np.save(folder / "mask.npy", mask)
    np.save(folder / "coarse.npy", x.reshape(2, 4, 2, 4, 2).mean((2, 4)))
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run trained on a table for a few steps, and a table with gaps."""
    folder = tmp_path_factory.mktemp("table")
    z = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 100] + [0, 70, 0]
    with open(folder / "whole.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], *z.tolist()])
    with open(folder / "gaps.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], [0.5, "", 20.0], ["NA", 65.0, 1.0], [1.0, 80.0, 3.0]])
    shell("train", "--config=vectors", f"--data={folder / 'whole.csv'}", f"--workdir={folder / 'run'}",
          "--config.training.num_steps=4", "--config.training.batch_size=8", "--config.model.width=8",
          "--config.model.depth=1")  # fmt: skip
    return folder


def test_gaps_of_a_table_are_filled(table, capsys):
    run, gaps, out = table / "run", table / "gaps.csv", table / "filled.csv"
    shell("impute", f"--workdir={run}", f"--input={gaps}", f"--output={out}", *QUICK)
    assert "2 gaps of 3 rows by 3 draws" in capsys.readouterr().out
    lines = list(csv.reader(out.read_text().splitlines()))
    assert lines[0] == ["a", "b", "c"]
    assert [float(lines[1][0]), float(lines[1][2]), float(lines[2][1])] == [0.5, 20.0, 65.0]
    told = list(csv.DictReader((table / "filled-intervals.csv").read_text().splitlines()))
    assert [(row["row"], row["column"]) for row in told] == [("0", "b"), ("1", "a")]
    assert float(told[0]["low"]) <= float(told[0]["mean"]) <= float(told[0]["high"])
    assert float(told[0]["mean"]) == pytest.approx(float(lines[1][1]))
    shell("impute", f"--workdir={run}", f"--input={gaps}", f"--output={table / 'all.npz'}", *QUICK)
    with np.load(table / "all.npz") as arrays:
        assert arrays["draws"].shape == (3, 3, 3)
        assert json.loads(str(arrays["note"]))["level"] == pytest.approx(0.5)


def test_mistakes_of_impute_are_sentences(table, capsys):
    words = ["impute", f"--workdir={table / 'run'}", f"--output={table / 'o.csv'}"]
    for more, told in (
        ([f"--input={table / 'whole.csv'}"], "input must have missing entries"),
        ([f"--input={table / 'gaps.csv'}", "--method=magic"], "method must be one of"),
        ([f"--input={table / 'gaps.csv'}", "--method=dps(step=1)"], "has no option 'step'"),
        ([f"--input={table / 'gaps.csv'}", "--draws=1"], "draws must be at least 2"),
        ([f"--input={table / 'gaps.csv'}", "--columns=a,b"], "rows must have shape (n, 3)"),
        ([f"--input={table / 'gaps.csv'}", "--output=o.txt"], "must end in .csv or .npz"),
        ([f"--input={table / 'no.csv'}"], "does not exist"),
    ):
        assert told in refused(capsys, *words, *more)


def test_boxes_and_masks_are_filled(digits, capsys):
    x, out = np.load(digits / "x.npy"), digits / "new" / "box.npz"
    shell("inpaint", f"--input={digits / 'x.npy'}", "--box=2,1,3,6", f"--output={out}", *QUICK)
    assert "2 examples by 3 draws, 46 of 64 features known" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    with np.load(out) as box:
        assert box["draws"].shape == (3, 2, 1, 8, 8)
        assert box["mean"].shape == box["low"].shape == (2, 1, 8, 8)
        hidden = np.isnan(box["observed"][:, 0])
        assert (hidden == ~np.load(digits / "mask.npy")).all()
        assert (box["observed"][:, 0][~hidden] == x[~hidden]).all()
        draws = box["draws"]
    out = digits / "mask.npz"
    shell(
        "inpaint", f"--input={digits / 'x.npy'}", f"--mask={digits / 'mask.npy'}", f"--output={out}", *QUICK
    )
    with np.load(out) as mask:
        assert (mask["draws"] == draws).all()


def test_examples_held_out_are_taken_without_a_file(digits, capsys):
    out, wanted = digits / "held.npz", sde.data.digits().test[:2].numpy()
    shell("inpaint", "--held_out=2", "--box=2,1,3,6", f"--output={out}", *QUICK)
    assert re.search(r"^coverage   [01]\.\d{3} \+- ", capsys.readouterr().out, re.M)
    with np.load(out) as arrays:
        assert (arrays["clean"] == wanted).all()
    shell("restore", "--task=denoise", "--std=1", "--held_out=2", f"--output={out}", *QUICK)
    assert re.search(r"^PSNR       -?\d+\.\d\d \+- ", capsys.readouterr().out, re.M)
    with np.load(out) as arrays:
        assert (arrays["clean"] == wanted).all()
    words = ["inpaint", "--box=2,1,3,6", f"--output={out}"]
    assert "held_out must be from 1 to 297" in refused(capsys, *words, "--held_out=0")
    told = refused(capsys, *words, "--held_out=2", "--problem=ring")
    assert "box is of images" in told or "held_out must be left out" in told


def test_ranks_of_examples_held_out_are_tested(digits, capsys):
    """And refused before the work where there are too few, or none that are clean, or dependent draws."""
    out = digits / "ranks.npz"
    shell("inpaint", "--held_out=40", "--box=2,1,3,6", "--calibrate", f"--output={out}", *QUICK)
    assert re.search(
        r"^ranks      uniform in every feature with p-value \S+ \(SBC\), in distance with \S+ \(TARP\); 40",
        capsys.readouterr().out,
        re.M,
    )
    with np.load(out) as arrays:
        K = len(arrays["draws"])
        assert arrays["ranks"].shape == (40, 18)  # the box alone
        assert arrays["distance_ranks"].shape == (40,)
        assert 0 <= arrays["ranks"].min() <= arrays["ranks"].max() <= K
    words = [f"--output={out}", "--calibrate", *QUICK]
    box = ["inpaint", "--box=2,1,3,6", *words]
    assert "calibrate needs 40 examples or more, got 39" in refused(capsys, *box, "--held_out=39")
    assert "calibrate needs clean examples" in refused(capsys, *box, f"--input={digits / 'x.npy'}")
    assert "independent draws" in refused(capsys, *box, "--held_out=40", "--method=smc")
    told = refused(capsys, "restore", "--task=denoise", "--std=1", f"--input={digits / 'x.npy'}", *words)
    assert "calibrate needs clean examples" in told


@pytest.mark.parametrize(
    ("task", "more", "shape"),
    [
        ("superresolution", ["--factor=4"], (1, 2, 2)),
        ("deblur", ["--width=.7"], (1, 8, 8)),
        ("sense", [], (16,)),
        ("fourier", [], (64,)),
        ("denoise", [], (1, 8, 8)),
    ],
)
def test_clean_examples_are_degraded_and_restored(task, more, shape, digits, capsys):
    out = digits / f"{task}.npz"
    shell("restore", f"--task={task}", "--degrade", "--std=1", f"--input={digits / 'x.npy'}",
          f"--output={out}", *QUICK, *more)  # fmt: skip
    told = capsys.readouterr().out
    assert re.search(r"^PSNR       -?\d+\.\d\d \+- \d+\.\d\d dB .* range of 16$", told, re.M)
    assert re.search(r"^coverage   [01]\.\d{3} \+- [01]\.\d{3} of the .* is 0\.5, or more", told, re.M)
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    with np.load(out) as arrays:
        assert arrays["observed"].shape == (2, *shape)
        assert arrays["draws"].shape == (3, 2, 1, 8, 8)
        assert (arrays["clean"][:, 0] == np.load(digits / "x.npy")).all()


def test_observations_are_restored(digits, capsys):
    out = digits / "fine.npz"
    shell("restore", "--task=superresolution", f"--input={digits / 'coarse.npy'}", f"--output={out}", *QUICK)
    told = capsys.readouterr().out
    assert "16 numbers observed of each" in told
    assert "PSNR" not in told
    with np.load(out) as arrays:
        assert arrays["draws"].shape == (3, 2, 1, 8, 8)
        assert "clean" not in arrays


def test_rows_of_a_table_are_denoised_without_a_picture(table):
    np.save(table / "rows.npy", np.array([[0.0, 70.0, 1.0], [1.0, 75.0, 50.0]]))
    out = table / "rows.npz"
    shell("restore", "--task=denoise", "--std=.1", f"--workdir={table / 'run'}",
          f"--input={table / 'rows.npy'}", f"--output={out}", *QUICK)  # fmt: skip
    assert not out.with_suffix(".png").exists()
    with np.load(out) as arrays:
        assert arrays["draws"].shape == (3, 2, 3)


def test_mistakes_of_inpaint_are_sentences(digits, table, capsys):
    words = ["inpaint", f"--input={digits / 'x.npy'}", f"--output={digits / 'o.npz'}"]
    for more, told in (
        (["--box=2,2,4"], "box must be TOP,LEFT,HEIGHT,WIDTH"),
        (["--box=6,6,4,4"], "box must lie in the image of 8 x 8 pixels"),
        (["--box=0,0,8,8"], "box must leave a pixel"),
        (["--box=0,0,1,1", f"--workdir={table / 'run'}"], "box is of images"),
        ([f"--mask={digits / 'x.npy'}"], "mask must hold true where a pixel is known"),
        ([f"--mask={digits / 'no.npy'}"], "does not exist"),
        (["--box=0,0,2,2", f"--input={digits / 'coarse.npy'}"], "images must have shape (1, 8, 8)"),
        (["--box=0,0,2,2", "--output=o.csv"], "output must end in .npz"),
    ):
        assert told in refused(capsys, *words, *more)
    assert not (digits / "o.npz").exists()


def test_mistakes_of_restore_are_sentences(digits, capsys):
    words = ["restore", f"--input={digits / 'x.npy'}", f"--output={digits / 'o.npz'}"]
    for more, told in (
        (["--task=sharpen"], "task must be one of superresolution"),
        (["--task=denoise"], "std must be positive to denoise"),
        (["--task=deblur", "--factor=2"], "factor is of the task superresolution and fourier"),
        (["--task=superresolution", "--factor=3"], "factor must divide the sides"),
        (["--task=superresolution", "--factor=-1"], "factor must be positive"),
        (["--task=colourise"], "colourise needs a model of images of several channels"),
        (["--task=superresolution"], "y must have shape (1, 4, 4)"),
        (
            ["--task=deblur", "--degrade", f"--input={digits / 'coarse.npy'}"],
            "input must hold clean examples",
        ),
        (["--task=deblur", "--std=-1"], "std must be a finite number >= 0"),
    ):
        assert told in refused(capsys, *words, *more)
    assert not (digits / "o.npz").exists()


def test_examples_are_interpolated(digits, tmp_path, capsys):
    out = tmp_path / "path.npz"
    words = ["interpolate", "--config=digits_classes", f"--input={digits / 'x.npy'}", f"--output={out}"]
    shell(*words, "--points=3", "--label=3", "--guidance_scale=1.5", "--config.likelihood.num_steps=6",
          "--config.likelihood.method=ab4")  # fmt: skip
    with np.load(out) as arrays:
        assert arrays["x"].shape == arrays["data"].shape == (1, 3, 1, 8, 8)
        note = json.loads(str(arrays["note"]))
    assert (note["label"], note["guidance_scale"]) == (3, 1.5)
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    assert "1 pairs by 3 points" in capsys.readouterr().out
    assert "points must be at least 2" in refused(capsys, *words, "--points=1")
    assert "guidance_scale needs a class" in refused(capsys, *words, "--guidance_scale=2")
    assert "t_end must lie above" in refused(capsys, *words, "--t_end=7")
    np.save(tmp_path / "one.npy", np.zeros((1, 8, 8), int))
    assert "two examples or more, got 1" in refused(capsys, *words, f"--input={tmp_path / 'one.npy'}")


def test_interpolated_examples_share_what_is_given(digits, tmp_path, capsys):
    out, known = tmp_path / "path.npz", np.load(digits / "x.npy")[:1].astype(float)
    known[:, 3:] = np.nan
    np.save(tmp_path / "top.npy", known)
    words = ["interpolate", f"--input={digits / 'x.npy'}", f"--output={out}", "--points=3"]
    shell(*words, f"--given={tmp_path / 'top.npy'}", "--config.likelihood.num_steps=12",
          "--config.likelihood.method=ab4")  # fmt: skip
    with np.load(out) as arrays:
        assert np.abs(arrays["data"][..., :3, :] - known[:, :3]).max() <= 1  # grey levels are rounded
        assert "top.npy" in json.loads(str(arrays["note"]))["given"]
    assert "give --given" in refused(capsys, *words, "--std=1")
    told = refused(capsys, *words, f"--given={tmp_path / 'top.npy'}", "--method=gibbs")
    assert "method must guide the flow by its prediction alone" in told
    assert "given must hold one example, with shape (1, ...), got (2, " in refused(
        capsys, *words, f"--given={digits / 'x.npy'}"
    )
    np.save(tmp_path / "none.npy", np.full((1, 8, 8), np.nan))
    assert "nan alone" in refused(capsys, *words, f"--given={tmp_path / 'none.npy'}")
    np.save(tmp_path / "small.npy", np.zeros((1, 4, 4)))
    assert "must" in refused(capsys, *words, f"--given={tmp_path / 'small.npy'}")


def test_rows_of_tables_are_drawn_by_particles_unless_a_sampler_or_method_is_named(table, tmp_path):
    out, words = tmp_path / "out.npz", ["impute", f"--input={table / 'gaps.csv'}", *QUICK]

    def sampler(*more: str) -> str:
        shell(*words, f"--workdir={table / 'run'}", f"--output={out}", *more)
        with np.load(out) as arrays:
            return json.loads(str(arrays["note"]))["settings"]["sampler"]

    assert sampler() == "twisted_smc"
    assert sampler("--sampler=heun") == sampler("--config.sampling.sampler=heun") == "heun"
    assert sampler("--method=mmps") == "dpm_solver_pp"


def test_particles_restore_examples(digits, tmp_path, capsys):
    out = tmp_path / "out.npz"
    words = ["inpaint", f"--input={digits / 'x.npy'}", "--box=2,2,4,4", f"--output={out}", "--std=1"]
    shell(*words, "--method=smc(particles=4, kernel=moments)", *QUICK)
    assert "2 examples by 3 draws" in capsys.readouterr().out
    with np.load(out) as arrays:
        assert arrays["draws"].shape == (3, 2, 1, 8, 8)
        assert "particles=4" in str(arrays["note"])
    shell(*words, "--method=gibbs(rho=.3)", "--num_steps=2", "--draws=2")
    with np.load(out) as arrays:
        assert "split_gibbs" in str(arrays["note"])
    assert "sampler must be left out" in refused(capsys, *words, "--method=smc", "--sampler=ddim")
    assert "particles must be an integer >= 1" in refused(capsys, *words, "--method=smc(particles=0)")
