"""The side-by-side benchmark: fair starts, counted looks, rules that agree, records that hold.

What needs azula runs where it is installed; diffusers is a dependency of the package.
"""

import importlib.util
import json
import math

import pytest
import torch

from benchmarks import (
    flows,
    peer_diffusers,
    peer_energy,
    peer_flow,
    peer_law,
    peer_models,
    peer_ours,
    peer_parity,
    peers,
)
from benchmarks.record import RESULTS
from sde_toolkit.exact import ExactModel, Gaussian
from sde_toolkit.sde import VESDE, VPSDE
from solvers import Normals

pytestmark = [  # of diffusers, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
]
AZULA = importlib.util.find_spec("azula") is not None
SMALL = Gaussian([0.5, -1.0], [0.3, 0.05])


@pytest.fixture(scope="module")
def problem() -> flows.FlowProblem:
    return flows.make_problem("small-vp", SMALL, VPSDE())


def named(name: str, schedule: str, at_zero: bool) -> peer_models.Peer:
    found = [
        p
        for p in peer_diffusers.deterministic()
        if (p.name, p.schedule, p.at_zero) == (name, schedule, at_zero)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.002, 80.0)], ids=["vp", "ve"])
def test_a_look_is_the_scale_free_noise_and_is_counted(sde):
    model = ExactModel(SMALL, sde)
    look = peer_models.Look(model, 0.01)
    y = torch.tensor([[0.2, -0.4], [1.0, 3.0]], dtype=torch.float64)
    n = 0.7
    expected = n * (y - SMALL.mean) / (torch.tensor([0.3, 0.05]) + n**2)
    assert torch.allclose(look.noise(y, n), expected, rtol=1e-6)
    assert torch.allclose(look.data(y, n), y - n * expected, rtol=1e-6)
    assert look.count == 2


def test_the_clock_of_the_peers_spans_our_ratios():
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    ratios = peer_models.vp_clock(u, 0.002, 80.0)
    assert ratios[0].item() == pytest.approx(0.002)
    assert ratios[-1].item() == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("name", "schedule", "at_zero"),
    [
        ("DDIM", "trailing", False),
        ("DPM-Solver++(2M)", "karras", False),
        ("DPM-Solver++(3M)", "karras", True),
        ("UniPC-3, bh2", "trailing", False),
        ("DEIS-3", "exponential", False),
        ("IPNDM", "karras", False),
        ("Heun", "karras", True),
        ("KDPM2", "karras", True),
        ("LMS", "karras", True),
        ("PNDM, linear multistep", "trailing", True),
        ("PNDM, Runge-Kutta start", "trailing", False),
    ],
)
def test_a_driven_scheduler_converges_to_the_exact_end_within_its_budget(problem, name, schedule, at_zero):
    peer = named(name, schedule, at_zero)
    errors = [peer_flow.peer_error(peer, problem, nfe) for nfe in (20, 80)]
    assert errors[1] < min(0.05, 0.5 * errors[0])


def test_a_budget_buys_the_most_steps_that_fit():
    heun = named("Heun", "karras", True)
    assert [heun.steps_within(nfe) for nfe in (5, 10, 20)] == [3, 5, 10]
    assert named("PNDM, Runge-Kutta start", "trailing", True).steps_within(10) == 0
    assert named("PNDM, Runge-Kutta start", "trailing", True).steps_within(50) == 40


@pytest.mark.parametrize("entry", [*list(peer_ours.deterministic())[::7], peer_ours.default()])
def test_our_entries_stay_within_the_budget_and_approach_the_end(problem, entry):
    assert peer_flow.our_error(entry, problem, 100) < 0.1


def test_the_summary_holds_the_default_against_the_best_peer_of_each_column():
    easy = flows.FlowProblem("easy", None, 0.0, torch.zeros(1), torch.zeros(1), torch.zeros(1))
    normal = flows.FlowProblem(
        "normal", None, 0.0, torch.zeros(1), torch.zeros(1), torch.zeros(1), gaussian=True
    )
    hard = flows.FlowProblem("hard", None, 0.0, torch.zeros(1), torch.zeros(1), torch.zeros(1))
    rows = [
        peer_flow.Row("a", "one", "x", {"easy": [0.4], "normal": [0.1], "hard": [math.inf]}),
        peer_flow.Row("b", "two", "y", {"easy": [0.2], "normal": [0.5], "hard": [0.8]}),
        peer_flow.Row("sde_toolkit", "default", "z", {"easy": [0.1], "normal": [1.0], "hard": [0.1]}),
    ]
    summary = peer_flow.compare(rows, rows[2:], [easy, normal, hard], 0, 5)
    assert summary.peer["easy"] == (0.2, "b two, y")
    assert summary.ratio == {"easy": 0.5, "normal": 10.0, "hard": 0.125}
    assert summary.mean == pytest.approx(0.25)
    text = peer_flow.table(rows, [easy, normal, hard], 0, 5)
    assert "geometric mean 0.250" in text
    assert peer_flow.records(rows)[0]["errors"]["hard"] == [None]


def test_on_the_network_one_set_of_starts_chooses_and_another_judges():
    screen = flows.make_problem("screen", SMALL, VPSDE(), seed=1)
    judge = flows.make_problem(peer_flow.NETWORK, SMALL, VPSDE(), seed=2)

    def row(library, sampler, schedule, exact, first, then):
        made = peer_flow.Row(library, sampler, schedule, {"exact": [exact]})
        return made, lambda p, nfe: first if p is screen else then

    peers_ = [row("azula", "a", str(k), 1.0, 1.0 + k, 9.0 - k) for k in range(6)]
    ours = [row("sde_toolkit", "b", "good", 0.1, 5.0, 0.5), row("sde_toolkit", "b", "bad", 0.2, 1.0, 0.1)]
    default = row("sde_toolkit", "default", "", 0.1, 9.0, 0.7)
    found = [*peers_, *ours, default]
    peer_flow.on_network(found, judge, screen, [5])
    errors = [r.errors[peer_flow.NETWORK][0] for r, _ in found]
    assert errors == [9.0, 8.0, 7.0, 6.0, math.inf, math.inf, 0.5, math.inf, 0.7]


def test_a_start_is_handed_to_our_samplers_unchanged(problem):
    noise = peer_ours.FromStart(problem.x_T, problem.model)
    assert torch.equal(problem.model.sde.prior_sample(noise.draw(0, 1)), problem.x_T)


@pytest.mark.parametrize("name", ["DDPM, large variance", "SDE-DPM-Solver++(2M)", "UniPC-2, bh2", "PNDM"])
def test_our_rules_are_those_of_diffusers(name):
    pair = next(p for p in peer_parity.pairs() if p.name == name)
    model = ExactModel(Gaussian([[0.5, -1.0]], [[0.3, 0.05]]), VPSDE())
    assert peer_parity.difference(pair, model) < peer_parity.TOLERANCE


def test_a_departure_without_a_reason_is_a_complaint():
    rows = [
        {"sampler": "a", "difference": 1e-6, "note": ""},
        {"sampler": "b", "difference": 0.1, "note": "because"},
        {"sampler": "c", "difference": math.nan, "note": ""},
    ]
    assert peer_parity.complaints(rows) == ["c: nan > 0.0001"]
    assert "[1] because" in peer_parity.table(rows)


def test_impulses_give_the_law_of_a_peer_that_is_run_on_samples(monkeypatch):
    monkeypatch.setattr(peer_law, "SAMPLES", 100)
    laws = peer_law.Laws()
    peer = next(p for p in peer_diffusers.stochastic() if p.name == "DDPM, small variance")
    rows = peer_law.Rows(60, 8)
    with peer_law.drawing(rows.next):
        response = peer_law._peer_run(peer, laws.gaussian, laws, rows.start(), 30)
    assert response is not None
    x_T = torch.randn(20000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = peer_law._peer_run(peer, laws.gaussian, laws, x_T, 30)
    assert x is not None
    std = (response[1:] - response[0]).square().sum(0).sqrt()
    # relative error of a standard deviation from n normals: 1 / sqrt(2 n), here 0.005; 5 of those
    assert torch.allclose(x.std(0), std, rtol=0.025)
    assert ((x.mean(0) - response[0]) / std).abs().max() < 5 / math.sqrt(20000)
    assert laws.w2(response, True) > 0


def test_energy_distance_by_projections_is_that_of_the_definition():
    data, other = flows.mixture(8, seed=0), flows.mixture(8, seed=5)
    law = peer_energy.project(data, 0.9, 0.2, num=2048)
    x = other.sample(3000, seed=1)
    y = 0.9 * data.sample(3000, seed=2) + 0.2 * Normals(3, 3000, (8,)).draw(0)
    pairs = 3000 / 2999  # means over i != j
    expected = 2 * torch.cdist(x, y).mean() - pairs * (torch.cdist(x, x).mean() + torch.cdist(y, y).mean())
    value, error = law.energy(x)
    # the directions are many, but not all, and y is a sample
    assert value == pytest.approx(float(expected), rel=0.05)
    assert 0 < error < 0.05 * value


def test_energy_distance_of_exact_draws_is_noise_that_falls_as_one_over_n():
    law = peer_energy.project(flows.ring(), 1.0, 0.0)
    small, large = (
        max(abs(law.energy(flows.ring().sample(n, seed=k))[0]) for k in range(4)) for n in (500, 20000)
    )
    assert 0 < small < 10 / 500
    assert large < 10 / 20000
    assert float(peer_energy.mean_distance(torch.tensor([3.0, 0.0, 1.0]))) == pytest.approx(2.0)


def test_missing_peers_are_named_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(peers, "PACKAGES", ("diffusers", "no_such_package"))
    peers.main()
    assert capsys.readouterr().out == (
        "peers: no_such_package not installed; pip install 'sde-toolkit[peers]' to run this benchmark\n"
    )
    with pytest.raises(SystemExit, match=r"unknown part flaw; choose from flow, parity, law, speed"):
        peers.main(["flaw"])


@pytest.mark.skipif(not AZULA, reason="azula is not installed")
def test_azulas_samplers_are_the_rules_they_are_taken_for(problem):
    from benchmarks import peer_azula

    found = {(p.name, p.schedule): p for p in peer_azula.deterministic()}
    ddim = peer_flow.peer_error(found["DDIM", "vp"], problem, 20)
    assert ddim == pytest.approx(
        peer_flow.peer_error(named("DDIM", "trailing", False), problem, 20), rel=0.05
    )
    assert peer_flow.peer_error(found["zAB-3", "karras"], problem, 100) < 0.01
    assert peer_flow.peer_error(found["Heun", "karras"], problem, 100) < 0.01


def test_the_committed_comparison_has_the_default_ahead():
    record = json.loads((RESULTS / "peers_flow.json").read_text())["results"]
    limits = {5: 1 / 2, 10: 1 / 3, 20: 1 / 5, 50: 1 / 4}
    assert {summary["nfe"] for summary in record["default"]} == set(limits)
    for summary in record["default"]:
        assert summary["mean"] <= limits[summary["nfe"]]


def test_the_committed_parity_is_within_the_tolerance():
    rows = json.loads((RESULTS / "peers_parity.json").read_text())["results"]
    assert {row["sampler"] for row in rows} == {pair.name for pair in peer_parity.pairs()}
    assert peer_parity.complaints(rows) == []
