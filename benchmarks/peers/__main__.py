"""Our samplers beside those of diffusers and azula, on the same models, starts and budgets.

    python -m benchmarks.peers [flow] [parity] [law] [speed] [spectrum] [untouched] [renewed] [network] ...

    flow      error of the deterministic flow at 5, 10, 20 and 50 evaluations on exact problems and on the
              digits network                                                            (``peers.flow``)
    parity    our presets against diffusers on one network, one grid, one noise         (``peers.parity``)
    law       exact W2 and energy distance of stochastic samplers at 20 and 50          (``peers.law``)
    speed     time per evaluation over that of the bare model                           (``peers.speed``)
    spectrum  error of our default where data have many scales, on the reporting set    (``peers.spectrum``)
    untouched the same on a set that was looked at once, after everything was settled   (``peers.spectrum``)
    network   the errors of all samplers on the digits network and of our default on all problems, beside the
              recorded ones                                                           (``peers.flow``)
    renewed   as spectrum, the errors of our default alone, beside the recorded ones    (``peers.spectrum``)
    default   the errors of our default alone, beside the recorded ones of all others   (``peers.flow``)

Peers are driven by our models over the range of noise levels of our processes (``peers.models``), each under
every schedule that its library offers for that range (``peers.diffusers``, ``peers.azula``); a column's best
peer is the best of them all, chosen in hindsight, while our default has one fixed rule.  All five parts take
about two hours on one core.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.record import RESULTS, write_result

PACKAGES = ("diffusers", "azula")


def missing() -> str | None:
    """What to install, or None if nothing is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return (
        f"peers: {' and '.join(absent)} not installed; pip install 'sde-toolkit[peers]' to run this benchmark"
    )


def _settings(**more: Any) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"peers": versions, **more}


def flow(renew: bool = False) -> None:
    """Part A; with ``renew`` from the recorded rows, see ``peer_flow.renewed``."""
    from benchmarks import flows
    from benchmarks.peers import azula as peer_azula
    from benchmarks.peers import diffusers as peer_diffusers
    from benchmarks.peers import flow as peer_flow
    from benchmarks.peers import ours as peer_ours

    on = [*flows.problems(), peer_flow.digits_problem()]
    screen = peer_flow.digits_problem(peer_flow.SCREEN_POINTS, peer_flow.SCREEN_SEED)
    peers = [*peer_diffusers.deterministic(), *peer_azula.deterministic()]
    entries = [*peer_ours.deterministic(), peer_ours.default()]
    if renew:
        rows = peer_flow.renewed(peers, entries, _recorded(), on, screen)
    else:
        rows = peer_flow.measure(peers, entries, on, screen=screen)
    _write_flow(rows, on)


def network() -> None:
    """The network's column of part A, and our default's row."""
    flow(renew=True)


def _recorded() -> list[Any]:
    from benchmarks.peers import flow as peer_flow

    return peer_flow.recorded(json.loads((RESULTS / "peers_flow.json").read_text())["results"]["rows"])


def default() -> None:
    """Part A for our default alone."""
    from benchmarks import flows
    from benchmarks.peers import flow as peer_flow
    from benchmarks.peers import ours as peer_ours

    on = [*flows.problems(), peer_flow.digits_problem()]
    others = [row for row in _recorded() if (row.library, row.sampler) != (peer_flow.OURS, peer_flow.DEFAULT)]
    rows = [*others, *peer_flow.measure([], [peer_ours.default()], on, screen=on[-1])]
    _write_flow(rows, on)


def _write_flow(rows: Sequence[Any], on: Sequence[Any]) -> None:
    """Print and write the rows of part A, and the default against the best peers."""
    from benchmarks import flows
    from benchmarks.peers import flow as peer_flow

    chosen = [row for row in rows if row.library == peer_flow.OURS and row.sampler == peer_flow.DEFAULT]
    summaries = []
    for i, nfe in enumerate(peer_flow.EVALUATIONS):
        print(peer_flow.table(rows, on, i, nfe), end="\n\n")
        summaries.append(peer_flow.compare(rows, chosen, on, i, nfe))
    settings = _settings(
        evaluations=peer_flow.EVALUATIONS,
        points=flows.NUM_POINTS,
        network_points=(peer_flow.SCREEN_POINTS, peer_flow.DIGITS_POINTS),
        gaussian=[p.name for p in on if p.gaussian],
    )
    write_result("peers_flow", settings, {"rows": peer_flow.records(rows), "default": summaries})


def parity() -> None:
    """Part B; fails if a rule departs from diffusers without a reason."""
    from benchmarks.peers import parity as peer_parity

    rows = peer_parity.measure()
    print(peer_parity.table(rows))
    settings = _settings(
        steps=peer_parity.NUM_STEPS,
        samples=peer_parity.NUM_SAMPLES,
        seed=peer_parity.SEED,
        tolerance=peer_parity.TOLERANCE,
    )
    write_result("peers_parity", settings, rows)
    complaints = peer_parity.complaints(rows)
    if complaints:
        raise SystemExit("\n".join(complaints))


def law() -> None:
    """Part C."""
    from benchmarks.peers import azula as peer_azula
    from benchmarks.peers import diffusers as peer_diffusers
    from benchmarks.peers import energy as peer_energy
    from benchmarks.peers import law as peer_law
    from benchmarks.peers import ours as peer_ours

    laws = peer_law.Laws()
    peers = [*peer_diffusers.stochastic(), *peer_azula.stochastic()]
    pairs = peer_law.measure(peers, peer_ours.stochastic(), laws)
    duels = peer_law.duels(pairs, laws)
    rows = [row for row, _ in pairs]
    print(peer_law.table(rows, laws))
    print(peer_law.comparison(duels))
    settings = _settings(
        evaluations=peer_law.EVALUATIONS,
        rounds=peer_law.ROUNDS,
        last_round=peer_law.LAST,
        firm=peer_law.FIRM,
        chunk=peer_law.CHUNK,
        directions=peer_energy.DIRECTIONS,
        seed=peer_law.SEED,
    )
    write_result("peers_law", settings, {"rows": peer_law.records(rows), "best": duels})


def speed() -> None:
    """Part D."""
    from benchmarks.peers import speed as peer_speed

    rows = peer_speed.measure()
    print(peer_speed.table(rows))
    write_result("peers_speed", _settings(**peer_speed.SETTINGS), rows)


def spectrum(name: str = "reporting", renew: bool = False) -> None:
    """Part E, on one set of ``benchmarks.families``; with ``renew`` beside the peers' recorded errors."""
    from benchmarks import families, flows
    from benchmarks.peers import azula as peer_azula
    from benchmarks.peers import diffusers as peer_diffusers
    from benchmarks.peers import spectrum as peer_spectrum

    file = "peers_spectrum" if name == "reporting" else f"peers_spectrum_{name}"
    if renew:
        rows = json.loads((RESULTS / f"{file}.json").read_text())["results"]
        columns = peer_spectrum.renewed(getattr(families, name)(), rows)
    else:
        peers = [*peer_diffusers.deterministic(), *peer_azula.deterministic()]
        columns = peer_spectrum.measure(getattr(families, name)(), peers)
    print(peer_spectrum.table(columns))
    settings = _settings(
        evaluations=peer_spectrum.EVALUATIONS, points=flows.NUM_POINTS, end=families.NSR_MIN, set=name
    )
    write_result(file, settings, peer_spectrum.records(columns))


def renewed_spectrum() -> None:
    """Part E for our default alone."""
    spectrum(renew=True)


def untouched() -> None:
    """Part E on the untouched set."""
    spectrum("untouched")


PARTS: dict[str, Callable[[], None]] = {
    "flow": flow,
    "parity": parity,
    "law": law,
    "speed": speed,
    "spectrum": spectrum,
}
MORE: dict[str, Callable[[], None]] = {
    "network": network,
    "default": default,
    "untouched": untouched,
    "renewed": renewed_spectrum,
}


def main(parts: Sequence[str] = ()) -> None:
    """Run the parts named, or all; without the peers say what to install."""
    known = PARTS | MORE
    unknown = sorted(set(parts) - set(known))
    if unknown:
        raise SystemExit(f"unknown part {', '.join(unknown)}; choose from {', '.join(known)}")
    sentence = missing()
    if sentence is not None:
        print(sentence)
        return
    import diffusers

    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for part in parts or PARTS:
            print(f"-- {part}", flush=True)
            known[part]()


if __name__ == "__main__":
    main(sys.argv[1:])
