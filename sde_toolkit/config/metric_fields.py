"""The metrics of a comparison by name: those of ``sde_toolkit.metrics.CATALOGUE``, and the user's own.

    energy    exact_w2    kid(features='mine.py:features')    mode_coverage(measure=kl)    mine.py:metric

What a metric needs beside the samples comes from the problem: real examples, the exact density, the mixture,
the ends of the flow.  A path names a function (x, y) -> number of samples and real examples with shapes
(n, *) and (m, *), a ``Distance``, a ``Statistic``, or a class of these, which is made with the options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from sde_toolkit.config.sampler_fields import parse_call
from sde_toolkit.config.schema import need
from sde_toolkit.lab import FlowEnds, FlowMetric, GaussianMetric, Metric, NamedCondition, Problem
from sde_toolkit.metrics import CATALOGUE, Distance, Entry, Statistic, gaussian_w2
from sde_toolkit.models import ExactModel
from sde_toolkit.utils import named_object

LAWS: dict[str, tuple[str, Literal["w2", "kl"]]] = {
    "exact_w2": ("exact W2", "w2"),
    "exact_kl": ("exact KL", "kl"),
}
"""Metrics of a sampler's law on Gaussian data: name -> heading, and the distance."""

_GIVEN = {"density": "log_density", "mixture": "mixture"}
"""What a metric needs -> the option that the problem fills."""


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    return parse_call(text, "metric", "kid(features='mine.py:features')")


def checked_metric(text: str) -> None:
    """Refuse, before any work, an entry with an unknown name or option; paths are not followed here.

    Raises:
        ValueError: the sentence names what is valid.
    """
    name, options = _parsed(text)
    if ":" in name or "." in name:
        return
    need("metric", name, (*CATALOGUE, *LAWS))
    if name in LAWS:
        if options:
            raise ValueError(f"metric {name!r} has no option {next(iter(options))!r}; valid: none")
        return
    entry = CATALOGUE[name]
    valid = [option for option in entry.options if option != _GIVEN.get(entry.needs)]
    for option in options:
        if option not in valid:
            raise ValueError(f"metric {name!r} has no option {option!r}; valid: {', '.join(valid) or 'none'}")


def build_metric(
    text: str, part: str, problem: Problem, real: Tensor | None, condition: int | NamedCondition | None
) -> Metric:
    """The metric of an entry for the samples of a problem.

    Args:
        text: the entry.
        part: of the data that the real examples are, for the settings.
        problem: what is sampled.
        real: real examples in model scale with shape (M, *).
        condition: of all samples, and of the real examples.

    Raises:
        ValueError: an unknown name or option, or a metric that needs what the problem does not have.
    """
    name, options = _parsed(text)
    settings: dict[str, Any] = {} if real is None else {"real": part, "num_real": len(real)}
    settings |= options
    if condition is not None:
        is_class = isinstance(condition, int)
        settings |= {"class": condition} if is_class else {"condition": str(condition)}
    settings |= {"problem": problem.name} if problem.folder else {}  # real data of several are told apart
    if ":" in name or "." in name:
        return _own_metric(name, options, problem, real, settings, condition)
    checked_metric(text)
    if name in LAWS:
        return _law(name, problem)
    entry = CATALOGUE[name]
    title = _title(entry.title, options)
    if entry.needs == "pairs":
        return FlowMetric(
            title, entry.make(**options), None, options, ends=FlowEnds(problem.model, condition)
        )
    return Metric(title, _made(entry, options, problem, real, condition), real, settings, entry.better)


def _law(name: str, problem: Problem) -> Metric:
    if not isinstance(problem.model, ExactModel):
        raise ValueError(f"metric {name!r} needs an exact Gaussian problem, got {problem.name!r}")
    title, which = LAWS[name]
    return GaussianMetric(title, gaussian_w2, model=problem.model, measure_of=which)


def _title(title: str, options: dict[str, Any]) -> str:
    shown = (f"{name}={str(value).rpartition('/')[2]}" for name, value in options.items())
    return f"{title} ({', '.join(shown)})" if options else title


def _made(
    entry: Entry,
    options: dict[str, Any],
    problem: Problem,
    real: Tensor | None,
    condition: int | NamedCondition | None,
) -> Distance | Statistic:
    """The metric with what the problem gives it."""
    on_digits = entry.default_features == "digits" and "features" not in options
    if on_digits and problem.model.event_shape != (1, 8, 8):
        raise ValueError(
            f"metric {entry.name!r} needs features, which only the digits have by themselves, got data "
            f"{problem.name!r}; name yours, as in {entry.name}(features='mine.py:features'), or use energy "
            "or sliced_wasserstein"
        )
    if entry.needs == "density":
        density = problem.log_density if condition is None else _density_given(problem, condition)
        return entry.make(log_density=_needed(density, entry, problem, "density"), **options)
    if entry.needs == "mixture":
        mixture = problem.mixture if condition is None else None
        return entry.make(mixture=_needed(mixture, entry, problem, "law as a mixture"), **options)
    if entry.needs == "data" and real is None:
        raise ValueError(f"metric {entry.name!r} needs real examples, {_lacking(problem, condition)}")
    return entry.make(**options)


def _lacking(problem: Problem, condition: int | NamedCondition | None) -> str:
    """Where real examples are missing, and how to give them."""
    if isinstance(condition, NamedCondition):
        return (
            f"which problem {problem.name!r} does not know for condition {condition}; give it "
            "Problem(real_of_condition=...), a function of the condition, or compare by flow_error"
        )
    return f"which problem {problem.name!r} lacks"


def _density_given(problem: Problem, condition: int | NamedCondition) -> Callable[[Tensor], Tensor] | None:
    """log p(x | label) where the data are a mixture, whose components are the classes."""
    if problem.mixture is None or not isinstance(condition, int):
        return None
    law = problem.mixture.component(condition)
    return lambda x: law.log_prob(x.double())


def _needed(value: Any, entry: Entry, problem: Problem, what: str) -> Any:
    if value is None:
        raise ValueError(
            f"metric {entry.name!r} needs the exact {what} of the data, which problem {problem.name!r} does "
            "not know; use it on an exact problem such as ring or mixture8"
        )
    return value


def _own_metric(
    name: str,
    options: dict[str, Any],
    problem: Problem,
    real: Tensor | None,
    settings: dict[str, Any],
    condition: int | NamedCondition | None,
) -> Metric:
    found: Any = named_object(name, "metric")
    title = name.rpartition(":")[2] if ":" in name else name.rpartition(".")[2]
    if isinstance(found, Metric):
        return replace(found, real=found.real if found.real is not None else real)
    if isinstance(found, type) or options:
        try:
            found = found(**options)
        except Exception as error:  # whatever it raises
            raise ValueError(f"metric {name!r} failed: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(
            f"metric {name!r} must be a function (x, y) -> number, a Distance or a Statistic, got "
            f"{type(found).__name__}"
        )
    if not isinstance(found, Statistic) and real is None:
        raise ValueError(f"metric {name!r} needs real examples, {_lacking(problem, condition)}")
    own: Callable[[Tensor, Tensor], float] | Distance | Statistic = found
    facts = getattr(found, "facts", None)
    return Metric(_title(title, options), own, real, settings, getattr(facts, "better", "lower"))
