"""What a stranger does to the command: broken files, impossible values, two at once, signals, no streams."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from sde_toolkit import cli, runs
from sde_toolkit.cli.common import printable
from sde_toolkit.cli.train import _stops_between_steps
from sde_toolkit.lab import Store, load_records

TINY = [
    *("--config.model.width=8", "--config.model.depth=1", "--config.model.num_frequencies=4"),
    *("--config.data.num_train=64", "--config.data.num_test=40"),
    *("--config.training.num_steps=12", "--config.training.batch_size=16", "--config.training.log_every=5"),
    *("--config.likelihood.rtol=1e-1", "--config.likelihood.num_examples=3"),
    *(
        "--config.comparison.num_samples=20",
        "--config.comparison.num_steps=2",
        "--config.comparison.samplers=ddim",
    ),
    "--config.comparison.metrics=energy",
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("holes") / "ring"
    assert cli.main(["train", "--config=ring", f"--workdir={path}", *TINY]) == 0
    return path


def sentence(words, capsys) -> str:
    """What the command says when it refuses; one line, without a traceback, on standard error."""
    capsys.readouterr()
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert "Traceback" not in shown
    return shown.strip().splitlines()[-1]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.json", '{"seed": ' + DEEP + "}", "deep.json"),
        ("huge.json", '{"seed": ' + "9" * 5000 + "}", "huge.json"),
        ("long.json", '{"seed": ' + "9" * 400 + "}", "config.seed must be at most"),
        ("float.json", '{"optimization": {"learning_rate": ' + "9" * 400 + "}}", "must be a finite number"),
        ("binary.json", b"\x80\x04\xff\xfe", "binary.json"),
        ("list.json", "[]", "must hold a JSON object"),
        ("null.json", '{"training": null}', "training"),
        ("syntax.py", "def get_config(:", "syntax.py, line 1"),
        ("imports.py", "\n\nimport no_such_module", "imports.py, line 3 cannot be run: ModuleNotFoundError"),
        ("exits.py", "raise SystemExit(0)", "exits.py, line 1 cannot be run: SystemExit"),
        ("none.py", "def get_config():\n    return None", "must return a ConfigDict"),
        (
            "fails.py",
            "def get_config():\n    return 1 / 0",
            "fails.py, line 2 cannot be run: ZeroDivisionError",
        ),
        ("nothing.py", "x = 1", "must define get_config()"),
        ("bytes.py", b"\xff\xfe\x00", "bytes.py"),
    ],
)
def test_broken_configurations_are_named(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in sentence(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --num_samples=" + "9" * 400, "config.sampling.num_samples must be at most"),
        ("sample --num_samples=1000000000000000", "num_samples must fit"),
        ("sample --num_samples=-3", "config.sampling.num_samples must be at least 1, got -3"),
        ("sample --seed=-1", "config.sampling.seed must be at least 0, got -1"),
        ("sample --config.sampling.t_min=1e999", "must be a finite number"),
        ("sample --config.sampling.num_steps=2.5", "config.sampling.num_steps must be an integer"),
        ("sample --sampler=ddim(eta=" + "(" * 5000 + ")", "must be a name"),
        ("sample --output=", "must be a path, got ''"),
        ("compare --num_samples=8", "config.comparison.num_samples must be at least 10, got 8"),
        ("compare --seeds=0,-1", "config.comparison.seeds must be at least 0, got -1"),
        ("compare --seeds=0,0", "config.comparison.seeds must differ from each other, got 0 twice"),
        ("compare --samplers=ddim,heun,ddim", "config.comparison.samplers must differ"),
        ("compare --num_steps=5,5", "config.comparison.num_steps must differ"),
        ("compare --metrics=energy,energy", "config.comparison.metrics must differ"),
        ("compare --num_samples=1000000000000000", "num_samples must fit"),
        ("likelihood --num_examples=-1", "config.likelihood.num_examples must be at least 0, got -1"),
        ("likelihood --config.likelihood.batch_size=0", "config.likelihood.batch_size must be at least 1"),
    ],
)
def test_impossible_values_are_refused_before_the_work(words, message, workdir, capsys):
    before = sorted(workdir.rglob("*"))
    assert message in sentence([*words.split(" ", 1), f"--workdir={workdir}"], capsys)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("betas", ["0.9", "0.9,0.99,0.999"])
def test_betas_are_two(betas, tmp_path, capsys):
    words = [
        "train",
        "--config=ring",
        f"--workdir={tmp_path / 'run'}",
        f"--config.optimization.betas={betas}",
    ]
    assert "config.optimization.betas must be two numbers" in sentence(words, capsys)


def test_an_empty_workdir_is_refused(capsys):
    for verb in ("train", "sample", "compare", "export", "demo"):
        assert "must be a path, got ''" in sentence([verb, "--workdir="], capsys)


ROW = {
    **{"sampler": "ddim", "num_steps": 2, "nfe": 3.0, "metric": "energy distance", "value": 1.0},
    **{"standard_error": 0.1, "seconds": 0.1, "num_samples": 20, "seeds": [0], "settings": {}},
}


@pytest.mark.parametrize(
    "content",
    [
        *(
            "null",
            "[]",
            "{}",
            "3",
            '{"records": null, "references": []}',
            '{"records": [null], "references": []}',
        ),
        DEEP,
        b"\x80\xff",
        *(
            json.dumps({"records": [{**ROW, key: value}], "references": []})
            for key, value in [
                ("value", float("nan")),
                ("value", None),
                ("seeds", None),
                ("seeds", []),
                ("settings", 3),
            ]
        ),
        json.dumps({"records": [{k: v for k, v in ROW.items() if k != "nfe"}], "references": []}),
        json.dumps({"records": [], "references": [{"metric": "energy"}]}),
    ],
)
def test_broken_records_are_named_and_kept(content, workdir, tmp_path, capsys):
    path = tmp_path / "records.json"
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(content)
    shown = sentence(["compare", f"--workdir={workdir}", f"--output={tmp_path}"], capsys)
    assert f"{path} is not a file of records" in shown
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    ["null", "[]", "{}", DEEP, b"\xff", '{"split": null}', '{"split": "test", "bits_per_dim": [null]}'],
)
def test_broken_likelihoods_are_named(content, workdir, tmp_path, capsys):
    path = tmp_path / "likelihood-test.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for verb in ("likelihood", "compare"):
        shown = sentence([verb, f"--workdir={workdir}", f"--output={tmp_path}"], capsys)
        assert f"{path} is not a file of likelihoods" in shown


@pytest.fixture(scope="module")
def likelihoods(workdir, tmp_path_factory):
    """What a run writes."""
    folder = tmp_path_factory.mktemp("likelihoods")
    assert cli.main(["likelihood", f"--workdir={workdir}", f"--output={folder}"]) == 0
    return json.loads((folder / "likelihood-test.json").read_text())


@pytest.mark.parametrize("key", ["bits_per_dim", "nfe", "seconds", "uniform", "budget", "bounds", "settings"])
@pytest.mark.parametrize("value", [None, [None], "x", [["a"]], float("nan")])
def test_likelihoods_with_a_wrong_part_are_refused_or_recomputed(
    key, value, workdir, likelihoods, tmp_path, capsys
):
    path = tmp_path / "likelihood-test.json"
    path.write_text(json.dumps({**likelihoods, key: value}))
    code = cli.main(["likelihood", f"--workdir={workdir}", f"--output={tmp_path}"])
    shown = capsys.readouterr()
    assert code == 0 or f"{path} is not a file of likelihoods" in shown.err


@pytest.mark.parametrize(
    "content",
    [
        b"step,loss\n" + b"9" * 200_000 + b",1\n",
        b"\xff\xfe\x00",
        b"step,loss,grad_norm,learning_rate,seconds\ninf,1,1,1,1\n",
    ],
)
def test_a_broken_history_is_left_out(content, tmp_path):
    (tmp_path / "history.csv").write_bytes(content)
    assert runs.read_history(tmp_path) == []


@pytest.mark.parametrize("name", ["records.json", "likelihood-test.json", "history.csv"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, workdir, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    if name == "history.csv":
        assert runs.read_history(tmp_path) == []
    else:
        shown = sentence(["compare", f"--workdir={workdir}", f"--output={tmp_path}"], capsys)
        assert "no ordinary file" in shown


def test_a_missing_output_directory_is_refused_before_the_work(workdir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for verb in ("sample", "compare", "likelihood"):
        assert "file" in sentence(
            [verb, f"--workdir={workdir}", f"--output={tmp_path / 'file' / 'x'}"], capsys
        )


@pytest.mark.slow
def test_two_comparisons_in_one_directory_lose_nothing(workdir, tmp_path):
    words = [sys.executable, "-m", "sde_toolkit", "compare", f"--workdir={workdir}", f"--output={tmp_path}"]
    both = [
        subprocess.Popen([*words, f"--samplers={name}", "--num_steps=2,3,4,5"], stdout=subprocess.DEVNULL)
        for name in ("ddim", "heun")
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    store = Store(tmp_path / "records.sqlite")
    records, references = store.records(), store.references()
    assert load_records(tmp_path / "records.json") == (records, references)
    assert sorted((r.sampler, r.num_steps) for r in records) == [
        (s, n) for s in ("ddim", "heun") for n in (2, 3, 4, 5)
    ]
    assert len(references) == 1


def test_history_is_the_same_after_interruptions(workdir, tmp_path):
    """Rows are means over steps on both sides of a stop; only the seconds differ."""
    stops = iter([3, 7, 8, 11])
    source, done = {**dict(w.removeprefix("--config.").split("=", 1) for w in TINY)}, False
    while not done:
        last = next(stops, 99)

        def stop(info, last=last):
            if info.step == last:
                raise KeyboardInterrupt

        try:
            runs.train_run(tmp_path / "run", "ring", source, on_step=stop)
            done = True
        except KeyboardInterrupt:
            pass
    plain = [{k: v for k, v in row.items() if k != "seconds"} for row in runs.read_history(workdir)]
    again = [{k: v for k, v in row.items() if k != "seconds"} for row in runs.read_history(tmp_path / "run")]
    assert again == plain
    assert [row["step"] for row in plain] == [5, 10]


def test_control_characters_are_not_passed_to_the_terminal(tmp_path, capsys, monkeypatch):
    assert printable("a\x1b[31mb\x07\u202ec\udc80é\n") == "a\\x1b[31mb\\x07\\u202ec\\udc80é\n"
    monkeypatch.chdir(tmp_path)
    for words in (["sample", "--workdir=no\x1b[2Jwhere"], ["sample", "--sampler=\x1b]0;x\x07"], ["\x1b[2J"]):
        shown = sentence(words, capsys)
        assert "\x1b" not in shown
        assert "\\x1b" in shown


def test_commands_for_reuse_are_quoted(workdir, tmp_path, capsys):
    run = tmp_path / "my run; echo"
    assert cli.main(["train", "--config=ring", f"--workdir={run}", *TINY]) == 0
    shown = capsys.readouterr().out
    command = re.search(r"^next +(.*)$", shown, flags=re.M).group(1)
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    assert words.stdout.splitlines() == ["sde-toolkit", "sample", f"--workdir={run}"]


def started(words, ready, **options):
    """A process of the command, once ``ready()`` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sde_toolkit", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ready() and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.mark.slow
def test_sigterm_in_a_comparison_keeps_what_is_done(workdir, tmp_path):
    words = ["compare", f"--workdir={workdir}", f"--output={tmp_path}", "--num_steps=2,3000000"]
    process = started(words, lambda: bool(Store(tmp_path / "records.sqlite").records()))
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert "measured so far" in shown
    assert "sde-toolkit: stopped by the system" in shown
    assert [r.num_steps for r in Store(tmp_path / "records.sqlite").records()] == [2]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at the libraries of a process")
@pytest.mark.parametrize("request_to_stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("library", ["_json", "libtorch", pytest.param("work", marks=pytest.mark.slow)])
def test_a_stop_at_any_moment_is_a_sentence(workdir, tmp_path, library, request_to_stop):
    """While the command line loads, while torch loads, and in the work."""
    words = ["sample", f"--workdir={workdir}", f"--output={tmp_path}", "--num_steps=9000000"]
    begin = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "sde_toolkit", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        maps = f"/proc/{process.pid}/maps"
        while time.monotonic() < begin + (8 if library == "work" else 60) and process.poll() is None:
            with open(maps) as file:
                if library in file.read():
                    break
        process.send_signal(request_to_stop)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert re.search("stopped by the system|interrupted", shown)
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("closing", ["<&- >&- 2>&-", pytest.param("2>/dev/full", marks=pytest.mark.slow)])
def test_closed_streams_are_survived(workdir, tmp_path, closing):
    command = f"{sys.executable} -m sde_toolkit compare --workdir={workdir} --output={tmp_path} {closing}"
    assert subprocess.run(command, shell=True, timeout=120, stdout=subprocess.DEVNULL).returncode == 0
    assert Store(tmp_path / "records.sqlite").records()


@pytest.mark.slow
def test_output_that_cannot_be_written_is_told():
    command = f"{sys.executable} -m sde_toolkit configs digits > /dev/full"
    done = subprocess.run(command, shell=True, timeout=120, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "No space left" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_further_requests_to_stop_do_not_break_the_save():
    def stopped_and_saved():
        with _stops_between_steps() as check:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                check()
            except KeyboardInterrupt:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # while the run is being saved
                    os.kill(os.getpid(), number)
                    time.sleep(0.01)
                saved.append(True)
                raise

    saved = []
    with pytest.raises(KeyboardInterrupt):
        stopped_and_saved()
    assert saved
