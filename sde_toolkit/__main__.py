"""``python -m sde_toolkit``: the same as the command ``sde-toolkit``."""

import sys

from sde_toolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
