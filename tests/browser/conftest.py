"""A headless Chromium, and a page for it."""

import shutil
from pathlib import Path

import pytest
from comparison_page import make_page

from sde_toolkit.lab.page import write_page


@pytest.fixture(scope="session")
def page_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, make_page())
    return path


def pytest_collection_modifyitems(config, items):
    """A run that does not ask for the browser leaves its tests out."""
    if "browser" not in config.option.markexpr:
        mine = [item for item in items if item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=mine)
        items[:] = [item for item in items if item not in mine]


def chromium(downloads: Path):
    """A driver of a headless Chromium that saves downloads in a folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(
        found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))
    )
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", "--window-size=1280,1000"):  # fmt: skip
        options.add_argument(word)
    options.add_experimental_option(
        "prefs",
        {
            "download.default_directory": str(downloads),
            "profile.default_content_setting_values.automatic_downloads": 1,
        },
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(120)
    return driver


@pytest.fixture(scope="session")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(downloads):
    if shutil.which("chromedriver") is None:
        pytest.fail("browser tests need chromium and chromedriver; `make test-browser` installs them")
    driver = chromium(downloads)
    yield driver
    driver.quit()
