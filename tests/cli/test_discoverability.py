"""What the command tells about itself: fields, version, completion, and quickly."""

import importlib.util
import os
import re
import subprocess
import sys
import time

import pytest

from sde_toolkit import cli
from sde_toolkit import config as c
from sde_toolkit.config.meanings import ABOUT
from sde_toolkit.config.schema import Variants

HELP = """
import sys
from sde_toolkit.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0
heavy = {"torch", "numpy", "scipy", "tqdm", "ml_collections"} & set(sys.modules)
assert not heavy, heavy
"""


def schema_fields() -> set[str]:
    found = set()
    for section, content in c.SCHEMA.items():
        if isinstance(content, Variants):
            found |= {f"{section}.{content.key}", *(f"{section}.{name}" for name in content.common)}
            if section != "sampling":
                found |= {f"{section}.{name}" for own in content.fields.values() for name in own}
        elif isinstance(content, dict):
            found |= {f"{section}.{name}" for name in content}
        else:
            found.add(section)
    return found


def test_every_field_has_a_meaning_and_every_meaning_a_field():
    assert set(ABOUT) == schema_fields()
    assert all(len(about.meaning) > 3 for about in ABOUT.values())


def test_every_field_of_every_sampler_has_a_meaning():
    lacking = [f.path for name in c.SAMPLERS for f in c.list_fields(name) if not f.meaning]
    assert not lacking


@pytest.mark.parametrize("name", c.config_names())
def test_every_field_of_a_configuration_is_described(name):
    config, shown = c.load_config(name), c.describe_fields(name)
    for section, fields in config.to_dict().items():
        for path in [f"{section}.{field}" for field in fields] if isinstance(fields, dict) else [section]:
            assert re.search(rf"^{re.escape(path)} = .*  \(.+\)\n    \S", shown, re.MULTILINE), path


def test_descriptions_show_meaning_type_default_and_choices(capsys):
    assert cli.main(["configs", "--describe"]) == 0
    shown = capsys.readouterr().out
    assert "training.batch_size = 128  (integer)\n    examples per update\n" in shown
    assert "optimization.betas = 0.9,0.99  (list of numbers)" in shown
    assert re.search(r"data\.noise = 0\.05  \(number; of moons\)", shown)
    assert re.search(r"dtype = float32 .*\n    .*\n    one of: float32, float64", shown)
    assert cli.main(["configs", "--describe", "likelihood.divergence"]) == 0
    assert "one of: auto, exact, probes, hutch++" in capsys.readouterr().out
    assert cli.main(["configs", "--describe", "ddim"]) == 0
    assert re.search(r"eta=0\.0 .*\w", capsys.readouterr().out)
    assert cli.main(["configs", "ring", "--describe", "--config.seed=7"]) == 0
    assert "seed = 7  (integer)" in capsys.readouterr().out
    assert cli.main(["configs", "--describe", "trainin"]) == 2
    assert "did you mean 'training'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([v, "--help"] for v in ("train", "sample"))])
def test_help_loads_nothing_heavy_and_takes_less_than_a_second(words):
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", HELP, *words], check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"sde-toolkit \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_completion_is_a_script_or_says_what_is_missing(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--completion", "bash"])
    shown = capsys.readouterr()
    if importlib.util.find_spec("shtab"):
        assert stop.value.code == 0
        assert subprocess.run(["bash", "-n"], input=shown.out, text=True).returncode == 0
        assert "--num_samples" in shown.out
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--completion", "bash"])
    assert stop.value.code == 2
    assert "pip install 'sde-toolkit[completion]'" in capsys.readouterr().err


def test_help_says_that_a_python_configuration_is_executed():
    for words in (["--help"], ["train", "--help"], ["configs", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "sde_toolkit", *words],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "200"},
        )
        assert "executed" in done.stdout
