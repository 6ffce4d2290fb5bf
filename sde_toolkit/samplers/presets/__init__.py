"""The literature's samplers, one file per family, each a rule beside its paper's algorithm."""
