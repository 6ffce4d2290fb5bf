"""The command line: the whole path on tiny data, one sentence for every mistake, and exit codes."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sde_toolkit import cli, runs
from sde_toolkit.config.loading import load_config
from sde_toolkit.lab import load_records
from sde_toolkit.training.checkpoint import checkpoint_paths
from sde_toolkit.utils.files import WorkdirLock

TINY = [
    "--config.model.width=8",
    "--config.model.depth=1",
    "--config.data.num_train=64",
    "--config.data.num_test=40",
    "--config.training.num_steps=12",
    "--config.training.batch_size=16",
    "--config.likelihood.rtol=1e-2",
    "--config.likelihood.num_examples=5",
    "--config.comparison.num_samples=30",
    "--config.comparison.num_steps=2,3",
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "ring"
    assert cli.main(["train", "--config=ring", f"--workdir={path}", *TINY]) == 0
    return path


def test_train_says_where_and_reuses(workdir, capsys):
    assert cli.main(["train", f"--workdir={workdir}"]) == 0
    shown = capsys.readouterr()
    assert "reusing the checkpoint at step 12" in shown.err
    assert str(checkpoint_paths(workdir)[-1]) in shown.out


def test_sample_writes_arrays_and_a_picture(workdir, capsys):
    words = [
        "sample",
        f"--workdir={workdir}",
        "--sampler=heun",
        "--num-steps=3",
        "--num_samples",
        "7",
        "--seed=5",
    ]
    assert cli.main(words) == 0
    paths = re.findall(r"^(?:samples|picture) +(.*)$", capsys.readouterr().out, flags=re.M)
    assert [os.path.basename(path) for path in paths] == ["heun-3-seed5.npz", "heun-3-seed5.png"]
    with np.load(paths[0], allow_pickle=False) as arrays:
        assert arrays["x"].shape == (7, 2)
        note = json.loads(str(arrays["note"]))
    assert (note["seed"], note["nfe"]) == (5, 7.0)
    with open(paths[1], "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_default_sampler_has_a_name(workdir, capsys, tmp_path):
    words = [f"--workdir={workdir}", f"--output={tmp_path}"]
    assert cli.main(["sample", *words, "--sampler=default", "--num_steps=20", "--num_samples=3"]) == 0
    shown = capsys.readouterr()
    assert "3 samples by default-20: 20 network evaluations each" in shown.out
    assert "warning" not in shown.err
    with np.load(tmp_path / "samples" / "default-20-seed0.npz", allow_pickle=False) as arrays:
        assert arrays["x"].shape == (3, 2)
        assert json.loads(str(arrays["note"]))["settings"]["moments"] == "full"
    words = ["compare", *words, "--samplers=default,ddim", "--num_steps=2,4", "--metrics=energy"]
    assert cli.main(words) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[2:6]]
    assert rows == [["default", "2", "2"], ["default", "4", "4"], ["ddim", "2", "3"], ["ddim", "4", "5"]]
    assert cli.main(words) == 0
    assert "reused 4 of 4 entries" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("start", ["own", "prior", "moments"])
def test_the_start_is_an_option_of_every_sampler(start, workdir, tmp_path):
    for sampler, own in (("default", "moments"), ("ddim", "prior"), ("adaptive_sde", "prior")):
        words = ["sample", f"--workdir={workdir}", f"--sampler={sampler}", f"--output={tmp_path}"]
        assert cli.main([*words, "--num_samples=2", f"--config.sampling.start={start}"]) == 0
        (path,) = tmp_path.glob(f"samples/{sampler}*.npz")
        with np.load(path, allow_pickle=False) as arrays:
            used = json.loads(str(arrays["note"]))["settings"].get("start", "prior")
        assert used == (own if start == "own" else start)


def test_options_without_effect_are_told(workdir, capsys, tmp_path):
    words = ["sample", f"--workdir={workdir}", "--sampler=dopri5", "--num_steps=3", f"--output={tmp_path}"]
    assert cli.main([*words, "--num_samples=2", "--config.sampling.rtol=0.1"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("warning") == 1
    assert "num_steps has no effect on the sampler dopri5" in shown.err
    assert (tmp_path / "samples" / "dopri5-rtol0.1-seed0.npz").is_file()


def test_likelihood_is_computed_once(workdir, capsys):
    assert cli.main(["likelihood", f"--workdir={workdir}", "--split=test"]) == 0
    shown = capsys.readouterr()
    first = shown.out
    assert re.search(r"cost: 5 samples x \d+ evaluations x \(1 \+ 2 derivatives\) = ", shown.err)
    assert re.search(r"5/5 .*samples", shown.err)
    assert re.search(r"test data: -?[\d.]+ ± [\d.]+ bits/dim \(5 examples", first)
    assert cli.main(["likelihood", f"--workdir={workdir}", "--split=test"]) == 0
    assert capsys.readouterr().out == "reused: " + first
    assert cli.main(["likelihood", f"--workdir={workdir}", "--num_examples=4"]) == 0
    assert "(4 examples" in capsys.readouterr().out


@pytest.mark.slow
def test_classify_prints_and_keeps_how_good_it_is(workdir, capsys, tmp_path):
    run = f"--workdir={tmp_path / 'classes'}"
    assert cli.main(["train", "--config=ring", run, *TINY, "--config.model.num_classes=8"]) == 0
    capsys.readouterr()
    for split, count in (("test", 5), ("all", 6)):
        assert cli.main(["classify", run, f"--split={split}", f"--num_examples={count}"]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^accuracy +[\d.]+", shown, flags=re.M)
        written = json.loads((tmp_path / "classes" / f"classification-{split}.json").read_text())
        assert len(written["probabilities"]) == len(written["labels"]) == count
        assert len(written["probabilities"][0]) == 8
    assert cli.main(["classify", f"--workdir={workdir}"]) == 2
    assert "needs a network with classes" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_prints_a_table_and_writes_a_page(workdir, capsys):
    words = [
        "compare",
        f"--workdir={workdir}",
        "--samplers=ddim,dopri5",
        "--num_steps=2,4",
        "--metrics=energy",
    ]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    rows = [line.split()[:3] for line in shown.out.splitlines()[2:5]]
    assert rows == [["ddim", "2", "3"], ["ddim", "4", "5"], ["dopri5", "rtol", "0.001"]]
    page = (workdir / "report.html").read_text()
    assert "sde-toolkit" in page
    assert "data:image/png;base64," in page
    assert cli.main([*words[:-2], "--num_steps=2,4,6", "--metrics=energy"]) == 0
    shown = capsys.readouterr()
    assert "reused 3 of 4 entries" in shown.err
    assert json.loads((workdir / "records.json").read_text())["records"]


@pytest.mark.slow
def test_demo_does_everything_and_then_reuses_it(tmp_path, capsys):
    words = ["demo", f"--workdir={tmp_path / 'demo'}", "--config=ring", *TINY]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    for name in (
        "report.html",
        "records.json",
        "likelihood-test.json",
        "figures/quality.png",
        "figures/samples.png",
    ):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    for part in (
        "energy distance",
        "bits/dim",
        "20 real examples",
        "two halves of the real data",
        "report.html",
        "total time",
    ):
        assert part in first
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "reusing the checkpoint at step 12" in shown.err
    assert "reused 9 of 9 entries" in shown.err
    assert shown.out.splitlines()[:11] == first.splitlines()[:11]


def test_export_and_use_without_a_workdir(workdir, tmp_path, capsys, monkeypatch):
    path = tmp_path / "ring.safetensors"
    assert cli.main(["export", f"--workdir={workdir}", f"--output={path}"]) == 0
    assert "exported step 12" in capsys.readouterr().out
    monkeypatch.setattr("sde_toolkit.runs.store.shipped_path", lambda name: tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "--config=ring", *TINY, "--num_samples=3", "--num_steps=2"]) == 0
    assert (tmp_path / "sde-toolkit-output" / "samples" / "default-2-seed0.npz").is_file()


def test_configs_are_listed_and_shown(capsys):
    assert cli.main(["configs"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[0] == "checkerboard"
    assert cli.main(["configs", "ring", "--config.seed=3"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train --config=digit --workdir=X", "did you mean 'digits'"),
        ("train --workdir=X", "add --config=digits"),
        ("train --config=ring --workdir=X --config.training.num_step=3", "did you mean 'num_steps'"),
        (
            "train --config=ring --workdir=X --config.training.num_steps=0",
            "config.training.num_steps must be at least 1, got 0",
        ),
        ("train --config=ring --workdir=X --config.training.num_steps", "needs a value"),
        ("sample --workdir=X", "workdir X does not exist; run `sde-toolkit train"),
        ("sample --workdir=X --config=ring", "not both"),
        ("sample --workdir=RUN --sampler=dimm", "did you mean 'ddim'"),
        ("sample --workdir=RUN --num_steps=0", "num_steps must be at least 1, got 0"),
        ("sample --workdir=RUN --num_samples=0", "got 0"),
        ("sample --workdir=RUN --config.sampling.t_min=1", "t_min must be smaller than T"),
        ("sample --workdir=RUN --sampler=ddim --config.sampling.eta=2", "eta"),
        ("sample --workdir=RUN --config.sampling.start=noise", "valid: moments, own, prior"),
        ("sample --workdir=RUN --config.sde.name=ve", "trained with another config"),
        ("compare --workdir=RUN --metrics=frechet", "only the digits have"),
        ("compare --workdir=RUN --samplers=ddim,huen", "did you mean 'heun'"),
        ("compare --workdir=RUN --num_steps=5,0", "num_steps must be at least 1, got 0"),
        ("compare --workdir=RUN --seeds=1,1", "seeds must differ"),
        ("likelihood --workdir=RUN --split=tset", "did you mean 'test'"),
        ("likelihood --workdir=RUN --config.likelihood.t_min=0", "sigma"),
        ("configs digitss", "did you mean 'digits'"),
    ],
)
def test_mistakes_are_one_sentence_with_exit_code_2(workdir, words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.replace("RUN", str(workdir)).split()) == 2
    shown = capsys.readouterr()
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith("sde-toolkit: error: ")
    assert sentence in last
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "required: VERB"),
        ("smaple", "invalid choice: 'smaple'"),
        ("sample --num_step=3", "unknown argument --num_step; did you mean --num_steps?"),
        ("sample --num_steps=ten", "invalid int value: 'ten'"),
        ("train --config=ring", "required: --workdir"),
    ],
)
def test_mistakes_in_the_call(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert len(shown.strip().splitlines()) == 1


def test_debug_shows_the_traceback(monkeypatch):
    with pytest.raises(ValueError, match="does not exist"):
        cli.main(["sample", "--workdir=nowhere", "--debug"])
    monkeypatch.setenv("SDE_TOOLKIT_DEBUG", "1")
    with pytest.raises(ValueError, match="does not exist"):
        cli.main(["sample", "--workdir=nowhere"])


VERBS = [
    "train",
    "sample",
    "inpaint",
    "restore",
    "impute",
    "interpolate",
    "likelihood",
    "classify",
    "compare",
    "report",
    "animate",
    "demo",
    "ema",
    "export",
    "configs",
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_of_a_verbs_help_parses(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    _, _, shown = re.split(r"^(examples?):$", capsys.readouterr().out, flags=re.M)
    lines = [line for line in shown.split("\n\n")[0].splitlines() if line]
    commands = [command.split("#")[0].split(">")[0] for line in lines for command in line.split("&&")]
    assert all(line.startswith(f"  sde-toolkit {verb}") for line in lines)
    for command in commands:
        program, *words = shlex.split(command)
        plain, overrides = cli.split_overrides(words)
        assert program == "sde-toolkit"
        assert cli.build_parser().parse_args(plain).verb == words[0]
        load_config("digits", overrides)


def test_help_lists_the_verbs(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = re.findall(r"^    (\w+)(?= |$)", capsys.readouterr().out, flags=re.M)
    assert shown == VERBS


def test_overrides_are_separated_from_flags():
    plain, overrides = cli.split_overrides(
        ["train", "--config.a.b=x=y", "--config.c.d", "2", "--num-steps", "3"]
    )
    assert plain == ["train", "--num_steps", "3"]
    assert overrides == {"a.b": "x=y", "c.d": "2"}


def test_workdir_in_use_is_one_sentence(workdir, capsys):
    with WorkdirLock(workdir):
        assert cli.main(["train", f"--workdir={workdir}"]) == 2
    assert "use" in capsys.readouterr().err


def test_module_runs_like_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "sde_toolkit", "configs"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "digits" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_to_stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupt_says_what_was_saved(tmp_path, request_to_stop):
    words = [
        sys.executable,
        "-m",
        "sde_toolkit",
        "train",
        "--config=ring",
        f"--workdir={tmp_path / 'run'}",
        *TINY,
    ]
    long = [*words, "--config.training.num_steps=1000000", "--config.training.log_every=1"]
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs ignore it
    with subprocess.Popen(long, stderr=subprocess.PIPE, text=True, preexec_fn=default) as process:
        history = tmp_path / "run" / "history.csv"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (history.exists() and len(history.read_text().split()) > 5):
            time.sleep(0.05)
        process.send_signal(request_to_stop)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = int(re.search(r"(\d+) steps are saved in", shown).group(1))
    assert "Traceback" not in shown
    assert runs.saved_step(tmp_path / "run") == saved > 0


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "classes"
    # a noise that depends on the class after few updates; a residual still is next to nothing then
    fields = ["model.num_classes=8", "model.predicts=noise", "loss.weighting=noise"]
    words = ["train", "--config=ring", f"--workdir={path}", *TINY]
    assert cli.main([*words, *(f"--config.{field}" for field in fields)]) == 0
    return path


@pytest.mark.slow
def test_samples_of_one_class_and_of_classes_in_turn(classes, capsys, tmp_path):
    words = ["sample", f"--workdir={classes}", f"--output={tmp_path}", "--num_samples=5", "--num_steps=3"]
    for more in (["--label=2"], ["--label=6"], ["--labels=2,6"], []):
        assert cli.main([*words, *more]) == 0
    found = {}
    for name in ("-class2", "-class6", "-classes2-6", ""):
        found[name], note = runs.load_samples(tmp_path / "samples" / f"default-3{name}-seed0.npz")
        found[name + "?"] = note["condition"]
    assert [found[name] for name in ("-class2?", "-class6?", "-classes2-6?", "?")] == [
        2,
        6,
        [2, 6, 2, 6, 2],
        None,
    ]
    mixed = torch.where(torch.arange(5)[:, None] % 2 == 0, found["-class2"], found["-class6"])
    torch.testing.assert_close(found["-classes2-6"], mixed, rtol=0, atol=1e-5)
    assert float((found["-class2"] - found["-class6"]).abs().max()) > 1e-3


@pytest.mark.slow
def test_likelihood_and_comparison_of_one_class(classes, capsys):
    words = ["likelihood", f"--workdir={classes}", "--split=all", "--num_examples=4"]
    assert cli.main([*words, "--label=1"]) == 0
    first = capsys.readouterr().out
    assert "all data of class 1, given the class:" in first
    assert "likelihood-all-class1.json" in first
    assert cli.main([*words, "--label=1"]) == 0
    assert capsys.readouterr().out == "reused: " + first
    words = ["compare", f"--workdir={classes}", "--samplers=ddim", "--num_steps=2", "--metrics=energy"]
    words += ["--config.likelihood.split=all", "--config.comparison.real=all"]
    assert cli.main([*words, "--label=1"]) == 0
    assert "class 1, under vp" in (classes / "report.html").read_text()
    assert cli.main([*words, "--label=2"]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--label=1"]) == 0
    assert "reused 1 of 1 entries" in capsys.readouterr().err
    records, references = load_records(classes / "records.json")
    assert [record.settings["condition"] for record in records] == [1, 2]
    assert [record.settings["metric.class"] for record in records] == [1, 2]
    assert {reference.settings["class"] for reference in references} == {1, 2}
    assert (classes / "samples" / "ddim-2-class1-seed0.npz").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sample --workdir=RUN --label=1", "a class needs a network with classes, got one without"),
        ("sample --workdir=RUN --labels=1,2", "a class needs a network with classes"),
        ("likelihood --workdir=RUN --label=1", "a class needs a network with classes"),
        ("compare --workdir=RUN --label=1", "a class needs a network with classes"),
        ("sample --workdir=CLASSES --label=9", "class labels must be among 0 .. 7, or 8 for none, got 9"),
        ("sample --workdir=CLASSES --labels=0,1 --num_samples=0", "got 0"),
        ("likelihood --workdir=CLASSES --label=8", "label must be a class of the data 'ring', one of [0, 1"),
        ("compare --workdir=CLASSES --label=-1", "label must be a class of the data 'ring'"),
    ],
)
def test_classes_that_do_not_exist_are_one_sentence(workdir, classes, words, sentence, capsys):
    words = words.replace("RUN", str(workdir)).replace("CLASSES", str(classes)).split()
    assert cli.main(words) == 2
    assert sentence in capsys.readouterr().err


def test_labels_are_integers_and_exclude_a_label(capsys):
    for words, sentence in (("--labels=1,x", "got '1,x'"), ("--labels=1 --label=2", "not allowed with")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sample", *words.split()])
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
