"""Inverse problems: ``inpaint``, ``restore`` and ``impute``."""
