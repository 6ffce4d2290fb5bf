"""A report page of a comparison that never was: all that a page may hold, and text that wants to be code."""

import numpy as np

from sde_toolkit.lab import Record, Reference, extent_of, sample_picture
from sde_toolkit.lab.page import Card, Page, Picture, Sample
from sde_toolkit.metrics import Estimate

GRIDS = {"ddim": "uniform", "heun": "karras", "dopri5": None}
HOSTILE = "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>"


def measured(problem, metric, sampler, steps, value, error=0.02):
    noise = np.random.default_rng([len(problem), len(metric), len(sampler), steps or 0])
    estimate = Estimate.from_replicates([value, *(value + error * noise.normal(size=20))], "groups")
    grid = {} if GRIDS[sampler] is None else {"grid": GRIDS[sampler], "eta": 0.0}
    more = {"rtol": 0.001} if steps is None else {"num_steps": steps}
    nfe = 43.5 if steps is None else float(2 * steps if sampler == "heun" else steps)
    return Record(
        sampler, steps, nfe, metric, value, estimate.standard_error, 0.01 * nfe, 200, (0, 1),
        {"sampler": sampler, "note": HOSTILE, **grid, **more}, problem, 0.009 * nfe, 10**8,
        (estimate, estimate), {"versions": {"torch": "2"}},
    )  # fmt: skip


def make_records():
    """Two problems, three samplers; the energy distance of good samplers scatters around zero."""
    rows = []
    for problem, scale in (("ring", 1.0), ("<digits>", 3.0)):
        for sampler, level in (("ddim", 2.0), ("heun", 3.0)):
            for steps in (5, 10, 20, 50):
                rows.append(measured(problem, "Frechet", sampler, steps, scale * level * 5 / steps + 0.5))
                rows.append(measured(problem, "energy", sampler, steps, level * 5 / steps**2 - 0.01))
        rows.append(measured(problem, "Frechet", "dopri5", None, 0.5 * scale))
        rows.append(measured(problem, "energy", "dopri5", None, -0.004))
    rows.append(measured("ring", "coverage", "ddim", 5, 0.8))  # a metric that one problem has
    return rows


def make_page():
    points = np.random.default_rng(0).normal(size=(300, 2))
    bound = extent_of(points)
    samples = [Sample(sample_picture(points, bound), "test examples", "Real data")]
    for record in make_records():
        if record.metric == "energy":
            caption = f"{record.num_steps or 'adaptive'} steps, NFE {record.nfe:g}"
            picture = sample_picture(points + record.value, bound)
            grid = record.settings.get("grid") or ""
            told = f"Samples of {record.sampler}, {caption}"
            samples.append(Sample(picture, caption, told, record.sampler, record.problem, "", grid))
    images = np.random.default_rng(1).uniform(size=(25, 1, 8, 8))
    return Page(
        title="Samplers on <two> problems", lead=HOSTILE, samples=samples,
        cards=[Card("best Frechet", "0.50 ± 0.02", "dopri5")], records=make_records(),
        references=[Reference("Frechet", "200 real examples", 0.5, 0.1),
                    Reference("energy", "200 real examples", 0.0, 0.02)],
        pictures=[Picture(sample_picture(images), "The training loss.", "A falling curve")],
        trajectories=[Picture(sample_picture(points), "From noise to data.", "Points that move")],
        config='{"seed": 0}', commands=["sde-toolkit compare --problems=ring"], facts={"checkpoint": "none"},
    )  # fmt: skip
