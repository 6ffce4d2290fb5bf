"""Reports: the comparison as a text table, and one self-contained HTML page.

The page holds everything in one file: figures are embedded as base64, nothing is loaded from elsewhere, and
it is readable in light and dark, on paper and on a small screen.  A number with an error is written to the
second significant digit of its error, as in 3.21 ± 0.13; the error is one standard error.
"""

from __future__ import annotations

import base64
import html
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sde_toolkit.lab.experiment import Record, Reference
from sde_toolkit.lab.table import _lines
from sde_toolkit.utils import atomic_write

STYLE = Path(__file__).with_name("page.css")
PACKAGES = ("sde-toolkit", "torch", "numpy", "scipy", "torchsde", "diffusers", "scikit-learn")


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


@dataclass(frozen=True)
class Picture:
    """A figure of the page: the bytes of a PNG, its caption, a description for those who cannot see it."""

    png: bytes = field(repr=False)
    caption: str
    alternative: str


@dataclass(frozen=True)
class Card:
    """A headline figure: a number, what it is, and what to hold it against."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What the page says, in the order in which it says it.

    Attributes:
        title, lead: heading, and a sentence or two below it.
        cards: headline figures.
        pictures: with captions.
        records, references: for the table.
        config: the configuration as JSON.
        commands: shell lines that reproduce the page.
        facts: further pairs for the list at the end, next to the versions.
    """

    title: str
    lead: str
    cards: Sequence[Card]
    pictures: Sequence[Picture]
    records: Sequence[Record]
    references: Sequence[Reference] = ()
    config: str = ""
    commands: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, page: Page) -> None:
    """Write the page as one self-contained HTML file, atomically."""
    atomic_write(path, render_page(page).encode())


def render_page(page: Page) -> str:
    """The page as HTML text without any external resource."""
    text = html.escape
    parts = [f"<header><h1>{text(page.title)}</h1><p>{text(page.lead)}</p></header>"]
    if page.cards:
        parts.append('<section class="cards">' + "".join(map(_card, page.cards)) + "</section>")
    pictures = [_picture(picture) for picture in page.pictures]
    parts.extend(pictures[:1])
    if page.records:
        parts.append(_table(page.records, page.references))
    parts.extend(pictures[1:])
    if page.commands:
        lines = text("\n".join(page.commands))
        parts.append(f"<section><h2>How to reproduce</h2><pre><code>{lines}</code></pre></section>")
    facts = "".join(
        f"<tr><th scope='row'>{text(name)}</th><td>{text(value)}</td></tr>"
        for name, value in {**page.facts, **versions()}.items()
    )
    facts = f"<table class='facts'><tbody>{facts}</tbody></table>"
    parts.append(f"<section><h2>Run and versions</h2>{facts}</section>")
    if page.config:
        parts.append(
            f"<section><details><summary>Configuration</summary><pre><code>{text(page.config)}</code></pre>"
            "</details></section>"
        )
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(page.title)}</title><style>{STYLE.read_text()}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _card(card: Card) -> str:
    label, value, note = (html.escape(part) for part in (card.label, card.value, card.note))
    head = f'<div class="label">{label}</div><div class="value">{value}</div>'
    return f'<div class="card">{head}<p>{note}</p></div>'


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    alternative, caption = html.escape(picture.alternative, quote=True), html.escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alternative}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(records: Sequence[Record], references: Sequence[Reference]) -> str:
    head, body = _lines(records, references)
    columns = "".join(f'<th scope="col">{html.escape(cell.strip())}</th>' for cell in head)
    rows, previous = [], ""
    for cells in body:
        kind = ' class="first"' if cells[0] != previous else ""
        previous = cells[0]
        name = f'<th scope="row">{html.escape(cells[0])}</th>'
        rows.append(f"<tr{kind}>{name}{''.join(map(_cell, cells[1:]))}</tr>")
    draws = sorted({f"{r.num_samples} samples for each of the seeds {list(r.seeds)}" for r in records})
    note = f"Lower is better; ± is one standard error; the best of each column is bold. {'; '.join(draws)}."
    table = f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = f"<p class='note'>{html.escape(note)}</p>"
    return f"<section><h2>All results</h2><div class='wide'>{table}</div>{note}</section>"


def _cell(cell: str) -> str:
    if cell.endswith(" *"):
        return f"<td><strong>{html.escape(cell[:-2])}</strong></td>"
    return f"<td>{html.escape(cell.strip())}</td>"
