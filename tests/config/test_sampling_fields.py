"""The fields of samplers: options arrive, are described, and are refused where they do not belong."""

import pytest
import torch

from sde_toolkit import config as c
from sde_toolkit import guidance, samplers
from sde_toolkit.models.moments import Moments
from sde_toolkit.samplers import grids, in_nsr
from sde_toolkit.samplers.correctors import AnnealedLangevin, Langevin
from sde_toolkit.sdes import VPSDE
from solvers import RK4, SHARK


@pytest.fixture(scope="module")
def tiny():
    return c.load_config(
        "ring", {"model.width": 8, "model.depth": 1, "data.num_train": 64, "data.num_test": 32}
    )


PUBLISHED = {"score_sde_vp": "vp", "score_sde_ve": "ve", "score_sde_subvp": "subvp"}
"""The process of those that are for one alone; they end at 0, after a last evaluation at ``last_time``."""


@pytest.mark.parametrize("name", sorted(c.SAMPLERS))
def test_sampler_takes_exactly_the_options_it_declares(tiny, name):
    config = c.override_config(
        tiny, {"sampling.t_min": 0.02, "sampling.denoise": "no", "sampling.grid": "karras"}
    )
    if name in PUBLISHED:
        config = c.override_config(config, {"sde.name": PUBLISHED[name]})
    model = c.build_model(config, (2,), 1.0)
    sampler = c.build_sampler(config, name, 3, model)
    assert sampler.t_min == (0 if name in PUBLISHED else 0.02)
    assert not sampler.denoise
    states = sampler.settings.get("num_steps") == 3
    assert ("num_steps" in c.sampler_options(name)) == states == (not c.is_adaptive(name))
    assert sampler.settings["denoise"] is False or "denoise" not in c.sampler_options(name)
    samples = sampler.sample(model, 2)
    assert samples.x.shape == (2, 2)


def test_the_default_sampler_is_made_for_a_model(tiny):
    config = c.override_config(tiny, {"sampling.sampler": "default", "sampling.eta": 0.5})
    config = c.override_config(config, {"sampling.threshold": "static"})
    moments = Moments([1.0, 2.0], [[2.0, 0.5], [0.5, 1.0]])
    model = c.build_model(config, (2,), 1.0, moments)
    sampler = c.build_sampler(config, "default", 5, model)
    assert (sampler.options["eta"], sampler.options["moments"], sampler.nfe) == (0.5, "full", 5)
    assert sampler.guidance is not None
    diagonal = c.build_sampler(config, "gaussian_residual(moments=diagonal)", 5, model)
    assert (diagonal.options["moments"], diagonal.options["eta"]) == ("diagonal", 0.0)
    config = c.override_config(tiny, {"comparison.samplers": "default", "comparison.num_steps": (2, 5)})
    assert [made.label for made in c.build_candidates(config, model)] == ["default-2", "default-5"]
    with pytest.raises(ValueError, match="'default' is made for a model: build it with model="):
        c.build_sampler(config, "default", 5)


def test_corrector_options(tiny):
    fields = {"corrector_snr": 0.3, "corrector_num_steps": 2, "corrector": "annealed"}
    config = c.override_config(tiny, {f"sampling.{field}": value for field, value in fields.items()})
    assert c.build_sampler(config, "ddim", 3).corrector == AnnealedLangevin(0.3, 2)
    assert c.build_sampler(config, "dopri5", 3).corrector is None
    sampler = c.build_sampler(config, "predictor_corrector", 3)
    assert (sampler.corrector, sampler.name) == (Langevin(0.3, 2), "reverse_diffusion+langevin")
    chosen = c.override_config(tiny, {"sampling.sampler": "predictor_corrector"}).sampling
    assert (chosen.sampler, chosen.corrector) == ("reverse_diffusion", "langevin")


def test_grid_by_name():
    times = c.build_grid("quadratic")(VPSDE(), 4, 0.01)
    assert times.shape == (5,)
    with pytest.raises(ValueError, match=r"did you mean 'karras'"):
        c.build_grid("karas")


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        (
            "dpm_solver_pp",
            {"order": 3, "lower_final": "yes"},
            samplers.dpm_solver_pp(9, order=3, lower_final=True),
        ),
        ("dpm_solver_pp", {}, samplers.dpm_solver_pp(9)),
        ("dpm_solver", {"order": 2}, samplers.dpm_solver(9, order=2)),
        ("deis", {"degree": 2, "clock": "nsr"}, samplers.deis(9, degree=2, clock=in_nsr)),
        ("deis_rho_rk", {"tableau": "rk4"}, samplers.deis_rho_rk(9, tableau=RK4)),
        ("unipc", {"b": "b1", "predicts": "noise"}, samplers.unipc(9, b=samplers.b1, predicts="noise")),
        ("ddpm", {"variance": "large"}, samplers.ddpm(9, variance="large")),
        ("edm", {"s_churn": 2.0, "s_tmin": 0.1}, samplers.edm(9, s_churn=2.0, s_tmin=0.1)),
        ("sra", {"method": "shark"}, samplers.sra(9, method=SHARK)),
        ("er_sde", {"phi": "square"}, samplers.er_sde(9, phi=torch.square)),
        (
            "sa_solver",
            {"predictor_steps": 3, "corrector_steps": 2, "tau": 0.5, "grid": "karras"},
            samplers.sa_solver(9, predictor_steps=3, corrector_steps=2, tau=0.5, grid=grids.karras),
        ),
        (
            "heun",
            {
                "restart_min": 0.1,
                "restart_num_steps": 3,
                "restart_repeats": 2,
                "threshold": "static",
                "threshold_limit": 2.0,
            },
            guidance.thresholded(
                samplers.restarting(samplers.heun(9), samplers.Restart(0.1, 1.0, 3, 2)),
                guidance.StaticThreshold(2.0),
            ),
        ),
    ],
)
def test_options_of_samplers_arrive(tiny, name, fields, expected):
    changes = {"sampling.sampler": name, **{f"sampling.{field}": value for field, value in fields.items()}}
    config = c.override_config(tiny, changes)
    assert c.config_from_json(c.config_json(config)) == config
    made = c.build_sampler(config, num_steps=9)
    assert made.settings == expected.settings
    assert set(fields) <= set(c.sampler_options(name))
    model = c.build_model(tiny, (2,), 1.0)
    assert torch.equal(made.sample(model, 3).x, expected.sample(model, 3).x)


def test_the_own_grid_is_that_of_the_sampler(tiny):
    assert c.build_sampler(tiny, "edm").grid is grids.karras
    assert c.build_sampler(tiny, "ddim").grid is grids.uniform
    config = c.override_config(tiny, {"sampling.grid": "quadratic"})
    assert c.build_sampler(config, "edm").grid is grids.quadratic


def test_a_grid_of_given_times(tiny):
    times = {"sampling.grid": "explicit", "sampling.times": "1.0, 0.4, 0.1, 0.02"}
    config = c.override_config(tiny, times)
    sampler = c.build_sampler(config, "ddim", 3)
    assert sampler.grid(c.build_sde(tiny), 3, 0.02).tolist() == [1.0, 0.4, 0.1, 0.02]
    with pytest.raises(ValueError, match=r"times must have num_steps \+ 1 = 6 times, got 4"):
        c.build_sampler(config, "ddim", 5)
    assert c.build_sampler(config, "dopri5", 3).num_steps is None


def test_a_grid_found_for_the_model(tiny, tmp_path):
    fields = {
        "grid": "calibrated",
        "calibration_samples": 4,
        "calibration_cache": str(tmp_path),
        "t_min": 0.1,
    }
    config = c.override_config(tiny, {f"sampling.{field}": value for field, value in fields.items()})
    model = c.build_model(config, (2,), 1.0)
    with pytest.raises(ValueError, match="grid 'calibrated' is found for a model"):
        c.build_sampler(config, "ddim", 3)
    sampler = c.build_sampler(config, "ddim", 3, model)
    times = sampler.grid(model.sde, 3, 0.1)
    assert (float(times[0]), float(times[-1])) == (1.0, 0.1)
    assert len(list(tmp_path.glob("grid-*.json"))) == 1
    assert set(fields) <= set(c.sampler_options("ddim"))
    # where a grid has no effect nothing is searched for
    assert c.build_sampler(config, "default", 3, model).settings["sampler"] == "gaussian_residual"
    assert c.build_sampler(config, "dopri5", 3).num_steps is None


def test_options_that_have_an_effect(tiny):
    assert {"eta", "corrector_snr", "times"} <= set(c.sampler_options("ddim"))
    effective = c.sampler_options("ddim", tiny.sampling)
    assert {"eta", "corrector", "grid", "threshold"} <= set(effective)
    assert not {"corrector_snr", "times", "rtol", "calibration_samples"} & set(effective)
    assert {"rtol", "threshold"} <= set(c.sampler_options("dopri5", tiny.sampling))
    assert not {"num_steps", "grid", "corrector"} & set(c.sampler_options("dopri5"))


def test_the_own_fields_of_a_sampler_follow_its_name(tiny):
    config = c.override_config(
        tiny, {"sampling.eta": 0.5, "sampling.sampler": "ddim", "sampling.t_min": 0.01}
    )
    assert (config.sampling.eta, config.sampling.t_min) == (0.5, 0.01)
    other = c.override_config(config, {"sampling.sampler": "edm"}).sampling
    assert "eta" not in other
    assert (other.s_churn, other.s_tmax, other.t_min) == (0.0, 1e9, 0.01)
    again = c.override_config(config, {"sampling.sampler": "ddim"})
    assert again == config
    assert c.build_sampler(c.override_config(tiny, {"sampling.sampler": "edm"})).settings["s_tmax"] == float(
        "inf"
    )
    assert c.base_config(sampler="er_sde").sampling.phi == "er"


def test_entries_of_a_comparison_have_options_of_their_own(tiny):
    chosen = {"sampling.sampler": "ddim(eta=0.25)", "comparison.num_steps": 3}
    entries = {"comparison.samplers": "ddim, ddim(eta=0.5, grid='karras'), eta_family"}
    first, second, third = c.build_candidates(c.override_config(tiny, chosen | entries))
    assert [x.label for x in (first, second, third)] == [
        "ddim-3",
        "ddim(eta=0.5,grid=karras)-3",
        "eta_family-3",
    ]
    assert (first.settings["eta"], second.settings["eta"], third.settings["eta"]) == (0.25, 0.5, 1.0)
    assert second.sampler.grid is grids.karras


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("corrector", "langevine", "did you mean 'langevin'"),
        ("threshold", "clip", "config.sampling.threshold 'clip' is unknown"),
        ("grid", "owned", "did you mean 'own'"),
    ],
)
def test_unknown_names_of_options_are_refused(tiny, field, value, message):
    with pytest.raises(ValueError, match=message):
        c.override_config(tiny, {f"sampling.{field}": value})


def test_options_out_of_range_are_refused_when_the_sampler_is_built(tiny):
    with pytest.raises(ValueError, match="order must be an integer from 1 to 3, got 7"):
        c.build_sampler(tiny, "dpm_solver_pp(order=7)")
    with pytest.raises(ValueError, match="restarts need a deterministic sampler"):
        c.build_sampler(c.override_config(tiny, {"sampling.restart_min": 0.1}), "ancestral")


def test_a_sampler_is_described_from_its_signature_and_docstring():
    lines = c.describe_sampler("unipc").splitlines()
    assert lines[0] == "unipc: UniPC-1, 2, 3 (2302.04867), order p + 1"
    assert "  predicts=data (noise, data)  the prediction that is interpolated: noise or data." in lines
    assert "corrector_snr" in lines[-1]
    assert "rtol" not in lines[-1]


def test_fields_of_guidance_arrive(tiny):
    fields = {
        "guidance_scale": 2.0,
        "guidance_min": 0.5,
        "guidance_max": 4.0,
        "guidance_rescale": 0.7,
        "sampler": "ddim",
    }
    config = c.override_config(tiny, {f"sampling.{name}": value for name, value in fields.items()})
    made = c.build_sampler(config, num_steps=9)
    assert made.guidance == guidance.ClassifierFreeGuidance(2.0, (0.5, 4.0), 0.7)
    assert set(fields) - {"sampler"} <= set(c.sampler_options("ddim", config.sampling))
    plain = c.override_config(
        tiny, {"sampling.guidance_scale": 3.0, "sampling.threshold": "static", "sampling.sampler": "ddim"}
    )
    made = c.build_sampler(plain, num_steps=9)
    assert made.guidance.first == guidance.ClassifierFreeGuidance(3.0)
    without = c.override_config(tiny, {"sampling.sampler": "ddim"})
    assert c.build_sampler(without, num_steps=9).guidance is None
    assert {"guidance_scale"} == {n for n in c.sampler_options("ddim", tiny.sampling) if "guidance" in n}
