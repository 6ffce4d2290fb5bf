"""The replicates of a metric: its values for parts of the sets.

A bootstrap that draws with replacement repeats points, which shifts every distance of this room and inflates
the spread of a U-statistic.  ``bootstrap`` therefore takes parts of the sets without replacement, of both
sets at a time: all but one or two small groups, or random halves and quarters, whichever the metric's
``facts`` say.  The value reported is that of the whole sets, never a mean over parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from sde_toolkit.metrics.errors.estimates import Estimate
from sde_toolkit.metrics.errors.schemes import FEWEST, IN_QUARTERS
from sde_toolkit.metrics.protocol import Distance, Facts, Statistic, check_size, checked_set, checked_sets
from sde_toolkit.utils import Stream, checked, integer, permutation


@checked
def bootstrap(
    distance: Distance | Statistic | Callable[..., float],
    x: Tensor,
    y: Tensor | None = None,
    num_resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    """Return the distance of ``x`` with shape (n, *) and ``y`` with shape (m, *) with its standard error.

    The spread comes from ``num_resamples`` resamples without replacement: groups left out, or random halves
    (see ``sde_toolkit.metrics.errors.schemes``).  The error bar's own relative error is about
    num_resamples^(-1/2), more for equal distributions, where it is up to a quarter too large on average;
    ``Estimate.interval`` holds the truth as often as it says there too.  A ``Distance`` shares work between
    resamples; any other function of two sets is called once for each.  A ``Statistic`` is one of ``x`` alone.
    Raises ValueError for bad samples, fewer than 10 of them, or fewer than 20 resamples.
    """
    number = integer("num_resamples", num_resamples, 20) // 2
    if isinstance(distance, Statistic):
        return _of_one_set(distance, x, y, number, seed)
    if y is None:
        raise ValueError("y must be given for a distance of two sets, the real data, got None")
    x, y = checked_sets(x, y)
    facts = distance.facts if isinstance(distance, Distance) else Facts("distance")
    check_size(facts, x=x, y=y)
    number = _number(facts, number, x=x, y=y)
    keep_x, keep_y = (_masks(facts, len(s), number, seed, step) for step, s in enumerate((x, y)))
    if isinstance(distance, Distance):
        t = distance.on_subsets(x, y, keep_x, keep_x if facts.needs == "pairs" else keep_y)
    else:
        pairs = zip(keep_x, keep_y, strict=True)
        t = torch.tensor([distance(x[a], y[b]) for a, b in pairs], dtype=torch.float64)
    groups = f"{number} {_word(facts)} (seed {seed}) of {len(x)} samples and of {len(y)} of data {_digest(y)}"
    return _estimate(facts, t, groups, len(x), len(y))


def _of_one_set(statistic: Statistic, x: Tensor, y: Tensor | None, number: int, seed: int) -> Estimate:
    if y is not None:
        raise ValueError(
            f"y must be left out for the {statistic.facts.title}, a statistic of one set, got a second set"
        )
    x, facts = checked_set(x), statistic.facts
    check_size(facts, x=x)
    number = _number(facts, number, x=x)
    t = statistic.on_subsets(x, _masks(facts, len(x), number, seed, 0))
    groups = f"{number} {_word(facts)} (seed {seed}) of {len(x)} samples"
    return _estimate(facts, t, groups, len(x), len(x))


def _estimate(facts: Facts, t: Tensor, groups: str, n: int, m: int) -> Estimate:
    counts = {"": 0.0, "x": float(n), "y": float(m), "both": 4 / (1 / n + 1 / m), "pairs": min(n, m)}
    count = counts[facts.counted]
    return Estimate.from_replicates(
        t.tolist(), groups, scheme=facts.resampling, count=count, step=facts.step(n, m)
    )


def _word(facts: Facts) -> str:
    return "groups" if facts.resampling == "groups" else "splits"


def _number(facts: Facts, most: int, **sets: Tensor) -> int:
    """The number of groups, one sample at least in each; or that of splits into parts."""
    fewest = min(len(s) for s in sets.values())
    if fewest < FEWEST:
        raise ValueError(
            f"{' and '.join(sets)} must hold at least {FEWEST} samples for an error bar, got "
            f"{' and '.join(str(len(s)) for s in sets.values())}"
        )
    if facts.resampling == "groups":
        return min(most, fewest)
    return max(most // 2, FEWEST) if facts.resampling in IN_QUARTERS else most


def _masks(facts: Facts, n: int, number: int, seed: int, step: int) -> Tensor:
    if facts.resampling == "groups":
        return _group_masks(n, number, seed, step)
    return _part_masks(n, number, seed, step, facts.resampling in IN_QUARTERS)


def _group_masks(n: int, num_groups: int, seed: int, step: int) -> Tensor:
    """Return which samples stay, with shape (1 + 2 G, n): all; all but group g; all but g and g + 1."""
    group = torch.empty(n, dtype=torch.int64)
    group[permutation(n, seed, step, Stream.SPLIT)] = torch.arange(n) % num_groups
    keep = torch.ones(1 + 2 * num_groups, n, dtype=torch.bool)
    one, two = keep[1 : 1 + num_groups], keep[1 + num_groups :]
    for g in range(num_groups):
        torch.ne(group, g, out=one[g])
    for g in range(num_groups):
        torch.logical_and(one[g], one[(g + 1) % num_groups], out=two[g])
    return keep


def _part_masks(n: int, splits: int, seed: int, step: int, quarters: bool) -> Tensor:
    """Return which samples are taken, with shape (1 + 2 R, n): all; halves A_1, B_1 .. A_R, B_R; then the
    quarters of each split, A's first, with shape (1 + 6 R, n)."""
    keep = torch.ones(1 + (6 if quarters else 2) * splits, n, dtype=torch.bool)
    part = torch.empty(n, dtype=torch.int64)
    for split in range(splits):
        # steps 0 to 3 are the jackknife's groups and the folds of classifiers
        part[permutation(n, seed, 4 + 2 * split + step, Stream.SPLIT)] = torch.arange(n) % 4
        torch.lt(part, 2, out=keep[1 + 2 * split])
        torch.ge(part, 2, out=keep[2 + 2 * split])
        for k in range(4 if quarters else 0):
            torch.eq(part, k, out=keep[1 + 2 * splits + 4 * split + k])
    return keep


def _digest(y: Tensor) -> str:
    """Names the content of a set in 8 hexadecimal digits."""
    return hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest()[:8]
