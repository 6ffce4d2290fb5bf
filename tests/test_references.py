"""What the texts name exists: every ``sde_toolkit...`` and ``solvers...`` between double backquotes."""

import re
from importlib import import_module
from pathlib import Path

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


def test_every_name_in_the_text_is_found() -> None:
    lost = []
    for path in FILES:
        for name in NAMES.findall(path.read_text(encoding="utf-8")):
            try:
                resolve(name)
            except (ModuleNotFoundError, AttributeError):
                lost.append(f"{path.relative_to(ROOT)}: {name}")
    assert lost == []
