"""What the texts name exists: every ``sde_toolkit...`` and ``solvers...`` between double backquotes."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = re.compile(r"``((?:sde_toolkit|solvers|benchmarks)(?:\.\w+)+)``")
FILES = sorted(
    path for folder in ("sde_toolkit", "solvers", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


def resolve(name: str) -> object:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_in_the_text_is_found(path: Path) -> None:
    for name in NAMES.findall(path.read_text(encoding="utf-8")):
        resolve(name)
