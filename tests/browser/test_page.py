"""The report page in a real browser: no errors, filters, order, downloads, keyboard, accessibility."""

import csv
import importlib.util
import io
import itertools
import json
import time
from pathlib import Path

import pytest
from comparison_page import GRIDS, make_records

from sde_toolkit import cli
from sde_toolkit.lab import load_records, paired_difference

pytestmark = pytest.mark.browser
SIZES = [(1280, 1000), (400, 900)]
SECONDS = 60


def wait_for(what, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)
    return found


def look(driver, page_path, width=1280, height=1000, dark=False):
    """Open the page anew and wait for its charts."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page_path.as_uri())
    wait_for(lambda: driver.execute_script("return document.documentElement.dataset.ready"))
    wait_for(
        lambda: driver.execute_script("return !!document.querySelector('#chart-seconds .plot-container')")
    )


@pytest.fixture
def page(driver, page_path):
    """The page as opened, and no errors in its console at the end."""
    driver.get_log("browser")
    look(driver, page_path)
    yield driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def names(driver, cost="nfe"):
    return driver.execute_script(f"return document.getElementById('chart-{cost}').data.map(t => t.name)")


def choose(driver, name, value):
    driver.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change', {bubbles: true}))", name, value,
    )  # fmt: skip


def click(driver, selector):
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def shown(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.offsetParent).map(e => e.innerText)",
        selector,
    )


def test_nothing_is_loaded_and_no_text_is_code(page):
    assert page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert page.execute_script("return window.broken === undefined")
    assert page.title == "Samplers on <two> problems"
    first = page.execute_script("return document.querySelector('main section h2').innerText")
    assert first == "Samples"


def test_filters_change_curves_rows_and_samples(page):
    assert names(page) == ["Pareto front", "ddim", "heun", "dopri5"]
    assert names(page, "seconds") == names(page)
    before = len(shown(page, ".sample"))
    click(page, "#samplers input[value=heun]")
    wait_for(lambda: names(page) == ["Pareto front", "ddim", "dopri5"])
    assert {row.split()[0] for row in shown(page, "#table tr.result")} == {"ddim", "dopri5"}
    assert len(shown(page, ".sample")) == before - 4
    click(page, "#grids input[value=uniform]")
    wait_for(lambda: names(page) == ["Pareto front", "dopri5"])
    click(page, "#no-samplers")
    wait_for(lambda: names(page) == ["Pareto front"])
    assert shown(page, "#table tr.result") == []
    click(page, "#all-samplers")
    click(page, "#grids input[value=uniform]")
    choose(page, "problem", "<digits>")
    worst = "return Math.max(...document.getElementById('chart-nfe').data[2].y)"
    wait_for(lambda: page.execute_script(worst) > 0.9)
    assert len(shown(page, "#table tr.result")) == 9
    assert "9 of 18 rows" in page.find_element("id", "status").text


def pictures(driver):
    """What is shown, by sampler, grid and problem."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.sample')].filter(e => e.offsetParent)"
        ".map(e => [e.dataset.sampler, e.dataset.grid, e.dataset.problem])"
    )


def test_every_filter_hides_and_shows_pictures(page):
    of_ring = pictures(page)
    assert {problem for _, _, problem in of_ring} == {"ring", ""}  # real data without a problem always
    assert len(of_ring) == 10
    click(page, "#samplers input[value=ddim]")
    assert {sampler for sampler, _, _ in pictures(page)} == {"heun", "dopri5", ""}
    assert "ddim" not in shown(page, ".gallery h3")  # an empty row has no heading
    click(page, "#grids input[value=karras]")
    assert {sampler for sampler, _, _ in pictures(page)} == {"dopri5", ""}
    click(page, "#all-samplers")
    assert {grid for _, grid, _ in pictures(page)} == {"uniform", ""}
    click(page, "#grids input[value=karras]")
    choose(page, "problem", "<digits>")
    assert {problem for _, _, problem in pictures(page)} == {"<digits>", ""}
    assert len(pictures(page)) == 10
    choose(page, "metric", "coverage")  # which the ring alone has
    assert page.find_element("id", "problem").get_attribute("value") == "ring"
    assert pictures(page) == of_ring


@pytest.fixture(scope="module")
def compared_path(tmp_path_factory):
    """The page that ``sde-toolkit compare`` writes for two problems, two grids and two classes."""
    folder = tmp_path_factory.mktemp("compared")
    words = ["compare", "--problems=ring,mixture8", "--samplers=ddim", "--grids=own,karras", "--labels=0,1",
             "--num_steps=3,6", "--num_samples=20", "--metrics=energy", f"--output={folder}"]  # fmt: skip
    assert cli.main(words) == 0
    return folder / "report.html"


def test_pictures_of_all_problems_are_there_and_follow_the_filters(driver, compared_path):
    look(driver, compared_path)
    assert driver.execute_script("return document.querySelectorAll('.sample').length") == 2 * 2 * (1 + 2 * 2)
    for problem in ("ring", "mixture8"):
        choose(driver, "problem", problem)
        for condition in ("0", "1"):
            choose(driver, "condition", condition)
            assert len(pictures(driver)) == 1 + 2 * 2
            assert {p for _, _, p in pictures(driver)} == {problem}
            assert all(f"{problem}, class {condition}: " in text for text in shown(driver, ".sample"))
            click(driver, "#grids input[value=Karras]")
            assert sorted(map(tuple, pictures(driver))) == [
                ("", "", problem), ("ddim", "uniform", problem), ("ddim", "uniform", problem),
            ]  # fmt: skip
            click(driver, "#grids input[value=Karras]")


def test_values_below_zero_are_drawn_on_a_linear_part(page):
    choose(page, "metric", "energy")
    wait_for(lambda: "linear below" in page.find_element("id", "axis-note").text)
    curve = page.execute_script(
        "return document.getElementById('chart-nfe').data.find(t => t.name === 'ddim').y"
    )
    rows = [r for r in make_records() if (r.metric, r.problem, r.sampler) == ("energy", "ring", "ddim")]
    threshold = page.execute_script(
        "const data = JSON.parse(document.getElementById('data').textContent);"
        "return data.groups.find(g => g.metric === 'energy').threshold"
    )
    values = [row.value for row in rows]
    inside = [value / threshold for value in values if abs(value) <= threshold]
    assert any(value < 0 for value in values)
    assert [y for y in curve if abs(y) <= 1] == pytest.approx(inside)
    ticks = page.execute_script("return document.getElementById('chart-nfe').layout.yaxis.ticktext")
    assert {"0", f"{threshold:g}"} <= set(ticks)


def test_hover_tells_the_settings(page):
    text = page.execute_script("return document.getElementById('chart-nfe').data[1].text[0]")
    assert "ddim, 5" in text
    assert "grid: uniform" in text
    assert "<script" not in text


@pytest.mark.parametrize("column", [1, 3, 5])
def test_the_table_sorts_by_numbers_both_ways(page, column):
    def read():
        cell = f"#table tr.result:not([hidden]) :nth-child({column + 1})[data-number]"
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.dataset.number)"
        return [float(v) for v in page.execute_script(script, cell) if v != ""]

    head = f"#table thead th:nth-child({column + 1})"
    for state, order in (("ascending", 1), ("descending", -1)):
        click(page, head + " button")
        assert page.execute_script("return document.querySelector(arguments[0]).ariaSort", head) == state
        found = read()
        assert len(found) >= 8
        assert found == sorted(found, key=lambda v: order * v)
    last = page.execute_script("return document.querySelector('#table tbody tr:last-child').className")
    assert "reference" in last


def test_differences_are_those_of_the_library(page):
    rows = [r for r in make_records() if (r.metric, r.problem) == ("Frechet", "ring")]
    best = min(rows, key=lambda r: r.value)
    assert page.find_element("id", "baseline").get_attribute("value") == "best"
    found = dict(tuple(row.split("\t")[:2]) for row in shown(page, "#pairs tr.result"))
    assert len(found) == len(rows) - 1
    for row in rows:
        if row is not best:
            estimate = paired_difference(row, best)
            value, error = (
                float(part) for part in found[f"{row.sampler}, {row.num_steps} steps"].split(" ± ")
            )
            assert value == pytest.approx(estimate.value, abs=0.06 * estimate.standard_error + 1e-9)
            assert error == pytest.approx(estimate.standard_error, rel=0.05)
    options = page.execute_script("return [...document.getElementById('baseline').options].map(o => o.value)")
    choose(page, "baseline", options[1])
    verdicts = shown(page, "#pairs td:last-child")
    assert sum("beats ddim, 5 steps by" in verdict for verdict in verdicts) >= 4
    choose(page, "metric", "energy")
    assert any("cannot be told apart" in verdict for verdict in shown(page, "#pairs td:last-child"))


def downloaded(downloads, name):
    path = wait_for(lambda: next((p for p in downloads.glob(name) if p.stat().st_size), None))
    return path, path.read_text()


def test_downloads_hold_the_records(page, downloads):
    for path in downloads.iterdir():
        path.unlink()
    for name in ("#download-csv", "#download-json", "#svg-nfe", "#svg-seconds"):
        click(page, name)
        time.sleep(0.3)
    path, _ = downloaded(downloads, "records.json")
    records, references = load_records(path)
    assert [(r.sampler, r.value, r.settings) for r in records] == [
        (r.sampler, r.value, r.settings) for r in make_records()
    ]
    assert len(references) == 2
    rows = list(csv.DictReader(io.StringIO(downloaded(downloads, "records.csv")[1])))
    assert [float(row["value"]) for row in rows] == [r.value for r in make_records()]
    for cost in ("nfe", "seconds"):
        svg = downloaded(downloads, f"quality-{cost}.svg")[1]
        assert svg.startswith("<svg")
        assert "Frechet" in svg


def test_everything_is_reached_and_worked_by_keyboard(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key):
        ActionChains(page).send_keys(key).perform()

    def focus():
        return page.execute_script(
            "const e = document.activeElement;"
            "const o = e === document.body ? 'end of the page' : getComputedStyle(e).outlineStyle;"
            "return [e.id || e.value || e.innerText || e.className, o]"
        )

    reached, outlines = [], set()
    for _ in range(45):
        press(Keys.TAB)
        name, outline = focus()
        reached.append(name[:30])
        outlines.add(outline)
    wanted = {"theme", "metric", "problem", "ddim", "all-samplers", "svg-nfe", "NFE", "baseline",
              "download-csv", "download-json", *(g for g in GRIDS.values() if g)}  # fmt: skip
    assert wanted <= set(reached), reached
    assert outlines == {"solid", "end of the page"}  # focus is visible
    look(page, Path(page.current_url.removeprefix("file://")))
    for _ in itertools.count():
        press(Keys.TAB)
        if focus()[0] == "ddim":
            break
    press(Keys.SPACE)
    wait_for(lambda: "ddim" not in names(page))


def test_the_colours_can_be_switched(page, page_path):
    paper = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.getElementById('chart-nfe').layout.font.color"
    light = page.execute_script(paper), page.execute_script(ink)
    click(page, "#theme")
    wait_for(lambda: page.execute_script(ink) != light[1])
    dark = page.execute_script(paper), page.execute_script(ink)
    assert page.execute_script("return document.getElementById('theme').ariaPressed") == "true"
    look(page, page_path, dark=True)
    assert (page.execute_script(paper), page.execute_script(ink)) == dark


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_leaves_the_screen(page, page_path, width, height):
    look(page, page_path, width, height)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    script = (
        "return [...document.querySelectorAll('#table td.metric, #table th, .plot, .sample, #pairs td')]"
        ".filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth).length"
    )
    assert page.execute_script(script) == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_axe_finds_nothing_serious(page, page_path, width, height, dark):
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None, "needs pip install 'sde-toolkit[browser]'"
    folder = Path(spec.submodule_search_locations[0])
    look(page, page_path, width, height, dark)
    page.execute_script((folder / "axe.min.js").read_text(encoding="utf-8"))
    found = page.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[0])")
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert json.dumps([(v["id"], [n["html"][:200] for n in v["nodes"]][:4]) for v in serious]) == "[]"
    assert len(found["passes"]) > 10
