"""The verbs that write weights: those of a run, and averages of other lengths."""

from sde_toolkit.cli.weights import ema, export

__all__ = ["ema", "export"]
