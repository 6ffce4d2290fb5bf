"""The table and the page: what they say, and that the page stands alone."""

import base64
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sde_toolkit.lab.experiment import Record, Reference
from sde_toolkit.lab.page import Card, Page, Picture, render_page, versions, write_page
from sde_toolkit.lab.table import format_table, pivot, plus_minus

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def record(sampler, num_steps, metric, value, nfe=None, **settings):
    return Record(sampler, num_steps, nfe or num_steps, metric, value, 0.1, 1.5, 10, (0,), settings)


RECORDS = [
    record("ddim", 5, "energy", 2.0),
    record("ddim", 5, "MMD", 0.25),
    record("ddim", 50, "energy", 1.0),
    record("dopri5", None, "energy", 1.25, nfe=61.4, rtol=0.001),
]
REFERENCES = [Reference("energy", "halves", 0.9, 0.05)]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.21, 0.134, "3.21 ± 0.13"),
        (3.21456, 0.00134, "3.2146 ± 0.0013"),
        (1234.5, 25.0, "1234 ± 25"),
        (0.0, 1e-12, "0.00000000 ± 0.00000000"),
        (2.0, 0.0, "2"),
        (float("nan"), 1.0, "nan"),
        (1.0, float("inf"), "1"),
    ],
)
def test_numbers_stop_at_the_second_digit_of_the_error(value, error, text):
    assert plus_minus(value, error) == text


def test_pivot_has_a_row_for_each_candidate():
    metrics, rows = pivot(RECORDS)
    assert metrics == ["energy", "MMD"]
    assert [(row.sampler, row.setting) for row in rows] == [
        ("ddim", "5"),
        ("ddim", "50"),
        ("dopri5", "rtol 0.001"),
    ]
    assert rows[1].cells[1] is None


def test_table():
    lines = format_table(RECORDS, REFERENCES).splitlines()
    assert lines[0].split() == ["sampler", "steps", "NFE", "energy", "MMD", "seconds"]
    assert set(lines[1]) == {"-"}
    assert lines[2].split() == ["ddim", "5", "5", "2.00", "±", "0.10", "0.25", "±", "0.10", "*", "1.50"]
    assert "1.00 ± 0.10 *" in lines[3]
    assert lines[4].split()[:4] == ["dopri5", "rtol", "0.001", "61.4"]
    assert lines[5].startswith("halves")
    assert "0.900 ± 0.050" in lines[5]
    assert max(map(len, lines)) <= 110


class Reader(HTMLParser):
    """Checks nesting; collects tags, addresses and text."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.alternatives, self.text, self.rows = [], [], [], "", 0

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self.alternatives += [value for name, value in attrs if name == "alt"]
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(**changes):
    fields = {
        "title": "Digits <VP>",
        "lead": "A & B.",
        "cards": [Card("bits/dim", "2.31 ± 0.02", "uniform 4.09")],
        "pictures": [Picture(PNG, "a caption", 'it says "x"')],
        "records": RECORDS,
        "references": REFERENCES,
        "config": '{"seed": 0}',
        "commands": ["sde-toolkit demo --workdir=<DIR>"],
        "facts": {"steps": "20"},
    }
    return Page(**{**fields, **changes})


def test_page_is_self_contained_and_escaped():
    text = render_page(page())
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert base64.b64decode(reader.addresses[0].partition(",")[2]) == PNG
    assert not re.search(r"https?:|url\(|@import|<script", text)
    for piece in (
        "Digits <VP>",
        "A & B.",
        "2.31 ± 0.02",
        "a caption",
        '{"seed": 0}',
        "--workdir=<DIR>",
        "halves",
    ):
        assert piece in reader.text
    assert reader.alternatives == ['it says "x"']
    assert "prefers-color-scheme: dark" in text


def test_page_without_results_is_valid():
    reader = Reader()
    reader.feed(render_page(page(cards=[], pictures=[], records=[], references=[], config="", commands=[])))
    assert reader.open == []


def test_page_is_written_whole(tmp_path):
    path = tmp_path / "report.html"
    write_page(path, page())
    assert path.read_text() == render_page(page())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_versions_name_what_the_numbers_depend_on():
    found = versions()
    assert found["torch"].startswith("2")
    assert {"python", "sde-toolkit", "numpy", "machine"} <= set(found)


def test_the_page_holds_the_rows_of_the_table_and_marks_the_best():
    text = render_page(page())
    reader = Reader()
    reader.feed(text)
    shown = format_table(RECORDS, REFERENCES).splitlines()[2:]
    assert reader.rows == 1 + len(shown) + len(page().facts) + len(versions())
    assert text.count("<strong>") == 2
    assert text.count('<tr class="first">') == 3  # ddim, dopri5, halves
    assert "10 samples for each of the seeds [0]" in reader.text


def test_text_of_the_template_is_never_code():
    hostile = "{{ 7 * 7 }}<script>alert(1)</script>"
    text = render_page(
        page(title=hostile, lead=hostile, config=hostile, commands=[hostile], facts={hostile: hostile})
    )
    assert "<script" not in text
    assert "49" not in re.sub(r"base64,\S+", "", text)


def test_no_file_of_the_packages_is_ignored_and_so_left_out_of_the_wheel():
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("needs the repository")
    words = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "sde_toolkit", "solvers"]
    shown = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert [name for name in shown.splitlines() if "__pycache__" not in name] == []
    assert (root / "sde_toolkit" / "lab" / "page.html.j2").is_file()
