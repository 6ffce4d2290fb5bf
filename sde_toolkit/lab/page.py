"""The report: one HTML page that holds the figures, the table and how they were made.

Figures are embedded as base64 and nothing is loaded from elsewhere; the page can be read in light and dark,
on paper and on a small screen.  Its text is put into the template ``page.html.j2``, which escapes it; its
style is ``page.css``.
"""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sde_toolkit.lab.records import Record, Reference
from sde_toolkit.lab.table import table_lines
from sde_toolkit.utils import atomic_write

TEMPLATE = Path(__file__).with_name("page.html.j2")
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

    @property
    def base64(self) -> str:
        """The PNG in base64."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Card:
    """A headline figure: a number, what it is, and what to compare it with."""

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
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    head, rows = table_lines(page.records, page.references) if page.records else ([], [])
    draws = sorted({f"{r.num_samples} samples for each of the seeds {list(r.seeds)}" for r in page.records})
    return template.render(
        page=page,
        style=STYLE.read_text(encoding="utf-8"),
        head=head,
        rows=rows,
        draws="; ".join(draws),
        facts={**page.facts, **versions()},
    )
