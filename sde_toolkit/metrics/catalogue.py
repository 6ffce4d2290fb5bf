"""The catalogue of metrics: name -> how it is built, what it needs, and its options.

    metric("energy")                                   metric("sliced_wasserstein", order=2)
    metric("kid", features="inception:weights.pth")    metric("mode_coverage", mixture=law, measure="kl")

Options are the arguments of the constructor; those of an entry are in its ``options``, with their defaults,
and explained in the docstring of what it builds.  Where a metric is on features, ``features`` is what
``feature_extractor`` takes, or None for the samples themselves.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sde_toolkit.metrics.distances import (
    MMD,
    EnergyDistance,
    FrechetDistance,
    KernelInceptionDistance,
    OnFeatures,
    SlicedWasserstein,
)
from sde_toolkit.metrics.diversity import RelativeDiversity, VendiScore
from sde_toolkit.metrics.exact import FlowError, ModeCoverage, NegativeLogLikelihood
from sde_toolkit.metrics.extractors import feature_extractor
from sde_toolkit.metrics.neighbours import NeighbourMetric
from sde_toolkit.metrics.protocol import Distance, Statistic
from sde_toolkit.metrics.transport import Wasserstein
from sde_toolkit.metrics.two_sample import ClassifierTest
from sde_toolkit.utils import checked

AnyMetric = Distance | Statistic


@dataclass(frozen=True)
class Entry:
    """A metric of the catalogue.

    Attributes:
        name: by which it is chosen.
        title: heading of its column.
        needs: see ``Facts``.
        build: makes it from the options.
        fixed: arguments that the name stands for.
        default_features: of a metric on features: digits', or None.
        on_features: whether there is an option "features".
        better: see ``Facts``.
        any_sizes: whether the two sets may hold different numbers of samples.
    """

    name: str
    title: str
    needs: str
    build: Callable[..., AnyMetric] = field(repr=False)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    default_features: str | None = None
    on_features: bool = False
    better: str = "lower"
    any_sizes: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Option -> its default; ``inspect.Parameter.empty`` where one must be given."""
        found = {
            name: parameter.default
            for name, parameter in inspect.signature(self.build).parameters.items()
            if name not in self.fixed
        }
        return found | ({"features": self.default_features} if self.on_features else {})

    def make(self, **options: Any) -> AnyMetric:
        """The metric.

        Raises:
            ValueError: an unknown option, a missing one, or a value out of range.
            TypeError: a value of another kind.
        """
        known = self.options
        for name in options:
            if name not in known:
                raise ValueError(
                    f"metric {self.name!r} has no option {name!r}; valid: {', '.join(known) or 'none'}"
                )
        for name, default in known.items():
            if default is inspect.Parameter.empty and name not in options:
                raise ValueError(f"metric {self.name!r} needs the option {name}, got none")
        features = options.pop("features", self.default_features) if self.on_features else None
        made = self.build(**self.fixed, **options)
        if features is None:
            return made
        assert isinstance(made, Distance)
        return OnFeatures(feature_extractor(features), made)


def _entries() -> list[Entry]:
    """Every metric once, those on features first."""
    better = {"precision": "higher", "recall": "higher", "density": "closer", "coverage": "higher"}
    balls = [
        Entry(kind, kind, "data", NeighbourMetric, {"measure": kind}, None, True, word)
        for kind, word in better.items()
    ]
    tests = [
        Entry(name, f"classifier {word}", "data", ClassifierTest, {"measure": measure}, None, True)
        for name, word, measure in (("c2st", "accuracy", "accuracy"), ("c2st_auc", "AUC", "auc"))
    ]
    return [
        Entry("frechet", "Frechet distance", "data", FrechetDistance, {}, "digits", True),
        Entry("kid", "KID", "data", KernelInceptionDistance, {}, "digits", True),
        Entry("sliced_wasserstein", "sliced Wasserstein", "data", SlicedWasserstein, {}, None, True),
        Entry("wasserstein", "Wasserstein distance", "data", Wasserstein, {}, None, True, any_sizes=False),
        Entry("energy", "energy distance", "data", EnergyDistance, {}, None, True),
        Entry("mmd", "squared MMD", "data", MMD, {}, None, True),
        *balls,
        *tests,
        Entry("diversity", "relative diversity", "data", RelativeDiversity, {}, None, True, "closer"),
        Entry("vendi", "Vendi score", "samples", VendiScore, better="higher"),
        Entry("nll", "negative log-likelihood", "density", NegativeLogLikelihood, better="closer"),
        Entry("mode_coverage", "modes", "mixture", ModeCoverage),
        Entry("flow_error", "flow error", "pairs", FlowError),
    ]


CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _entries()}
"""Name -> metric."""


@checked
def metric(name: str, **options: Any) -> AnyMetric:
    """Return the metric of this name with the given options; see ``CATALOGUE``.

    Raises ValueError for an unknown name or option, and TypeError for a value of another kind.
    """
    if name not in CATALOGUE:
        close = difflib.get_close_matches(name, CATALOGUE, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"name {name!r} is no metric; {meant}valid: {', '.join(CATALOGUE)}")
    return CATALOGUE[name].make(**options)
