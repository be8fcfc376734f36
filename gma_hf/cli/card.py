"""`gma-hf card`: the model card of a training."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="What Trainer has written: an output_dir or a checkpoint in it."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model on the Hub (default: the folder's).")] = None,
    license: Annotated[str | None, typer.Option(help="Licence, as the Hub spells it: apache-2.0.")] = None,
    language: Annotated[str | None, typer.Option(help="Code of the language: en.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub name of the model that this was made of.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub name of the data set of training and metrics.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a README.md that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", hidden=True)] = False,  # its name in version 0.1.0
) -> None:
    """Write the model card (README.md) of a training: how to load the model, its metrics and training arguments."""
    from ..hub.card import write_card

    typer.echo(f"Written: {write_card(folder, name, license, language, base_model, dataset, force or overwrite)}")
