"""`gma-hf publish`: a checkpoint on the Hub, with its card and its code."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A GMA checkpoint, as Trainer writes it too.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Name on the Hub, as user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    to_folder: Annotated[
        Path | None, typer.Option(help="Write what would be uploaded to this folder, and upload nothing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder at --to-folder.")] = False,
) -> None:
    """Upload a checkpoint with its card and the code that opens it without gma_hf, in one commit."""
    from ..files import check_output
    from ..hub.publish import publish as publish_checkpoint

    if to_folder is not None:
        check_output("--to-folder", to_folder, force, is_folder=True)
    typer.echo(f"Opening a copy of {folder} without gma_hf ...", err=True)
    where = publish_checkpoint(folder, repo_id, private=private, to_folder=to_folder, force=force)
    typer.echo(f"{'Published' if to_folder is None else 'Written'}: {where}")
