"""`gma-hf report`: what the components of a model learned."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub name of a GMA model.")],
    text: Annotated[
        Path, typer.Argument(metavar="TEXT", exists=True, dir_okay=False, help="Text file that the model reads.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also the tables, as a JSON file.")] = None,
    csv_folder: Annotated[
        Path | None, typer.Option("--csv", file_okay=False, help="Also the tables, as CSV files in a folder.")
    ] = None,
    png_folder: Annotated[
        Path | None, typer.Option("--png", file_okay=False, help="Also plots, as PNG files in a folder.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read, at most.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens that are read in one; 256, or what the model can, by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda:0.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Show what the components of a GMA model learned, as one HTML file."""
    from ..analysis.command import report as analyse
    from ..files import check_output
    from ..session import longest_text
    from ..texts import check_text
    from .opening import open_gma_model, open_tokenizer

    for option, path in (("-o", output), ("--json", json_file)):
        if path is not None:
            check_output(option, path, force)
    for option, path in (("--csv", csv_folder), ("--png", png_folder)):
        if path is not None:
            check_output(option, path, force=True, is_folder=True)
            if not force and path.is_dir() and any(path.iterdir()):
                raise ValueError(f"{option} must be an empty folder without --force, but {str(path)!r} is not.")
    if json_file is not None and output.resolve() == json_file.resolve():
        raise ValueError(f"-o and --json must be two files, but both are {str(output)!r}.")
    check_text(text, "TEXT")
    model, tokenizer = open_gma_model(checkpoint, device), open_tokenizer(checkpoint)
    files = {"json_file": json_file, "csv_folder": csv_folder, "png_folder": png_folder}
    if sequence_length is None:
        limit = longest_text(model.config)
        sequence_length = 256 if limit is None else min(256, limit)
    length = {"max_tokens": max_tokens, "sequence_length": sequence_length}
    analysis = analyse(model.float(), tokenizer, text, output, name=Path(checkpoint).name, **length, **files)
    written = ", ".join(str(path) for path in (output, *files.values()) if path is not None)
    typer.echo(f"{analysis.counts.tokens:,} tokens read; written: {written}.")
