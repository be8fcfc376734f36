"""
Write the tables, plots and numbers of runs in README.md and docs/ from the JSON in benchmarks/results.

    make figures     # or: python -m benchmarks.figures

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. A number in a sentence has its name behind
it, as `83<!-- = recall_16_pairs -->`. A plot is docs/figures/NAME.png. Nothing is measured here: the commands of
benchmarks/README.md are what writes the JSON.
"""

import re
from pathlib import Path

from . import figure_concepts, figure_plots, style
from .figure_data import ROOT
from .figure_numbers import NUMBERS
from .figure_tables import TABLES


PLOTS = figure_plots.PLOTS | figure_concepts.PLOTS
FOLDER = ROOT / "docs" / "figures"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
NUMBER = re.compile(r"[\d,]*\.?\d+(<!-- = (\w+) -->)")


def pages() -> list[Path]:
    """Return the pages in which tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def with_figures(text: str) -> str:
    """Return a page with each of its tables and of its named numbers as the JSON has it now."""
    text = TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)
    return NUMBER.sub(lambda found: NUMBERS[found[2]]() + found[1], text)


def main() -> None:
    """Write the tables and numbers and draw the plots that differ from what is there."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := with_figures(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PLOTS.items():
        path, figure = FOLDER / f"{name}.png", draw()
        if not path.exists() or style.fingerprint_in(path) != style.fingerprint(figure):
            style.save(figure, path)
            print(f"drawn: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
