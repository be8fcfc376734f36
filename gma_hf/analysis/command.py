"""What `gma-hf report` does: from a checkpoint and a text to files."""

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    _whole(output, lambda path: write_report(analysis, beginning, path, name=name, shown_tokens=shown))
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


def _beginning(text: Path) -> str:
    """The beginning of a text file; all of it is read once, since it must be a text to its end."""
    try:
        with text.open(encoding="utf-8", newline="") as stream:
            beginning = stream.read(PIECE)
            for _ in chunks(stream):
                pass
    except UnicodeDecodeError as error:
        raise ValueError(f"TEXT must be in UTF-8, but {str(text)!r} is not.") from error
    if not beginning.strip():
        raise ValueError(f"TEXT must hold some text, but {str(text)!r} does not.")
    return beginning


def chunks(stream: TextIO) -> Iterator[str]:
    """What is left of a file."""
    return iter(partial(stream.read, PIECE), "")


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Written beside its place and moved there, so that nothing half-written is left behind."""
    path = path.resolve()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        write(Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
