"""What `gma-hf report` does: from a checkpoint and a text to files."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .analyze import analyze
from .plots import plots
from .report import write_report
from .tables import Analysis


LINES = 200  # that are tokenized in one


def report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Path,
    output: Path,
    *,
    name: str,
    max_tokens: int | None,
    sequence_length: int,
    json_file: Path | None = None,
    csv_folder: Path | None = None,
    png_folder: Path | None = None,
) -> Analysis:
    """Analyse a text and write the report, and what else is asked for; see `gma-hf report --help`."""
    with text.open(encoding="utf-8", newline="") as lines:
        pieces = iter(lambda: "".join(islice(lines, LINES)), "")
        analysis = analyze(model, tokenizer, pieces, sequence_length=sequence_length, max_tokens=max_tokens)
    with text.open(encoding="utf-8", newline="") as lines:
        shown = "".join(islice(lines, LINES))
    tables = {
        "heads": analysis.heads,
        "components": analysis.components,
        "alignment": analysis.alignment,
        "top_tokens": analysis.top_tokens(),
        "examples": analysis.examples(),
    }
    _whole(output, lambda path: write_report(analysis, shown, path, name=name, shown_tokens=sequence_length))
    if json_file is not None:
        records = {key: json.loads(table.to_json(orient="records")) for key, table in tables.items()}
        content = json.dumps({"tokens": analysis.counts.tokens, **records}, ensure_ascii=False)
        _whole(json_file, lambda path: path.write_text(content, encoding="utf-8"))
    if csv_folder is not None:
        csv_folder.mkdir(exist_ok=True)
        for key, table in tables.items():
            _whole(csv_folder / f"{key}.csv", partial(table.to_csv, index=False))
    if png_folder is not None:
        png_folder.mkdir(exist_ok=True)
        for key, figure in plots(analysis).items():
            _whole(png_folder / f"{key}.png", partial(figure.savefig, dpi=150))
    return analysis


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Written beside its place and moved there, so that nothing half-written is left behind."""
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}-") as folder:
        write(Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
