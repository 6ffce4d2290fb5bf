"""Run benchmark programs: all of them, or those named.

    python -m benchmarks
    python -m benchmarks convergence

A program is a module of this package with a function ``main()``.  Each prints its table and writes its
figures to benchmarks/results/.
"""

from __future__ import annotations

import ast
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def programs() -> list[str]:
    """Names of the modules beside this one that define ``main``, found without importing them."""
    names = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if path.stem != "__main__" and any(isinstance(s, ast.FunctionDef) and s.name == "main" for s in body):
            names.append(path.stem)
    return names


def main(names: Sequence[str]) -> None:
    """Run the programs with the given names, or all."""
    unknown = sorted(set(names) - set(programs()))
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(programs())}")
    for name in names or programs():
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        importlib.import_module(f"benchmarks.{name}").main()
        print(f"   {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
