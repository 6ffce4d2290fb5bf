"""The catalogue of metrics."""

import inspect

import pytest
import torch

from sde_toolkit import GaussianMixture
from sde_toolkit.metrics import (
    CATALOGUE,
    Distance,
    OnFeatures,
    SlicedWasserstein,
    Statistic,
    bootstrap,
    metric,
)

MIXTURE = GaussianMixture([0.5, 0.5], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), [0.1, 0.2])
GIVEN = {
    "frechet": {"features": None},
    "kid": {"features": None},
    "nll": {"log_density": MIXTURE.log_prob},
    "mode_coverage": {"mixture": MIXTURE},
}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_every_metric_is_built_and_has_an_error_bar(name):
    made, x, y = metric(name, **GIVEN.get(name, {})), normal(40, 2), normal(40, 2, seed=1)
    assert isinstance(made, (Distance, Statistic))
    assert isinstance(made, Statistic) == (CATALOGUE[name].needs in ("samples", "density", "mixture"))
    found = bootstrap(made, x, y if isinstance(made, Distance) else None)
    assert found.standard_error >= 0
    splits = {
        "groups": 40,
        "halves": 50,
        "kinks": 50,
        "local": 3 * 25,
        "quarters": 3 * 25,
    }  # quarters: 6 each
    assert len(found.replicates) == 1 + 2 * splits[found.scheme]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = made(x[order], y[order]) if isinstance(made, Distance) else made(x[order])
    # folds go with places in the set, so the classifiers differ
    assert moved == pytest.approx(found.value, rel=0.5 if "c2st" in name else 1e-9)


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_entries_say_what_their_metric_says(name):
    entry, made = CATALOGUE[name], metric(name, **GIVEN.get(name, {}))
    assert made.facts.needs == entry.needs
    assert made.facts.better == entry.better
    assert made.facts.title == entry.title or name == "mode_coverage"
    for option, default in entry.options.items():
        if default is not inspect.Parameter.empty and option != "features":
            assert getattr(made, option) == default


def test_options_and_features():
    assert metric("sliced_wasserstein", order=2) == SlicedWasserstein(order=2)
    assert isinstance(metric("energy", features=torch.tanh), OnFeatures)
    with pytest.raises(ValueError, match="metric 'energy' has no option 'order'; valid: features"):
        metric("energy", order=2)
    with pytest.raises(ValueError, match="metric 'precision' has no option 'measure'"):
        metric("precision", measure="recall")
    with pytest.raises(ValueError, match="metric 'nll' needs the option log_density"):
        metric("nll")
    with pytest.raises(ValueError, match="name 'enrgy' is no metric; did you mean 'energy'"):
        metric("enrgy")
