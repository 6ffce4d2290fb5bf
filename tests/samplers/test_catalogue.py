"""The catalogue: a sampler is a function, and whatever names samplers finds it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.preset_orders import cases, measure
from benchmarks.sampler_table import complaints, table, table_in
from sde_toolkit import config as c
from sde_toolkit import samplers
from sde_toolkit.cli import main
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.samplers import COMMON, PRESETS, find_preset, presets
from sde_toolkit.sdes import VPSDE

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
MODEL = ExactModel(Gaussian([0.5, -0.5], 0.25), VPSDE())

MINE = '''
"""A sampler of one's own."""

from sde_toolkit.samplers import Sampler, grids
from sde_toolkit.samplers.presets.one_step import ONE_STEP, ddim_rule
from sde_toolkit.samplers.equations import scheme


def mine(num_steps: int, *, strength: float = 0.0, t_min: float = 1e-3, grid=grids.log_snr,
         denoise: bool = True) -> Sampler:
    """A copy of DDIM.

    Args:
        strength: recorded, without effect.
    """
    return Sampler("mine", scheme(ddim_rule(0.0), "noise"), ONE_STEP, num_steps, t_min, grid, denoise,
                   options={"strength": strength})


def wrong_result(num_steps):
    return num_steps


def no_steps(*, strength=1.0):
    return None


def needs_more(num_steps, strength):
    return None


def clash(num_steps, *, seed=0):
    return None


number = 3
'''


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").write_text(MINE)
    (tmp_path / "mypackage" / "broken.py").write_text("raise KeyError('oops')\n")
    (tmp_path / "mypackage" / "lacking.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


@pytest.fixture
def new_preset(tmp_path, monkeypatch):
    """A file beside the presets of the package."""
    (tmp_path / "zz_mine.py").write_text(MINE)
    monkeypatch.setattr(presets, "__path__", [*presets.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop(f"{presets.__name__}.zz_mine", None)
    vars(presets).pop("zz_mine", None)


def test_the_table_of_the_readme_is_that_of_the_catalogue():
    """Names, options, meanings, orders and evaluations; ``python -m benchmarks.sampler_table --write``."""
    assert complaints(README) == []
    assert table_in(README) == table()


def test_the_check_of_the_table_notices_what_is_missing_and_what_is_unknown():
    found = complaints(README.replace("| `ancestral` |", "| `ancestor` |"))
    assert [line.partition(" |")[0] for line in found] == ["README lacks the row", "README has the row"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_option_of_a_preset_is_described_and_can_be_set(name):
    preset = PRESETS[name]
    assert preset.summary
    assert [option.name for option in preset.options.values() if not option.meaning] == []
    assert set(preset.parameters) <= {"model", *COMMON, *preset.options}
    config = c.parse_config({"sampling": {"sampler": name}})
    assert set(preset.options) <= set(config.sampling)
    assert c.config_from_json(c.config_json(config)) == config
    assert c.build_sampler(config, model=MODEL).settings == {
        **preset.make(20, MODEL).settings,
        **({"rtol": 1e-3, "atol": 1e-3} if preset.kind == "adaptive" else {}),
    }


def test_presets_are_attributes_of_the_room():
    assert all(getattr(samplers, name) is preset.function for name, preset in PRESETS.items())
    assert {"ddim", "edm", "default", "tsit5", "scipy_rk45", "torchsde_srk"} <= set(PRESETS)
    assert not {
        "adaptive",
        "torchsde_sampler",
        "predictor_corrector",
        "restarting",
        "without_last_draw",
    } & set(PRESETS)


def test_a_new_file_is_a_new_sampler_everywhere(new_preset, capsys):
    assert "mine" in PRESETS
    # the configuration, its hints, and its way to JSON
    config = c.load_config("ring", {"sampling.sampler": "mine", "sampling.strength": "0.5"})
    assert c.config_from_json(c.config_json(config)) == config
    assert c.build_sampler(config, num_steps=3).settings["strength"] == 0.5
    with pytest.raises(
        ValueError, match="no field 'strenth' when its sampler is 'mine'; did you mean 'strength'"
    ):
        c.override_config(config, {"sampling.strenth": 1.0})
    entries = c.override_config(config, {"comparison.samplers": "ddim,mine(strength=2)"})
    assert c.build_candidates(entries)[-1].sampler.settings["strength"] == 2.0
    # the command line
    assert main(["configs", "--describe", "sampling"]) == 0
    assert ", mine" in capsys.readouterr().out.replace("\n", " ").replace("  ", "")
    assert main(["configs", "--describe", "mine"]) == 0
    assert "strength=0.0" in capsys.readouterr().out
    # the check of the README
    assert complaints(README) == ["README lacks the row | `mine(strength)` | A copy of DDIM | 1 | 1 |"]
    # the order benchmark, which measures what the sampler claims
    found = cases(["mine"])
    assert [(case.kind, case.declared) for case in found] == [("deterministic", 1)] * 2
    assert measure(found[0], halvings=1).complaints() == []


@pytest.mark.parametrize("path", ["mypackage.mine", "mypackage:mine"])
def test_a_function_of_ones_own_is_a_sampler_under_its_dotted_path(my_package, path):
    config = c.load_config(
        "ring", {"sampling.sampler": path, "sampling.strength": 0.5, "sampling.grid": "karras"}
    )
    sampler = c.build_sampler(config, num_steps=4)
    assert (sampler.settings["strength"], sampler.settings["grid"]) == (0.5, "Karras(rho=7.0)")
    assert torch.equal(
        sampler.sample(MODEL, 3).x, samplers.ddim(4, grid=samplers.grids.karras).sample(MODEL, 3).x
    )
    assert c.config_from_json(c.config_json(config)) == config
    compared = c.override_config(config, {"comparison.samplers": f"ddim,{path}(strength=2)"})
    assert [x.name for x in c.build_candidates(compared)][-1] == "mypackage.mine(strength=2)"
    assert {"strength", "grid", "num_steps"} <= set(c.sampler_options(path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.mine", "there is no module 'nowhere'; put the directory that holds it on the Python path"),
        ("mypackage.other.mine", "there is no module 'mypackage.other'"),
        ("mypackage.mime", "module 'mypackage' has no function 'mime'; did you mean 'mine'?"),
        ("mypackage.broken.mine", "module 'mypackage.broken' cannot be imported: KeyError: 'oops'"),
        ("mypackage.lacking.mine", "module 'mypackage.lacking' cannot be imported: ModuleNotFoundError"),
        ("mypackage.number", "must be a function that returns a Sampler, got a int"),
        ("mypackage.no_steps", "must take num_steps as its first parameter"),
        ("mypackage.needs_more", "have defaults for all others, got (num_steps, strength)"),
        ("mypackage.clash", "has an option 'seed', which is a field of all samplers; give it another name"),
        ("mypackage..mine", "is no path of a function, as in mypackage.mine"),
    ],
)
def test_what_is_wrong_with_a_dotted_path_is_told(my_package, path, message):
    with pytest.raises(ValueError) as error:
        c.load_config("ring", {"sampling.sampler": path})
    assert message in str(error.value)


def test_a_function_that_returns_something_else_is_refused_when_it_is_called(my_package):
    config = c.load_config("ring", {"sampling.sampler": "mypackage.wrong_result"})
    with pytest.raises(TypeError, match=r"'mypackage.wrong_result' must return a Sampler, got int"):
        c.build_sampler(config)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dpm++", "dpm_solver_pp"),
        ("dpmpp_2m", "dpm_solver_pp"),
        ("dpm++2m", "dpm_solver_pp"),
        ("dpm-solver++", "dpm_solver_pp"),
        ("DPMSolverMultistep", "dpm_solver_pp"),
        ("DPMSolverMultistepScheduler", "dpm_solver_pp"),
        ("dpmpp_2m_sde", "sde_dpm_solver_pp"),
        ("euler_a", "ancestral"),
        ("EulerAncestralDiscreteScheduler", "ancestral"),
        ("plms", "pndm"),
        ("k_lms", "lms"),
        ("uni_pc", "unipc"),
        ("heun2", "heun"),
        ("DDIMScheduler", "ddim"),
        ("rk45", "dopri5"),
        ("dimm", "ddim"),
        ("euler_maruyana", "euler_maruyama"),
    ],
)
def test_near_misses_and_names_of_other_libraries_lead_to_the_family(name, meant):
    with pytest.raises(
        ValueError, match=rf"is unknown; did you mean '{meant}'\? valid: adaptive_sde, ancestral"
    ):
        find_preset(name)


def test_where_nothing_is_near_nothing_is_suggested():
    with pytest.raises(ValueError, match="sampler 'qqq' is unknown; valid: adaptive_sde"):
        find_preset("qqq")


def test_every_family_that_is_suggested_exists():
    from sde_toolkit.samplers.catalogue import OTHER_NAMES

    assert set(OTHER_NAMES) <= set(PRESETS)
