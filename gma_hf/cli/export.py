"""`gma-hf export`: a model as one graph, for ONNX or `torch.export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import extra


FORMATS = {".onnx": "ONNX", ".pt2": "torch.export"}


def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub name of a GMA model.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .onnx for ONNX, .pt2 for a program of torch.export.")
    ],
    device: Annotated[str, typer.Option(help="Where the graph computes: auto, cpu, cuda:0.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto (the checkpoint's), float32, bfloat16, float16.")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace a file at OUT.")] = False,
) -> None:
    """Write a GMA model as one graph of tensors, which runs without gma_hf."""
    if out.suffix not in FORMATS:
        raise ValueError(f"OUT must end in {' or '.join(FORMATS)}, but it is {str(out)!r}.")
    from ..files import check_output, whole_file
    from .opening import open_gma_model

    check_output("OUT", out, force)
    if out.suffix == ".onnx":
        with extra("onnx", "`gma-hf export` to ONNX"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
    model = open_gma_model(checkpoint, device, dtype)
    with whole_file(out) as written:
        if out.suffix == ".onnx":
            from ..export import export_onnx

            export_onnx(model, written)
        else:
            import torch

            from ..export import export as export_program

            torch.export.save(export_program(model), written)
    typer.echo(f"{type(model).__name__} written to {out}, for {FORMATS[out.suffix]}.")
