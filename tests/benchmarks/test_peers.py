"""The side-by-side benchmark: fair starts, counted looks, rules that agree, records that hold.

What needs azula runs where it is installed; diffusers is a dependency of the package.
"""

import importlib.util
import json
import math

import pytest
import torch

from benchmarks import flows
from benchmarks.peers import __main__ as peers
from benchmarks.peers import diffusers as peer_diffusers
from benchmarks.peers import energy as peer_energy
from benchmarks.peers import flow as peer_flow
from benchmarks.peers import law as peer_law
from benchmarks.peers import models as peer_models
from benchmarks.peers import ours as peer_ours
from benchmarks.peers import parity as peer_parity
from benchmarks.record import RESULTS
from sde_toolkit.models.exact import ExactData, ExactModel, Gaussian
from sde_toolkit.sdes import VESDE, VPSDE
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


@pytest.fixture
def laws(monkeypatch) -> peer_law.Laws:
    monkeypatch.setattr(peer_law, "BLOCK", 256)
    return peer_law.Laws()


def test_impulses_give_the_law_of_a_peer_that_is_run_on_samples(laws):
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


def blocks(law: peer_energy.Projections, data: ExactData, num: int, size: int) -> torch.Tensor:
    return torch.stack([law.deviation(data.sample(size, seed=k)) for k in range(num)])


@pytest.mark.slow
def test_energy_distance_by_projections_is_that_of_the_definition():
    data, other = flows.mixture(8, seed=0), flows.mixture(8, seed=5)
    law = peer_energy.project(data, 0.9, 0.2, num=2048)
    x = other.sample(3000, seed=1)
    y = 0.9 * data.sample(3000, seed=2) + 0.2 * Normals(3, 3000, (8,)).draw(0)
    pairs = 3000 / 2999  # means over i != j
    expected = 2 * torch.cdist(x, y).mean() - pairs * (torch.cdist(x, x).mean() + torch.cdist(y, y).mean())
    value, error = peer_energy.estimate(torch.stack([law.deviation(part) for part in x.split(100)]))
    # the directions are many, but not all, and y is a sample
    assert value == pytest.approx(float(expected), rel=0.05)
    assert 0 < error < 0.05 * value


def test_symmetries_leave_an_energy_distance_and_take_away_noise():
    near = flows.ring(std=0.2)
    plain, folded = (peer_energy.project(flows.ring(), 1.0, 0.0, s) for s in (None, peer_energy.dihedral(8)))
    (value, error), (same, less) = (peer_energy.estimate(blocks(p, near, 20, 2000)) for p in (plain, folded))
    assert same == pytest.approx(value, abs=3 * (error + less))
    assert 20 * less < same
    noise = [peer_energy.deviation_noise(blocks(p, flows.ring(), 20, 500)) for p in (plain, folded)]
    assert 8 * noise[1] < noise[0]


def test_samplers_turn_with_their_starts_and_draws(laws):
    model, normals = laws.mixtures["ring"], Normals(0, 10, (2,), torch.float32)
    ours = [peer_ours.default(0.5), next(e for e in peer_ours.stochastic() if "P3 C3" in e.name)]
    peer = next(p for p in peer_diffusers.stochastic() if p.name == "SA-Solver, P3 C3, tau 0.5")

    class Turned:
        def __init__(self, turn: torch.Tensor) -> None:
            self.turn, self.count = turn.float().mT, 0

        def draw(self, index: int, stream: int = 0) -> torch.Tensor:
            return normals.draw(index, stream) @ self.turn

        def next(self, *_, **__) -> torch.Tensor:
            self.count += 1
            return self.draw(self.count)

    def ends(turn: torch.Tensor) -> torch.Tensor:
        x = [e.within(20, laws.t_min, model).sample(model, 10, noise=Turned(turn)).x for e in ours]
        noise = Turned(turn)
        with peer_law.drawing(noise.next):
            x.append(peer_law._peer_run(peer, model, laws, noise.draw(0), 20))
        return torch.stack(x)

    turn = peer_energy.dihedral(8)[11]
    assert torch.allclose(ends(turn), ends(torch.eye(2)) @ turn.float().mT, atol=1e-3)


def test_energy_distance_of_exact_draws_is_the_noise_it_is_said_to_be():
    law = peer_energy.project(flows.mixture(8, seed=0), 1.0, 0.0)
    found = blocks(law, flows.mixture(8, seed=0), 160, 100)
    pair = peer_energy.deviation_noise(found)
    values, errors = zip(*(peer_energy.estimate(part) for part in found.split(8)), strict=True)
    noise = pair * math.sqrt(2 / (8 * 7))
    assert abs(sum(values) / 20) < 3 * noise / math.sqrt(20)
    rms = math.sqrt(sum(v**2 for v in values) / 20)
    assert 0.5 * noise < rms < 2 * noise
    assert math.sqrt(sum(e**2 for e in errors) / 20) > 0.7 * noise


def test_the_floor_falls_as_one_over_the_number_of_samples(laws, monkeypatch):
    monkeypatch.setattr(peer_law, "BLOCK", 1 << 14)
    floors = [laws.floor("ring", num) for num in (1 << 14, 1 << 17, 1 << 19, 1 << 22)]
    assert floors[0] > 7 * floors[1] > 0
    assert floors[2] == pytest.approx(8 * floors[3], rel=0.03)
    assert laws.floor("gaussian", 1 << 14) == 0


def figure(value: float, error: float, title: str = "") -> peer_law.Figure:
    return peer_law.Figure(value, error, title)


def test_those_that_are_not_clearly_worse_go_on():
    figures = [figure(-1, 1, "a"), figure(1, 1, "b"), figure(2, 1.5, "c"), figure(6, 1, "d")]
    assert peer_law.going_on(figures, 8) == ["a", "b", "c"]
    assert peer_law.going_on(figures, 2) == ["a", "b"]


def test_a_duel_counts_nothing_below_its_error():
    made = peer_law.duel("ring", 20, [peer_law.Round(100, 1.0, [figure(8, 1)], [figure(-1, 2)])])
    assert (made.ratio, made.root, made.resolved) == (0.25, 0.5, True)
    assert made.most == pytest.approx(4 / 6)
    made = peer_law.duel("ring", 20, [peer_law.Round(100, 1.0, [figure(1, 1)], [figure(-1, 2)])])
    assert (made.most, made.resolved) == (math.inf, False)


def test_a_tournament_ends_when_a_side_is_firm(laws, monkeypatch):
    monkeypatch.setattr(peer_law, "ROUNDS", ((64, (2, 2)), (128, (1, 1)), (256, (1, 1))))
    monkeypatch.setitem(peer_law.LAST, "ring", 512)
    row = {True: "sde_toolkit", False: "diffusers"}
    entries = [peer_ours.default(eta) for eta in (0.1, 0.2, 0.3, 0.5)]
    pairs = [
        (peer_law.LawRow(row[k < 2], str(k), "", {"gaussian": [1.0, 1.0], "ring": [math.nan] * 2}), entry)
        for k, entry in enumerate(entries)
    ]
    asked = []

    def energy(who, laws, name, nfe, num, seed):
        asked.append((num, who.title))
        k = entries.index(who)
        return peer_law.Figure(float(k), 64 / num, who.title)

    monkeypatch.setattr(peer_law, "energy", energy)
    made = peer_law.tournament(pairs, laws, "ring", 1)
    titles = [entry.title for entry in entries]
    assert [title for num, title in asked if num == 64] == titles
    # the best peer, 2, is at four errors of a half, but not above
    assert [title for num, title in asked if num == 256] == [titles[2], titles[0]]
    assert [r.samples for r in made.rounds] == [64, 128, 256]
    assert (made.peer.title, made.ours.title) == (titles[2], titles[0])
    assert [r.errors["ring"] for r, _ in pairs][3] == pytest.approx([math.nan, 3.0], nan_ok=True)


def test_samples_of_both_sides_are_held_against_the_law(laws):
    peer = next(p for p in peer_diffusers.stochastic() if p.name == "DDPM, small variance")
    for who in (peer, peer_ours.default(1.0)):
        found = peer_law.energy(who, laws, "ring", 50, 4096, seed=1)
        assert found.title == who.title
        assert abs(found.value) < 0.05
        assert found.error >= laws.floor("ring", 4096)
    assert peer_law.energy(peer, laws, "ring", 50, 4096, 1) == peer_law.energy(
        peer, laws, "ring", 50, 4096, 1
    )


def test_forgotten_draws_are_not_made_anew():
    draws = peer_law.Draws(3, (4, 2))
    first = draws.draw(0)
    assert torch.equal(draws.draw(0), first)
    assert not torch.equal(draws.draw(0, 3), first)
    draws.draw(2)
    with pytest.raises(AssertionError, match="forgotten"):
        draws.draw(1)


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
    from benchmarks.peers import azula as peer_azula

    found = {(p.name, p.schedule): p for p in peer_azula.deterministic()}
    ddim = peer_flow.peer_error(found["DDIM", "vp"], problem, 20)
    assert ddim == pytest.approx(
        peer_flow.peer_error(named("DDIM", "trailing", False), problem, 20), rel=0.05
    )
    assert peer_flow.peer_error(found["zAB-3", "karras"], problem, 100) < 0.01
    assert peer_flow.peer_error(found["Heun", "karras"], problem, 100) < 0.01


def test_the_committed_comparison_on_many_scales_has_the_default_ahead():
    columns = json.loads((RESULTS / "peers_spectrum.json").read_text())["results"]
    for nfe, limit in {5: 1 / 2, 10: 1 / 3, 20: 1 / 5, 50: 1 / 4}.items():
        ratios = [c["pooled"] / c["peer_pooled"][0] for c in columns if c["nfe"] == nfe]
        assert len(ratios) == 80
        assert peer_flow.geometric_mean(ratios) <= limit


@pytest.mark.xfail(
    strict=True, reason=".35 for 1/3 at 10 and .25 for 1/5 at 20 evaluations: see benchmarks/README.md"
)
def test_the_committed_comparison_has_the_default_ahead():
    record = json.loads((RESULTS / "peers_flow.json").read_text())["results"]
    limits = {5: 1 / 2, 10: 1 / 3, 20: 1 / 5, 50: 1 / 4}
    assert {summary["nfe"] for summary in record["default"]} == set(limits)
    for summary in record["default"]:
        assert summary["mean"] <= limits[summary["nfe"]]


def test_the_committed_laws_of_ours_are_nearer_by_half_where_it_is_known():
    duels = json.loads((RESULTS / "peers_law.json").read_text())["results"]["best"]
    assert [(d["problem"], d["nfe"]) for d in duels if not d["resolved"]] == [("ring", 50)]
    assert all(d["ratio"] <= 1 / 2 for d in duels if d["resolved"])


def test_the_committed_parity_is_within_the_tolerance():
    rows = json.loads((RESULTS / "peers_parity.json").read_text())["results"]
    assert {row["sampler"] for row in rows} == {pair.name for pair in peer_parity.pairs()}
    assert peer_parity.complaints(rows) == []
