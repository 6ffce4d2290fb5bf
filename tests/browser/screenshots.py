"""Pictures of a report page in headless Chromium, wide and narrow, light and dark.

    python -m tests.browser.screenshots report.html docs/

writes report-1280-light.png, ..., each of the page's upper part and with few colours.
"""

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.browser.conftest import chromium

HEIGHTS = {1280: 1900, 400: 1700}


def main(page: Path, folder: Path) -> None:
    """Write all four."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        driver = chromium(Path(downloads))
        try:
            for width, height in HEIGHTS.items():
                for scheme in ("light", "dark"):
                    feature = {"name": "prefers-color-scheme", "value": scheme}
                    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    driver.get(page.resolve().as_uri())
                    while not driver.execute_script("return document.documentElement.dataset.ready"):
                        time.sleep(0.1)
                    time.sleep(1.0)
                    shot = Image.open(io.BytesIO(base64.b64decode(driver.get_screenshot_as_base64())))
                    small = shot.convert("RGB").quantize(
                        192, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
                    )
                    small.save(folder / f"report-{width}-{scheme}.png", optimize=True)
        finally:
            driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
