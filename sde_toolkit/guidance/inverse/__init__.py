"""Inverse problems: observations of data, and samplers of what the data were, p(x0 | y)."""
