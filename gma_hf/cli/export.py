"""`gma-hf export`: a model as one graph, for ONNX or `torch.export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import extra, first_sentence


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
    from ..files import whole_file
    from .opening import check_output

    check_output("OUT", out, force)
    if out.suffix == ".onnx":
        with extra("onnx", "`gma-hf export` to ONNX"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
    model = open_by_its_class(checkpoint, device, dtype)
    with whole_file(out) as written:
        if out.suffix == ".onnx":
            from ..export import export_onnx

            export_onnx(model, written)
        else:
            import torch

            from ..export import export as export_program

            torch.export.save(export_program(model), written)
    typer.echo(f"{type(model).__name__} written to {out}, for {FORMATS[out.suffix]}.")


def open_by_its_class(checkpoint: str, device: str, dtype: str):  # noqa: ANN201
    """Return the model of a checkpoint with the head that it was saved with."""
    from transformers import AutoConfig

    from ..hub.find import check_checkpoint
    from .opening import open_model

    check_checkpoint(checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"CHECKPOINT {checkpoint!r} cannot be opened: {first_sentence(error)}.") from error
    if config.model_type != "gma":
        raise ValueError(f"CHECKPOINT must be a GMA model, but {checkpoint!r} is of type {config.model_type!r}.")
    name = (config.architectures or ["GMAModel"])[0]
    auto_class = next((key for key, value in config.auto_map.items() if value.endswith(f".{name}")), "AutoModel")
    return open_model(checkpoint, auto_class, f"GMA model ({name})", device, dtype)
