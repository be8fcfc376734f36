"""
The pictures of the report in the manual, by headless Chromium (`apt-get install chromium`):

    gma-hf report model_cards/gma-shakespeare tests/data/shakespeare_end.txt -o report.html
    python docs/screenshots.py report.html
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(report: str) -> None:
    """Write the first screens on a desk, and what a phone shows in the dark: layer 0, head 1."""
    folder = Path(__file__).parent / "figures"
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1250})
        page.goto(Path(report).resolve().as_uri())
        page.select_option("#layer", "0")
        page.select_option("#head", "1")
        page.click(".token >> nth=14")
        page.screenshot(path=folder / "report.png")
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark", device_scale_factor=2)
        page.goto(Path(report).resolve().as_uri())
        page.click(".token >> nth=14")
        page.screenshot(path=folder / "report-dark.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
