"""A laboratory for score-based generative models in PyTorch.

    data -> forward process -> network -> score matching -> samplers, likelihoods -> comparison, report

The names below are the ones most programs need; they, and every room of the package, load on first use.  The
stub ``__init__.pyi`` lists them, for this file and for editors and type checkers alike.

    from sde_toolkit import VPSDE, ExactModel, GaussianMixture, ddim, log_likelihood
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _attached = lazy_loader.attach_stub(__name__, __file__)

ROOMS = (
    *("utils", "sdes", "models", "networks", "data", "metrics", "training", "samplers", "guidance"),
    *("likelihood", "lab", "interop", "config", "runs", "cli"),
)
"""The sub-packages, bottom up: each imports from those before it alone."""

__all__ = sorted(set(_attached) - set(ROOMS))
