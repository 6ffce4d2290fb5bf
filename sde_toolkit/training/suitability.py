"""Whether data suit the process and their own scaling, said in numbers before the training begins.

At T the data with mean m and variances l have the mean alpha_T m and the variances alpha_T^2 l + sigma_T^2,
where sampling starts from N(0, prior_std^2).  The difference of the means, in standard deviations of the
prior, and the ratio of the standard deviations stay in every sample.

Under one common scale a feature whose standard deviation is far below that of the others is learnt last: its
score is that of a point until the noise is as small as the feature.
"""

from __future__ import annotations

import warnings

import torch

from sde_toolkit.data import Dataset
from sde_toolkit.sdes import ForwardSDE

MOST_SHIFT = 0.5
"""Largest distance of the means at T that raises no warning, in standard deviations of the prior."""

MOST_RATIO = 1.1
"""Largest ratio of the standard deviations at T that raises no warning."""

MOST_SPREAD = 30.0
"""Largest ratio of the features' standard deviations that raises no warning."""


def warn_if_unsuitable(dataset: Dataset, sde: ForwardSDE) -> None:
    """Warn of data whose law at T is not that of the prior, and of features of very different scale.

    Args:
        dataset: its mean and variances are used, in model scale.
        sde: the forward process.
    """
    if not float(dataset.variance.amax()) > 0:
        raise ValueError("dataset must hold examples that differ, got equal ones: there is no law to learn")
    T = torch.tensor(sde.T, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(T)), float(sde.sigma(T))
    shift = alpha * float(dataset.mean.abs().amax()) / sde.prior_std
    ratio = (alpha**2 * float(dataset.variance.amax()) + sigma**2) ** 0.5 / sde.prior_std
    if shift > MOST_SHIFT or ratio > MOST_RATIO:
        warnings.warn(
            f"the data are far from where sampling starts: at T their mean is {shift:.3g} standard "
            f"deviations of the prior away, and their standard deviation {ratio:.3g} times the prior's; "
            "every sample will be off by that; scale the data (Scaling.standard), or take a process with "
            "more noise",
            stacklevel=3,
        )
    std = dataset.variance.sqrt().flatten()
    if len(dataset.event_shape) == 1 and float(std.amin()) > 0:
        spread = float(std.amax() / std.amin())
        if spread > MOST_SPREAD:
            warnings.warn(
                f"the features' standard deviations differ by a factor of {spread:.3g} under one common "
                f"scale: feature {int(std.argmin())}, the smallest, will come out too wide; scale every "
                "feature by itself (Scaling.standard(x, per_coordinate=True), "
                "--config.data.scaling=per_coordinate)",
                stacklevel=3,
            )
