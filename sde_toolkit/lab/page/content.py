"""What a page says: headline figures, pictures of samples, records, further pictures, how it was made."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sde_toolkit.lab.drawing import png_size
from sde_toolkit.lab.records import Record, Reference


@dataclass(frozen=True)
class Picture:
    """A figure of the page: the bytes of a PNG or GIF, its caption, a description for who cannot see it."""

    png: bytes = field(repr=False)
    caption: str
    alternative: str

    @property
    def base64(self) -> str:
        """The picture in base64."""
        return base64.b64encode(self.png).decode()

    @property
    def kind(self) -> str:
        """The picture's media type."""
        return "image/gif" if self.png[:4] == b"GIF8" else "image/png"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; (0, 0) where they are not known."""
        return png_size(self.png)


@dataclass(frozen=True)
class Sample(Picture):
    """Samples of one candidate.

    Attributes:
        sampler: its name; empty for real data.
        problem, condition: as in the records, the condition as ``lab.table.short`` writes it.
        grid: of its steps, as the records say it.
    """

    sampler: str = ""
    problem: str = ""
    condition: str = ""
    grid: str = ""


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
        samples: pictures of samples, side by side; those of one sampler stand in one row.
        cards: headline figures.
        records, references: for the charts, the table and the differences.
        trajectories: pictures of samples on their way from noise to data.
        pictures: further ones, with captions.
        config: the configuration as JSON.
        commands: shell lines that reproduce the page.
        facts: further pairs for the list at the end, next to the versions.
    """

    title: str
    lead: str
    cards: Sequence[Card] = ()
    pictures: Sequence[Picture] = ()
    records: Sequence[Record] = ()
    references: Sequence[Reference] = ()
    config: str = ""
    commands: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    trajectories: Sequence[Picture] = ()
