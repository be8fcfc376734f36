"""`gma-hf serve`: the HTTP server of Transformers, for GMA models."""

import typer

from ..errors import MissingExtra, first_sentence


def serve(context: typer.Context) -> None:
    """
    Answer over HTTP: `transformers serve`, which finds GMA models then.

    All arguments are passed on, such as a checkpoint, --host and --port; `transformers serve --help` lists them.
    """
    import transformers
    from transformers.utils.import_utils import is_serve_available

    from ..model.modeling_gma import GMAForCausalLM

    if context.args and not context.args[0].startswith("-"):
        check_served(context.args[0])
    if not is_serve_available():
        raise MissingExtra(
            '`gma-hf serve` needs what `transformers serve` does: `pip install "transformers[serving]"`.'
        )
    from transformers.cli.transformers import app as commands

    # It looks for the class of a checkpoint nowhere but there
    transformers.GMAForCausalLM = GMAForCausalLM
    commands(["serve", *context.args], prog_name="gma-hf")


def check_served(checkpoint: str) -> None:
    """Refuse what cannot be served as a GMA model, before a server starts."""
    from transformers import AutoConfig

    from ..hub.find import check_checkpoint

    check_checkpoint(checkpoint)
    try:
        architectures = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).architectures or ["none"]
    except Exception as error:
        raise ValueError(f"CHECKPOINT {checkpoint!r} cannot be opened: {first_sentence(error)}.") from error
    if architectures != ["GMAForCausalLM"]:
        raise ValueError(f"CHECKPOINT must be a GMAForCausalLM, but {checkpoint!r} is a {', '.join(architectures)}.")
