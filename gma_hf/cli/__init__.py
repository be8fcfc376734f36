"""
`gma-hf`, also `python -m gma_hf`: what can be done with a checkpoint without writing Python.

Each command has a module. None of them imports torch or Transformers at its top: `loading.command` does, before a
command runs.
"""

from typing import Annotated

import typer

from . import card, convert, distill, export, generate, publish, report, serve, train
from .loading import command, version


app = typer.Typer(
    help="Gaussian Mixture Attention on the command line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app.command()(command(generate.generate))
app.command(context_settings=PASSED_ON)(command(serve.serve))
app.command(context_settings=PASSED_ON)(command(train.train))
app.command(context_settings=PASSED_ON)(command(distill.distill))
app.command()(command(convert.convert))
app.command()(command(report.report))
app.command()(command(export.export))
app.command()(command(card.card))
app.command()(command(publish.publish))


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"gma-hf {version()}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Gaussian Mixture Attention on the command line."""
