"""What `gma-hf report` does: from a checkpoint and a text to files."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .analyze import analyze
from .plots import plots
from .report import write_report
from .tables import Analysis


def report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
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
    lines = text.splitlines(keepends=True)
    pieces = ("".join(lines[start : start + 200]) for start in range(0, len(lines), 200))
    analysis = analyze(model, tokenizer, pieces, sequence_length=sequence_length, max_tokens=max_tokens)
    tables = {
        "heads": analysis.heads,
        "components": analysis.components,
        "alignment": analysis.alignment,
        "top_tokens": analysis.top_tokens(),
        "examples": analysis.examples(),
    }
    limit = sequence_length  # which the model reads in one
    _whole(output, lambda path: write_report(analysis, text, path, name=name, shown_tokens=limit))
    if json_file is not None:
        records = {key: json.loads(table.to_json(orient="records")) for key, table in tables.items()}
        content = json.dumps({"tokens": analysis.counts.tokens, **records}, ensure_ascii=False)
        _whole(json_file, lambda path: path.write_text(content, encoding="utf-8"))
    if csv_folder is not None:
        csv_folder.mkdir(exist_ok=True)
        for key, table in tables.items():
            table.to_csv(csv_folder / f"{key}.csv", index=False)
    if png_folder is not None:
        png_folder.mkdir(exist_ok=True)
        for key, figure in plots(analysis).items():
            figure.savefig(png_folder / f"{key}.png", dpi=150)
    return analysis


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Written beside its place and moved there, so that nothing half-written is left behind."""
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}-") as folder:
        write(Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
