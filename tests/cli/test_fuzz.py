"""Whatever the command is given, it ends in time, and with a sentence where it refuses.

Flags, values of configuration fields, and the bytes of every file that it reads are drawn by hypothesis; the
commands run in this process on a tiny run.
"""

import contextlib
import io
import json
import shutil
import signal
import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sde_toolkit import cli
from sde_toolkit import config as c

TINY = [
    *("--config.model.width=4", "--config.model.depth=1", "--config.model.num_frequencies=2"),
    *("--config.data.num_train=16", "--config.data.num_test=12", "--config.training.num_steps=2"),
    *("--config.training.batch_size=4", "--config.sampling.num_steps=2", "--config.sampling.num_samples=2"),
    *("--config.likelihood.num_examples=1", "--config.likelihood.rtol=0.5", "--config.likelihood.atol=0.5"),
    *(
        "--config.comparison.num_samples=10",
        "--config.comparison.num_steps=2",
        "--config.comparison.samplers=ddim",
    ),
    "--config.comparison.metrics=energy",
]
SECONDS = 60
QUICK = settings(
    deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "ring"
    assert cli.main(["train", "--config=ring", f"--workdir={path}", *TINY]) == 0
    return path


def _late(*_):
    raise AssertionError(f"the command did not end within {SECONDS} s")


def check(words):
    """Run the command: it ends, and says why where it does not succeed."""
    out, err = io.StringIO(), io.StringIO()
    usual = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = cli.main(words)
            except SystemExit as stop:
                code = stop.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)
    shown = err.getvalue()
    assert code in (0, 2), (words, code)
    assert code == 0 or "error: " in shown, (words, shown)
    assert "Traceback" not in shown
    assert "run again with --debug to see where" not in shown, (words, shown)


VALUES = st.one_of(
    st.integers(-3, 3).map(str),
    st.integers(-(10**400), 10**400).map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "1e999",
            "-0",
            "1,,2",
            "1,2,3",
            "[",
            "((",
            "None",
            "true",
            "x" * 3000,
            "\x00",
            "\ud800",
        ]
    ),
    st.text(max_size=12),
    st.lists(st.integers(-2, 5), max_size=4).map(lambda v: ",".join(map(str, v))),
)
LARGE = {"num_samples", "num_steps", "num_train", "num_test", "batch_size", "width", "depth", "num_probes",
         "num_importance", "num_frequencies", "calibration_samples", "num_classes", "restart_repeats",
         "restart_num_steps", "corrector_num_steps", "num_diagnostic_samples", "device"}  # fmt: skip
"""Fields of which a valid large value is honest work of hours, or another machine's."""
FIELDS = sorted({f.path for f in c.list_fields()} | {"training", "no.such", "sampling.eta", ""})


def plausible(path, value):
    """Whether the command could take the value and not be done in a second."""
    try:
        big = any(float(part) > 30 for part in value.replace("(", "").replace("[", "").split(","))
    except (ValueError, OverflowError):
        big = False
    small = path.rpartition(".")[2] in {"rtol", "atol", "learning_rate", "t_min"}
    return not (path.rpartition(".")[2] in LARGE and big) and not small


@pytest.mark.slow
@given(
    path=st.sampled_from(FIELDS),
    value=VALUES,
    verb=st.sampled_from(["configs", "configs", "configs", "sample"]),
)
@settings(QUICK, max_examples=900)
def test_values_of_fields(workdir, tmp_path_factory, path, value, verb):
    words = [f"--config.{path}={value}"]
    if verb == "configs":
        check(["configs", "ring", *words])
    elif plausible(path, value):
        check(["sample", f"--workdir={workdir}", f"--output={workdir}/out", *words])


FLAGS = ["--workdir", "--config", "--samplers", "--sampler", "--num_steps", "--num_samples", "--seeds",
         "--seed", "--metrics", "--label", "--labels", "--split", "--num_examples", "--device", "--debu",
         "--format", "--version", "--describe", "--completion", "--help", "-h", "x"]  # fmt: skip
VERBS = ["sample", "likelihood", "compare", "report", "classify", "configs", "train", "export", "", "smaple"]


@pytest.mark.slow
@given(
    verb=st.sampled_from(VERBS),
    flags=st.lists(st.tuples(st.sampled_from(FLAGS), VALUES, st.booleans()), min_size=1, max_size=3),
)
@settings(QUICK, max_examples=700)
def test_flags(tmp_path_factory, monkeypatch, verb, flags):
    """Without a run to work on, but with every way of naming one."""
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        words = [f"{name}={value}" if joined else name for name, value, joined in flags]
        check(
            [verb, *words, "--workdir=nowhere/at/all"] if verb not in ("configs", "train") else [verb, *words]
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*c.SCHEMA, "name", "records", "references"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(document=JSON | st.binary(max_size=60), name=st.sampled_from(["config", "records", "likelihood-test"]))
@settings(QUICK, max_examples=500)
def test_documents(workdir, tmp_path_factory, document, name):
    place = tmp_path_factory.mktemp("documents")
    path = place / f"{name}.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    if name == "config":
        check(["configs", str(path)])
    else:
        check(
            [
                "compare",
                f"--workdir={workdir}",
                f"--output={place}",
                "--num_samples=9" if name == "records" else "--label=0",
            ]
        )
        check(["likelihood", f"--workdir={workdir}", f"--output={place}", "--config.likelihood.t_min=2"])
    shutil.rmtree(place)


@pytest.mark.slow
@given(
    cut=st.integers(0, 4000),
    change=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    whole=st.booleans(),
)
@settings(QUICK, max_examples=300)
def test_bytes_of_checkpoints(workdir, tmp_path_factory, cut, change, whole):
    place = tmp_path_factory.mktemp("checkpoint")
    (source,) = (workdir / "checkpoints").glob("step-*2.safetensors")
    content = bytearray(source.read_bytes())
    for position, byte in change:
        content[position % len(content)] = byte
    (place / "checkpoints").mkdir()
    (place / "checkpoints" / source.name).write_bytes(content if whole else content[: cut % len(content)])
    check(["export", f"--workdir={place}", f"--output={place / 'out.safetensors'}"])
    shutil.rmtree(place)


@pytest.mark.slow
@given(
    cut=st.integers(0, 4000),
    change=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
)
@settings(QUICK, max_examples=100)
def test_bytes_of_samples(workdir, tmp_path_factory, cut, change):
    place = tmp_path_factory.mktemp("samples")
    words = ["sample", f"--workdir={workdir}", f"--output={place}", "--format=npz"]
    check(words)
    (path,) = (place / "samples").glob("*.npz")
    content = bytearray(path.read_bytes())
    for position, byte in change:
        content[position % len(content)] = byte
    path.write_bytes(content[: len(content) - cut % len(content)])
    check(words)
    shutil.rmtree(place)
