"""The table and the page: what they say, and that the page stands alone."""

import base64
import gzip
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.lab import load_records, paired_difference
from sde_toolkit.lab.drawing import pictures
from sde_toolkit.lab.experiment import Record, Reference
from sde_toolkit.lab.page import Card, Page, Picture, Sample, render_page, versions, write_page
from sde_toolkit.lab.page.data import MAX_BASELINES, MAX_RECORDS, page_data, script_json
from sde_toolkit.lab.table import best_records, distinguishing, format_table, pivot, plus_minus
from sde_toolkit.metrics import Estimate

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


def test_what_differs_has_a_column_and_the_best_are_among_equals():
    rows = [
        record("ddim", 5, "energy", 2.0, grid="uniform"),
        record("ddim", 5, "energy", 1.0, grid="quadratic"),
        replace(record("ddim", 5, "energy", 3.0, grid="uniform"), problem="ring"),
    ]
    assert distinguishing(RECORDS) == []
    assert distinguishing(rows) == ["problem", "grid"]
    told = [replace(r, settings={**r.settings, "model": r.problem}) for r in rows[1:]]
    assert distinguishing(told) == ["problem"]  # which tells grids and weights apart already
    assert [row.more for row in pivot(rows)[1]] == [("", "uniform"), ("", "quadratic"), ("ring", "uniform")]
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["sampler", "steps", "problem", "grid", "NFE", "energy", "seconds"]
    assert ["*" in line for line in lines[2:]] == [False, True, True]


class Reader(HTMLParser):
    """Checks nesting; collects tags, addresses, text, and scripts by their type."""

    VOID = ("meta", "img", "link", "br", "input")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.alternatives, self.text, self.rows = [], [], [], "", 0
        self.scripts, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.rows += tag == "tr"
        self.alternatives += [value for name, value in attrs if name == "alt"]
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = kind, text + data
        elif self.open and self.open[-1] != "style":
            self.text += data

    @property
    def data(self):
        return json.loads(dict(self.scripts)["application/json"])


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


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
    reader = read(text)
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert base64.b64decode(reader.addresses[0].partition(",")[2]) == PNG
    assert "Content-Security-Policy" in text
    assert "default-src 'none'" in text
    outside = text.replace(dict(reader.scripts)["text/plain"], "")
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", outside)
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


def test_the_chart_library_is_the_one_of_the_package():
    packed = dict(read(render_page(page())).scripts)["text/plain"]
    assert b"plotly.js" in gzip.decompress(base64.b64decode(packed))[:200]


def test_pictures_of_samples_come_first_those_of_real_data_before_them():
    shown = [Sample(PNG, "5 steps", "b", "ddim"), Sample(PNG, "test", "a"), Sample(PNG, "5", "c", "heun")]
    reader = read(render_page(page(samples=shown)))
    assert reader.alternatives == ["a", "b", "c", 'it says "x"']
    assert reader.text.index("real data") < reader.text.index("2.31")


def test_page_without_results_is_valid():
    empty = page(cards=[], pictures=[], records=[], references=[], config="", commands=[])
    assert read(render_page(empty)).scripts == []


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
    reader = read(text)
    shown = format_table(RECORDS, REFERENCES).splitlines()[2:]
    assert reader.rows == 2 + len(shown) + len(page().facts) + len(versions())
    assert text.count("<strong>") == 2
    assert len(re.findall(r'<tr role="row" class="[a-z ]*first', text)) == 3  # ddim, dopri5, halves
    assert "10 samples of seed 0" in reader.text


HOSTILE = "{{ 7 * 7 }}</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>"


def test_text_is_never_markup_or_code():
    row = record(HOSTILE, 5, HOSTILE, 1.0, **{HOSTILE: HOSTILE, "grid": HOSTILE, "condition": HOSTILE})
    text = render_page(
        page(
            title=HOSTILE, lead=HOSTILE, config=HOSTILE, commands=[HOSTILE], facts={HOSTILE: HOSTILE},
            records=[replace(row, problem=HOSTILE, made_by={HOSTILE: {HOSTILE: HOSTILE}})],
            references=[Reference(HOSTILE, HOSTILE, 1.0, 0.1)],
            samples=[Sample(PNG, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
        )
    )  # fmt: skip
    reader, plain = read(text), read(render_page(page(samples=[Sample(PNG, "", "", "a")])))
    assert len(reader.scripts) == len(plain.scripts) == 4
    assert reader.tags.count("img") == plain.tags.count("img")
    assert "49" not in re.sub(r"base64,\S+", "", reader.text.replace(HOSTILE, ""))
    assert reader.data["records"][0]["metric"] == HOSTILE


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=12) | st.floats()
    | st.sampled_from(["</script>", "<!--", "]]>", "&lt;", "\u2028", "</ScRiPt \n>", "<script>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_no_data_end_their_script_element(value):
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    reader = Reader()
    reader.feed(f'<p><script type="application/json">{text}</script></p>')
    reader.close()
    assert reader.open == []
    assert json.loads(dict(reader.scripts)["application/json"]) == json.loads(text)
    assert json.dumps(json.loads(text)) == json.dumps(without_infinities(value))


def without_infinities(value):
    if isinstance(value, dict):
        return {key: without_infinities(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_infinities(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def measured(sampler, steps, value, metric="energy"):
    noise = np.random.default_rng(len(sampler) + steps).normal(size=20)
    estimate = Estimate.from_replicates([value, *(value + 0.1 * noise)], "groups")
    return Record(sampler, steps, float(steps), metric, estimate.value, estimate.standard_error, 1.0, 10,
                  (0,), {}, estimates=(estimate,))  # fmt: skip


def test_differences_are_those_of_the_paired_estimates():
    rows = [measured("a", 5, 1.0), measured("b", 6, 2.0), measured("c", 7, 0.1)]
    rows.append(measured("a", 5, 1.0, metric="MMD"))
    data = page_data(rows, [Reference("energy", "halves", 0.9, 0.05)])
    energy, other = data["groups"]
    assert (energy["records"], other["records"], other["differences"]) == ([0, 1, 2], [3], {})
    assert {(i, j) for i, found in energy["differences"].items() for j in found} == {(0, 1), (0, 2), (1, 2)}
    for i, found in energy["differences"].items():
        for j, pair in found.items():
            estimate = paired_difference(rows[i], rows[j])
            assert pair == pytest.approx([estimate.value, estimate.standard_error], rel=1e-5)
    assert [r["label"] for r in energy["references"]] == ["halves"]
    assert other["references"] == []


def test_the_best_is_as_the_metric_says():
    rows = [
        measured("a", 5, 1.0), measured("b", 5, 2.0), measured("a", 5, 1.0, "recall"),
        measured("b", 5, 2.0, "recall"), measured("a", 5, 1.0, "density"), measured("b", 5, 2.0, "density"),
    ]  # fmt: skip
    words = ["lower", "lower", "higher", "higher", "closer", "closer"]
    rows = [replace(r, settings={"metric.better": w}) for r, w in zip(rows, words, strict=True)]
    assert best_records(rows) == {id(rows[0]), id(rows[3])}
    assert [group["better"] for group in page_data(rows, [])["groups"]] == ["lower", "higher", "closer"]


def test_a_reference_belongs_to_its_problem():
    rows = [replace(measured("a", 5, 1.0), problem=name) for name in ("ring", "digits")]
    found = page_data(rows, [Reference("energy", "halves", 0.9, 0.1, {"problem": "ring"})])["groups"]
    assert [len(group["references"]) for group in found] == [1, 0]


def test_records_of_older_files_say_why_there_are_no_differences():
    group, _ = page_data(RECORDS, [])["groups"]
    assert group["differences"] == {}
    assert "must keep the estimate of every seed" in group["complaint"]


def test_many_candidates_are_compared_with_the_best():
    rows = [measured("a", n, float(n)) for n in range(1, MAX_RECORDS + 2)]
    (group,) = page_data(rows, [])["groups"]
    pairs = {(i, j) for i, found in group["differences"].items() for j in found}
    assert pairs == {(i, j) for i in range(MAX_BASELINES) for j in range(i + 1, len(rows))}


def test_the_download_can_be_read_back(tmp_path):
    data = read(render_page(page())).data
    (tmp_path / "records.json").write_text(json.dumps(data["json"]))
    assert load_records(tmp_path / "records.json") == (RECORDS, REFERENCES)
    assert data["csv"].splitlines()[0].startswith("problem,sampler,num_steps")
    assert len(data["csv"].splitlines()) == 1 + len(RECORDS)


@pytest.mark.parametrize("shape", [(30, 1, 8, 8), (2, 3, 4, 4), (30, 2, 5, 5), (50, 2), (50, 1), (9, 7)])
def test_samples_of_every_shape_have_a_small_picture(shape):
    x = np.random.default_rng(0).normal(size=shape)
    for picture in (pictures.sample_picture(x), pictures.sample_picture(0 * x, 1.0)):
        width, height = pictures.png_size(picture)
        assert 40 < width == height <= 200
    assert pictures.png_size(b"GIF89a") == (0, 0)


def test_a_point_is_drawn_where_it_lies():
    from io import BytesIO

    from PIL import Image

    corner = pictures.sample_picture(np.array([[0.9, 0.9]]), 1.0)
    ink = np.argwhere(np.asarray(Image.open(BytesIO(corner)).convert("L")) < 250)
    assert (ink[:, 0] < pictures.PIXELS / 10).all()  # above
    assert (ink[:, 1] > 0.9 * pictures.PIXELS).all()  # right


def test_no_file_of_the_packages_is_ignored_and_so_left_out_of_the_wheel():
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("needs the repository")
    words = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "sde_toolkit", "solvers"]
    shown = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert [name for name in shown.splitlines() if "__pycache__" not in name] == []
    assert (root / "sde_toolkit" / "lab" / "page" / "page.html.j2").is_file()
