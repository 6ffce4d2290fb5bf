"""The page as HTML: the template ``page.html.j2`` filled in, which escapes all text, and what it embeds.

Nothing is loaded from elsewhere, and the page's own policy forbids it.  The charts are drawn by plotly.js as
the package ``plotly`` ships it: the whole library, as there is no smaller bundle in the package; compressed
by gzip it takes 2 MB of the page, and the browser unpacks it.  Without scripts the samples, the table and all
text remain.
"""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.metadata
import importlib.resources
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sde_toolkit.lab.page.content import Page, Sample
from sde_toolkit.lab.page.data import (
    draw_labels,
    facets_of,
    page_data,
    script_json,
)
from sde_toolkit.lab.records import Record
from sde_toolkit.lab.table import best_records, distinguishing, pivot, plus_minus, reference_rows, short_name
from sde_toolkit.utils import atomic_write

FOLDER = Path(__file__).parent
PACKAGES = ("sde-toolkit", "torch", "numpy", "scipy", "torchsde", "diffusers", "scikit-learn", "plotly")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["machine"] = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    return found


def write_page(path: Path, page: Page) -> None:
    """Write the page as one self-contained HTML file, atomically."""
    atomic_write(path, render_page(page).encode(errors="replace"))


def render_page(page: Page) -> str:
    """The page as HTML text without any external resource."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_asset("page.html.j2"))
    return template.render(
        page=page,
        style=_asset("page.css"),
        scripts=[_script(_asset(name)) for name in ("chart.js", "page.js")] if page.records else [],
        data=script_json(page_data(page.records, page.references)) if page.records else "",
        library=_library() if page.records else "",
        table=_table(page),
        galleries=_galleries(page.samples),
        draws="; ".join(sorted(set(draw_labels(page.records)))),
        measured=_measured(page.records),
        facts={**page.facts, **versions()},
    )


def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """A script that cannot end its own element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@functools.cache
def _library() -> str:
    """plotly.js, compressed, in base64."""
    source = (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()


def _table(page: Page) -> dict[str, Any]:
    """Columns and rows of the table: of each cell its text, the number to sort by, whether it is the best."""
    metrics, rows = pivot(page.records)
    best = best_records(page.records)
    body = []
    for row in rows:
        first = row.record
        cells: list[dict[str, Any]] = [_cell(row.setting, first.num_steps)]
        cells += [_cell(text) for text in row.more]
        cells.append(_cell(f"{row.nfe:.4g}", row.nfe))
        for record in row.cells:
            if record is None:
                cells.append(_cell("", None))
            else:
                text = plus_minus(record.value, record.standard_error)
                cells.append({**_cell(text, record.value), "best": id(record) in best})
        cells.append(_cell(f"{row.seconds:.2f}", row.seconds))
        body.append({"head": short_name(row.sampler), "cells": cells, "facets": facets_of(first)})
    more = distinguishing(page.records)
    return {
        "head": ["sampler", "steps", *more, "NFE", *metrics, "seconds"],
        "rows": body,
        "references": _reference_rows(page, metrics, more),
        "metrics": metrics,
    }


def _cell(text: str, number: float | None = None) -> dict[str, Any]:
    return {"text": text, "number": "" if number is None else f"{number:.17g}", "best": False}


def _reference_rows(page: Page, metrics: Sequence[str], more: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for label, told, found in reference_rows(page.references, metrics, more):
        amounts = ["" if r is None else plus_minus(r.value, r.standard_error) for r in found]
        problem = next((r.settings.get("problem", "") for r in found if r is not None), "")
        rows.append({"head": label, "cells": ["", *told, "", *amounts, ""], "problem": problem})
    return rows


def _galleries(samples: Sequence[Sample]) -> list[tuple[str, list[Sample]]]:
    """Pictures of samples by sampler, those of real data first."""
    rows: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: bool(sample.sampler)):
        rows.setdefault(sample.sampler, []).append(sample)
    return [(name or "real data", row) for name, row in rows.items()]


def _measured(records: Sequence[Record]) -> list[str]:
    """On what the records were measured, each version and machine once."""
    found: dict[str, None] = {}
    for record in records:
        parts = []
        for value in record.made_by.values():
            if isinstance(value, dict):
                parts.append(", ".join(f"{name} {entry}" for name, entry in value.items()))
            else:
                parts.append(str(value))
        if parts:
            found["; ".join(parts)] = None
    return list(found)
