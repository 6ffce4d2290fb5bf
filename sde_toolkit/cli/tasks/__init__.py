"""What is made from given data: ``inpaint``, ``restore``, ``impute`` and ``interpolate``."""
