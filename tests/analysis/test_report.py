"""`gma-hf report` as its user runs it, and the page in headless Chromium."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from gma_hf.analysis import analyze
from gma_hf.analysis.plots import plots
from gma_hf.analysis.report import SENTENCE_TOKENS, first_sentences, words_of
from gma_hf.cli import app


ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
ALWAYS = "gma-imdb-bytes"
CHECKPOINTS = [
    pytest.param(path.name, id=path.name, marks=() if path.name == ALWAYS else pytest.mark.slow)
    for path in sorted((ROOT / "model_cards").iterdir())
]
CHROMIUM = shutil.which("chromium")


# Text of the kind that each was trained on, held out
TEXTS = {
    "gma-imdb-bytes": "reviews.txt",
    "gma-minilm-l6": "enwik8.txt",
    "gma-minilm-l6-4k": "enwik8.txt",
    "gma-shakespeare": "shakespeare_end.txt",
    "gma-wikitext2": "wikitext.txt",
}


def text_of(checkpoint):
    return DATA / TEXTS[checkpoint.name]


def run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture(scope="module", params=CHECKPOINTS)
def made(request, tmp_path_factory):
    """The folder of a report, and the checkpoint's."""
    folder = tmp_path_factory.mktemp("report")
    checkpoint = ROOT / "model_cards" / request.param
    text = text_of(checkpoint)
    files = ["-o", folder / "report.html", "--json", folder / "report.json"]
    files += ["--csv", folder / "csv", "--png", folder / "png"]
    done = run(checkpoint, text, *files, "--max-tokens", 1500, "--sequence-length", 128)
    assert done.exit_code == 0, done.stderr[-2000:]
    assert "1,500 tokens read" in done.stdout
    return folder, checkpoint


def test_tables_and_plots(made):
    folder, _ = made
    tables = json.loads((folder / "report.json").read_text())
    assert tables["tokens"] == 1500
    for name in ("heads", "components", "alignment", "top_tokens", "examples"):
        with (folder / "csv" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(tables[name]) > 0
        assert list(rows[0]) == list(tables[name][0])
    mass = {}
    for row in tables["components"]:
        place = row["layer"], row["side"], row["head"]
        mass[place] = mass.get(place, 0) + row["mass"]
    assert all(math.isclose(total, 1, rel_tol=1e-4) for total in mass.values())
    assert all((folder / "png" / f"{name}.png").stat().st_size > 5_000 for name in ("usage", "entropy"))


def test_the_page_is_one_file(made):
    page = (made[0] / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert "src=" not in page and "@import" not in page


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as runner:
        chromium = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_page(browser, folder, **options):
    page = browser.new_page(**options)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector(".token")
    assert errors == []
    return page


@pytest.fixture
def routed(made):
    """Responsibilities of the shown text and affinities of its first sentence, as the model gives them."""
    _, checkpoint = made
    model, tokenizer = AutoModel.from_pretrained(checkpoint).float(), AutoTokenizer.from_pretrained(checkpoint)
    text = text_of(checkpoint).read_text()
    sentence = first_sentences(text[: 20 * 128])[0]
    shown = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
    sentence = tokenizer(sentence, truncation=True, max_length=SENTENCE_TOKENS, return_tensors="pt")
    with torch.no_grad():
        outputs = model(shown["input_ids"], output_responsibilities=True)
        return outputs.responsibilities, model(sentence["input_ids"], output_attentions=True).attentions


def by_tokens(page):
    """Show the tokens of a model of characters, which are put together to words at first."""
    if page.locator("#unit-label").is_visible():
        page.select_option("#unit", "characters")


def test_what_it_shows_is_what_the_model_gave(made, routed, browser):
    page = open_page(browser, made[0])
    page.select_option("#layer", "1")
    page.select_option("#head", "2")
    page.select_option("#side", "0")
    by_tokens(page)
    (responsibilities, affinities) = routed
    gamma = responsibilities[1][0][0, 2]
    page.hover(".token >> nth=17")
    rows = page.locator("#detail .row").all()
    values, components = gamma[17].topk(5)
    assert [int(row.get_attribute("data-component")) for row in rows] == components.tolist()
    shown = [float(row.get_attribute("data-value")) for row in rows]
    assert shown == pytest.approx(values.tolist(), abs=1e-3)
    tokens = page.locator(".token").all()
    assert len(tokens) == 128
    assert [int(token.get_attribute("data-component")) for token in tokens] == gamma.argmax(-1).tolist()

    tables = json.loads((made[0] / "report.json").read_text())
    here = {"layer": 1, "side": "query", "head": 2}
    (row,) = [row for row in tables["components"] if here.items() <= row.items() and row["component"] == 3]
    page.click('.bar[data-component="3"]')
    assert "Component 3 of layer 1, head 2" in page.inner_text("#component-title")
    assert f"{100 * row['mass']:.1f} %" in page.inner_text("#component")
    top = [row for row in tables["top_tokens"] if here.items() <= row.items() and row["component"] == 3]
    times = page.locator("#top-tokens td:nth-child(2)").all_inner_texts()
    assert [int(text) for text in times] == [row["count"] for row in top][:8]

    page.click('#map-entropy button[data-layer="0"][data-head="1"]')
    assert page.input_value("#layer") == "0" and page.input_value("#head") == "1"
    (row,) = [row for row in tables["heads"] if {"layer": 0, "side": "query", "head": 1}.items() <= row.items()]
    assert f"Effective components: {row['effective_components']:.1f} of" in page.inner_text("#figures")
    weights = [
        float(cell.get_attribute("data-weight")) for cell in page.locator("#affinity tr >> nth=5").locator("td").all()
    ]
    assert weights == pytest.approx(affinities[0][0, 1, 5].tolist(), abs=1e-3)

    page.select_option("#labelling", "length")
    (row,) = [
        row
        for row in tables["alignment"]
        if {"labelling": "length", "layer": 1, "side": "query", "head": 0}.items() <= row.items()
    ]
    assert page.inner_text('#map-alignment button[data-layer="1"][data-head="0"]') == f"{row['ami']:.2f}"
    nearest = page.inner_text("#nearest").removeprefix("no. ")
    page.click("#nearest")
    assert f"Component {nearest} of" in page.inner_text("#component-title")


def test_by_keyboard_in_the_dark_and_on_a_phone(made, browser):
    page = open_page(browser, made[0], color_scheme="dark", viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    by_tokens(page)
    page.focus(".token >> nth=0")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#detail").startswith("Token 4:")
    assert "As promised." in page.inner_text("#theory") and "report it" not in page.inner_text("#theory")
    page.click(".token >> nth=0")  # what is tapped is told where it can be seen
    box = page.locator("#detail").bounding_box()
    assert page.inner_text("#detail").startswith("Token 1:") and 0 <= box["y"] <= 801 - box["height"]
    page.click("#affinity tr >> nth=3 >> th button")
    assert page.inner_text("#reads").startswith("Token 4, ")
    page.focus(".token >> nth=3")
    component = page.locator(".token >> nth=3").get_attribute("data-component")
    page.keyboard.press("Enter")
    assert f"Component {component} of" in page.inner_text("#component-title")

    page.focus(".bar.chosen")  # the chart is one stop of Tab; its keys choose and do not lose their place
    for key, component in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2)):
        page.keyboard.press(key)
        assert f"Component {component} of" in page.inner_text("#component-title")
    page.focus('#map-entropy button[data-layer="1"][data-head="1"]')
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.layer") == "1" and page.input_value("#head") == "1"


def test_no_more_is_shown_than_a_page_holds(tmp_path, browser):
    """However much is read in one, and however little in all."""
    for read, shown in ((1000, 256), (40, 40)):
        checkpoint, text = ROOT / "model_cards" / "gma-shakespeare", DATA / "shakespeare_end.txt"
        limits = ["--sequence-length", 1000, "--max-tokens", read, "--force"]
        assert run(checkpoint, text, "-o", tmp_path / "report.html", *limits).exit_code == 0
        page = open_page(browser, tmp_path)
        by_tokens(page)
        assert page.locator(".token").count() == shown
        assert page.inner_text("#shown") == f"The first {shown} tokens of the text."


def test_words_of_a_model_of_bytes(made, routed, browser):
    """Put together by the mean over their characters; the affinity is that of the whole sentence."""
    folder, checkpoint = made
    if checkpoint.name != ALWAYS:
        pytest.skip("one will do")
    page = open_page(browser, folder)
    page.select_option("#layer", "1")
    page.select_option("#head", "2")
    characters = list(text_of(checkpoint).read_text()[:128])
    words = words_of(characters)
    shown = page.locator(".token").all()
    assert len(shown) == int(words.max()) + 1
    gamma = routed[0][1][1][0, 2]
    expected = [gamma[: len(words)][words == word].mean(0).argmax().item() for word in range(len(shown))]
    assert [int(word.get_attribute("data-component")) for word in shown] == expected
    page.click(".token >> nth=2")
    assert page.inner_text("#detail").startswith("Word 3:")
    assert shown[2].inner_text().split("␣")[0] in page.inner_text("#words")
    sentence = page.locator("#piece option").first.inner_text().removeprefix("1: ")
    assert sentence[0].isupper() and len(sentence.split()) >= 6
    page.click("#affinity tr >> nth=3 >> th button")
    assert page.inner_text("#reads").startswith("Word 4, ")
    rows = page.locator("#affinity tr").all()
    weights = [float(cell.get_attribute("data-weight")) for cell in rows[3].locator("td").all()]
    assert len(weights) == len(rows) and sum(weights) == pytest.approx(1, abs=0.02)


def test_the_page_explains_itself(made, browser):
    page = open_page(browser, made[0])
    assert "responsibilities" in page.inner_text("#introduction")
    figures = page.locator("#figures tr").all()
    assert len(figures) == 5
    assert all(len(row.locator("td").all()) == 2 and len(row.locator("td").last.inner_text()) > 4 for row in figures)
    assert page.locator("#theory li").count() == 3
    boxes = [number.bounding_box() for number in page.locator("#map .number").all()]
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            apart = abs(one["x"] - other["x"]) >= min(one["width"], other["width"])
            assert apart or abs(one["y"] - other["y"]) >= 0.7 * one["height"], "numbers stand on each other"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("ACT I\n\nCaesar crossed the river on that day. He", "Caesar crossed the river on that day."),
        ("and so on. The whole army had crossed the river. ", "The whole army had crossed the river."),
        ("no sentence here", "no sentence here"),
    ],
)
def test_a_real_sentence_comes_first(text, first):
    assert first_sentences(text)[0] == first


def test_labels_of_colour_bars_are_whole(planted, planted_text, character_tokenizer):
    analysis = analyze(planted, character_tokenizer, [planted_text[:500]], progress=False)
    for name, figure in plots(analysis).items():
        figure.draw_without_rendering()
        for axis in figure.axes:
            label = axis.yaxis.label.get_window_extent()
            assert label.y0 >= 0 and label.y1 <= figure.bbox.height and label.x1 <= figure.bbox.width, name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no/such/model", DATA / "shakespeare.txt"], "CHECKPOINT is 'no/such/model', but there is no such folder"),
        (
            [ROOT / "model_cards" / "gma-shakespeare", DATA / "shakespeare.txt", "-o", "no/such/folder/x.html"],
            "-o must be in a folder",
        ),
        (
            [ROOT / "model_cards" / "gma-shakespeare", ROOT / "docs" / "figures" / "report.png"],
            "TEXT must be a text in UTF-8, but",
        ),
        ([ROOT / "model_cards" / "gma-shakespeare", "/dev/null"], "TEXT must hold some text, but '/dev/null' does"),
        (
            [ROOT / "model_cards" / "gma-shakespeare", DATA / "shakespeare.txt", "-o", "/dev/null"],
            "-o must be a file, but '/dev/null' is none",
        ),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(arguments, sentence, tmp_path):
    done = run(*arguments, *(() if "-o" in arguments else ("-o", tmp_path / "report.html")))
    assert done.exit_code == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
