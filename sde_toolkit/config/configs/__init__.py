"""Configurations by name: each module has a function ``get_config()``."""
