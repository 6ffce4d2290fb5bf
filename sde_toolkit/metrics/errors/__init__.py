"""Error bars of metrics: what resamples say about the spread, paired differences, means over seeds.

schemes.py     the variance that a set of replicates stands for, and how far an interval reaches
estimates.py   a value with its error bar and replicates; differences and means of such values
resampling.py  the replicates of a metric
ranks.py       whether draws given observations are draws of the posterior
"""

from sde_toolkit.metrics.errors.estimates import Estimate, difference, over_seeds, pooled
from sde_toolkit.metrics.errors.ranks import RankTest, rank_test, tarp_ranks, truth_ranks
from sde_toolkit.metrics.errors.resampling import bootstrap

__all__ = [
    "Estimate",
    "RankTest",
    "bootstrap",
    "difference",
    "over_seeds",
    "pooled",
    "rank_test",
    "tarp_ranks",
    "truth_ranks",
]
