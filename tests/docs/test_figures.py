"""Tables, plots and numbers of runs in README.md and docs/ are what the JSON of the runs gives."""

import re
from pathlib import Path

import pytest

from benchmarks import figures, style
from benchmarks.figure_numbers import NUMBERS
from benchmarks.figure_tables import TABLES


ROOT = Path(__file__).parents[2]
PAGES = figures.pages()
# Pages whose tables may hold figures of runs
OF_RESULTS = [page for page in PAGES if page.name == "README.md" or "results" in page.parts]
# What looks like a figure of a run in a sentence: a number with a unit, or with three digits or more and a point
FIGURE = re.compile(
    r"\d (?:%|points|nats|MiB|ms|s|seconds)(?!\w)|\d times (?:as|that|its)|"
    r"(?<![\w.])(?:\d{2,}\.\d|\d\.\d{3,})(?![\w.])"
)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`|\]\(\S+\)", re.DOTALL | re.MULTILINE)
FORMULAS = "serving-costs.md"  # most of its numbers follow from the sizes of models, by formulas on the page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_and_numbers_are_what_the_json_gives(page):
    text = page.read_text(encoding="utf-8")
    assert figures.with_figures(text) == text, "run `make figures`"


@pytest.mark.parametrize("name", figures.PLOTS)
def test_a_plot_is_what_the_json_gives(name):
    path = figures.FOLDER / f"{name}.png"
    assert style.fingerprint_in(path) == style.fingerprint(figures.PLOTS[name]()), "run `make figures`"


def test_a_changed_figure_is_noticed():
    """In a table, in a sentence and in a plot."""
    page = ROOT / "docs" / "results" / "speed.md"
    text = page.read_text(encoding="utf-8")
    for figure, another in (("| 34.3 |", "| 33.3 |"), ("takes 10<!--", "takes 12<!--")):
        changed = text.replace(figure, another, 1)
        assert changed != text and figures.with_figures(changed) == text
    plot = figures.PLOTS["decode_cpu"]()
    before = style.fingerprint(plot)
    line = plot.axes[0].lines[0]
    line.set_ydata([1.01 * value for value in line.get_ydata()])
    assert style.fingerprint(plot) != before


def test_no_table_of_results_is_by_hand():
    for page in OF_RESULTS:
        rest = figures.TABLE.sub("", page.read_text(encoding="utf-8"))
        assert not re.search(r"^\|[ -]*-", rest, re.MULTILINE), page


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != FORMULAS], ids=lambda page: str(page.relative_to(ROOT))
)
def test_no_figure_in_a_sentence_is_by_hand(page):
    text = figures.TABLE.sub("", page.read_text(encoding="utf-8"))
    text = CODE.sub("", figures.NUMBER.sub("", text))
    assert FIGURE.findall(text) == []


def test_everything_is_shown():
    """No table, no number and no plot is made for nothing, and no picture is missing."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name for name in TABLES if f"<!-- table: {name} -->" not in text} == set()
    assert {name for name in NUMBERS if f"<!-- = {name} -->" not in text} == set()
    shown = set(re.findall(r"\]\(\S*figures/([\w-]+)\.png\)", text))
    assert set(figures.PLOTS) <= shown
    assert all((figures.FOLDER / f"{name}.png").is_file() for name in shown)


def test_each_method_has_one_colour():
    same = [("GMA", "gma + conv + gates, no positions"), ("softmax (SDPA)", "softmax + conv"), ("Mamba", "mamba")]
    assert all(style.colour_of(one) == style.colour_of(other) for one, other in same)
    methods = ("GMA", "softmax", "linear", "Mamba", "Performer", "FlashAttention")
    assert len({style.colour_of(method) for method in methods}) == len(methods)


@pytest.mark.parametrize(("tokens", "tick"), [(512, "512"), (1000, "1k"), (1024, "1k"), (16384, "16k"), (2**20, "1M")])
def test_ticks(tokens, tick):
    assert style.in_words(tokens) == tick


def test_no_plot_is_crowded():
    for name, draw in figures.PLOTS.items():
        if name in figures.figure_plots.PLOTS and name not in ("quality", "recall"):
            assert all(len(axis.lines) <= 7 for axis in draw().axes), name
