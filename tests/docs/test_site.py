"""The site that `make docs` builds, opened in headless Chromium: search, scripts, a phone, the dark."""

import http.server
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
CHROMIUM = shutil.which("chromium")
IS_ASKED = bool(os.environ.get("ALL_DOCS"))  # by `make docs`: here nothing may be skipped
if not IS_ASKED and (CHROMIUM is None or not (SITE / "index.html").is_file()):
    pytest.skip("needs chromium, and the site that `make docs` builds", allow_module_level=True)
PAGES = sorted(str(path.parent.relative_to(SITE)) for path in SITE.rglob("index.html"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    """The site, served."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    sync_api = (
        pytest.importorskip("playwright.sync_api") if not IS_ASKED else __import__("playwright.sync_api").sync_api
    )
    with sync_api.sync_playwright() as runner:
        chromium = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """`open_page(path, **options)`: a page, and what went wrong in it or was asked of other servers."""
    pages = []

    def open_one(path: str, **options):
        page, wrong = browser.new_page(**options), []
        pages.append(page)
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(address) else None)
        page.on("response", lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        page.goto(f"{address}/{path}/".replace("/./", "/"), wait_until="load")
        return page, wrong

    yield open_one
    for page in pages:
        page.close()


def luminance(colour: str) -> float:
    """Of a colour as `rgb(r, g, b)`, from 0 to 1."""
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    channels = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), channels))


def contrast(page) -> float:
    """Of the text of a page and what is behind it."""
    text, behind = page.evaluate(
        """() => [getComputedStyle(document.querySelector(".md-typeset p, .md-typeset li")).color,
                  getComputedStyle(document.body).backgroundColor]"""
    )
    high, low = sorted((luminance(text), luminance(behind)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("path", PAGES)
def test_a_page(path, open_page):
    """No script error, nothing from elsewhere, all pictures there, readable on a phone in the dark."""
    page, wrong = open_page(path, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.wait_for_timeout(100)  # for what scripts do then
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    missing = "() => [...document.images].filter((image) => !image.loading && !image.naturalWidth).map((i) => i.src)"
    assert page.evaluate(missing) == []
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1
    assert contrast(page) >= 4.5


def test_in_the_light(open_page):
    page, _ = open_page(".", color_scheme="light")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    assert contrast(page) >= 4.5


def test_search_finds_the_read_exponent(open_page):
    page, wrong = open_page(".", viewport={"width": 1200, "height": 900})
    page.click(".md-search__input")
    page.keyboard.type("read exponent", delay=20)
    page.wait_for_selector(".md-search-result__item a")
    found = page.locator(".md-search-result__item").first
    assert "read exponent" in found.inner_text().lower()
    found.locator("a").first.click()
    page.wait_for_url("**/*h=*")
    assert "read exponent" in page.inner_text("article").lower() and wrong == []


def test_equations_are_shown_without_a_script(open_page):
    page, _ = open_page("concepts/gma")
    assert page.locator("article math").count() >= 4
    assert "$$" not in page.inner_text("article")
    box = page.locator("article math").first.bounding_box()
    assert box["width"] > 100 and box["height"] > 20


def test_reference_is_whole(open_page):
    """Every command and every field of the config is there."""
    from gma_hf.cli import app
    from gma_hf.model.configuration_gma import OWN_FIELDS

    page, _ = open_page("reference/commands")
    text = page.inner_text("article")
    commands = [command.callback.__name__ for command in app.registered_commands]
    assert [name for name in commands if f"gma-hf {name}" not in text] == []
    assert "--save-state" in text and "--calibration" in text
    page, _ = open_page("reference/config")
    listed = page.locator("article table td:first-child code").all_inner_texts()
    of_transformers = {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert set(OWN_FIELDS) - set(listed) <= of_transformers
