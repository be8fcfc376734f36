"""`gma-hf convert`: a GMA model of a checkpoint of Transformers."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder or Hub name of a model of a family that docs/guides/convert.md names."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the GMA model to; it must not exist.")],
    layers: Annotated[
        str, typer.Option(help="Layers that become GMA: all, none, every:N, or indices as in 0,2,4.")
    ] = "all",
    num_components: Annotated[int, typer.Option(min=1, help="K, the Gaussian components of each head.")] = 64,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Text file, one text per line, that the components are fitted to."
        ),
    ] = None,
    max_positions: Annotated[
        int | None,
        typer.Option(help="Tokens that the GMA model reads, if more than SOURCE; its tokenizer cuts texts there."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda:0.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the weights at OUT: auto (the source's), float32, bfloat16, float16.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder at OUT.")] = False,
) -> None:
    """Make a GMA model of a checkpoint in the style of GPT-2 or BERT, tokenizer and pooling included."""
    from transformers.utils import logging

    from ..conversion import convert_checkpoint
    from ..conversion.source import open_source, open_tokenizer
    from ..files import check_output, whole_folder
    from ..hub.find import check_checkpoint
    from ..hub.modules import copy_modules, find_modules
    from ..placing import choose_device, choose_dtype
    from ..texts import read_text

    logging.disable_progress_bar()
    check_output("OUT", out, force, is_folder=True)
    place, weights = choose_device(device), choose_dtype(dtype)
    check_checkpoint(source, "SOURCE")
    texts = None
    if calibration is not None:
        texts = [line for line in read_text(calibration, "--calibration").splitlines() if line.strip()]
    modules, opened = find_modules(source), open_source(source).to(place)
    model = convert_checkpoint(
        opened,
        layers=layers,
        num_components=num_components,
        calibration=texts,
        max_position_embeddings=max_positions,
    )
    model.to(dtype=weights)
    tokenizer = open_tokenizer(source, max_positions)
    with whole_folder(out, replace=force) as written:
        model.save_pretrained(written)
        if tokenizer is not None:
            tokenizer.save_pretrained(written)
        if modules is not None:
            copy_modules(modules, written, max_positions)
    without = ", without a tokenizer, since SOURCE has none" if tokenizer is None else ""
    typer.echo(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {out}{without}.")
    if "gma" in model.config.layer_types:
        typer.echo(f"gma-hf: {advice(texts is not None)}", err=True)


def advice(is_calibrated: bool) -> str:
    """Return what comes after a conversion that has replaced layers."""
    if is_calibrated:
        return "the new layers are near the source's only after a distillation: `gma-hf distill` comes next."
    return (
        "without --calibration the components start at random places, much farther from the source than if they are "
        "fitted to a text; `gma-hf distill`, which fits them too, comes next."
    )
