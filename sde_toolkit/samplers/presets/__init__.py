"""The literature's samplers, one file per family, each a rule beside its paper's algorithm.

A new sampler is a new function here that returns a ``Sampler``: ``sde_toolkit.samplers.catalogue`` finds it.
"""
