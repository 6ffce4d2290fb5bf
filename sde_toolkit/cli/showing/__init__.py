"""The verbs that show: what a comparison measured, and samples on their way."""

from sde_toolkit.cli.showing import animate, report

__all__ = ["animate", "report"]
