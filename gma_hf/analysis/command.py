"""What `gma-hf report` does: from a checkpoint and a text to files."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import whole_file
from ..texts import check_text
from .analyze import analyze
from .plots import plots
from .reading import PIECE, pieces
from .report import write_report
from .tables import Analysis


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
    beginning = _beginning(text)
    with text.open(encoding="utf-8", newline="") as stream:
        texts = pieces(chunks(stream))
        analysis = analyze(model, tokenizer, texts, sequence_length=sequence_length, max_tokens=max_tokens)
    tables = {
        "heads": analysis.heads,
        "components": analysis.components,
        "alignment": analysis.alignment,
        "top_tokens": analysis.top_tokens(),
        "examples": analysis.examples(),
    }
    shown = sequence_length if max_tokens is None else min(sequence_length, max_tokens)
    with whole_file(output) as path:
        write_report(analysis, beginning, path, name=name, shown_tokens=shown)
    if json_file is not None:
        records = {key: json.loads(table.to_json(orient="records")) for key, table in tables.items()}
        content = json.dumps({"tokens": analysis.counts.tokens, **records}, ensure_ascii=False)
        with whole_file(json_file) as path:
            path.write_text(content, encoding="utf-8")
    if csv_folder is not None:
        csv_folder.mkdir(exist_ok=True)
        for key, table in tables.items():
            with whole_file(csv_folder / f"{key}.csv") as path:
                table.to_csv(path, index=False)
    if png_folder is not None:
        png_folder.mkdir(exist_ok=True)
        for key, figure in plots(analysis).items():
            with whole_file(png_folder / f"{key}.png") as path:
                figure.savefig(path, dpi=150)
    return analysis


def _beginning(text: Path) -> str:
    """Return the beginning of a file that is a text to its end."""
    check_text(text, "TEXT")
    with text.open(encoding="utf-8", newline="") as stream:
        beginning = stream.read(PIECE)
    if not beginning.strip():
        raise ValueError(f"TEXT must hold some text at its beginning, but {str(text)!r} does not.")
    return beginning


def chunks(stream: TextIO) -> Iterator[str]:
    """Yield what is left of a file, piece by piece."""
    return iter(partial(stream.read, PIECE), "")
