"""
The pictures of the report in the README, by headless Chromium (`apt-get install chromium`):

    gma-hf report model_cards/gma-shakespeare tests/data/shakespeare_end.txt -o report.html
    python docs/screenshots.py report.html
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(report: str) -> None:
    """Of the whole page on a desk, and of what a phone shows in the dark, layer 0, head 1."""
    folder = Path(__file__).parent / "figures"
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(Path(report).resolve().as_uri())
        page.select_option("#layer", "0")
        page.select_option("#head", "1")
        page.select_option("#piece", "1")
        page.click(".token >> nth=30")
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": 1100, "height": height})  # all of it, so that nothing floats
        page.screenshot(path=folder / "report.png")
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark", device_scale_factor=2)
        page.goto(Path(report).resolve().as_uri())
        page.click(".token >> nth=30")
        page.screenshot(path=folder / "report-dark.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
