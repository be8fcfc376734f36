"""`gma-hf`, also `python -m gma_hf`: what can be done with a checkpoint without writing Python."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
    set_seed,
)
from transformers.utils import logging

from .card import write_card
from .conversion import convert_checkpoint
from .conversion.source import open_tokenizer
from .errors import first_line, first_sentence
from .model.modeling_gma import GMAForCausalLM
from .session import TextSession, keeps_a_cache
from .state import GMAState


app = typer.Typer(
    help="Gaussian Mixture Attention on the command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def main() -> None:
    """Gaussian Mixture Attention on the command line."""


@app.command()
def generate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub name of a causal language model.")
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="How the text starts; '-' (or nothing, in a pipe) reads it from the standard input.",
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Take turns: each line is added to the text (\\n in it for a line break) and the model goes on, "
            "reading nothing twice. An empty line or Ctrl-D ends.",
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most, each turn.")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="Of the sampling, above 0 (default: the checkpoint's, or 1).")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token instead of sampling.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the sampling (default: any).")] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Go on from what --save-state (or GMAState.save) wrote with this model."
        ),
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write what the model remembers to this file after each turn.")
    ] = None,
) -> None:
    """Let a model go on with a text, printing what it writes as it comes."""
    sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused later, in a sentence
    with refusals():
        choices = sampling_choices(temperature, greedy)
        if save_state is not None and not os.access(save_state.parent, os.W_OK):
            raise ValueError(f"--save-state must be in a folder to write to, but {str(save_state.parent)!r} is none.")
        texts = turns(prompt) if interactive else iter([whole_text(prompt)])
        start = None if state is None else GMAState.load(state)
        model, tokenizer = open_checkpoint(checkpoint)
        check_abilities(model, interactive, state is not None or save_state is not None)
        cache = None if start is None else start.to_cache(model, batch_size=1)
        session = TextSession(model, tokenizer, cache)
        if seed is not None:
            set_seed(seed)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        for text in texts:
            session.generate(text, max_new_tokens, streamer, **choices)
            if save_state is not None:
                GMAState.from_cache(session.settle()).save(save_state)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Answer over HTTP: `transformers serve`, with all its arguments, which finds GMA models then."""
    if context.args and not context.args[0].startswith("-"):
        with refusals():
            check_served(context.args[0])
    from transformers.cli.transformers import app as commands

    # It looks for the class of a checkpoint nowhere but there
    transformers.GMAForCausalLM = GMAForCausalLM
    commands(["serve", *context.args], prog_name="gma-hf")


@app.command()
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a README.md that is there.")] = False,
) -> None:
    """Write the model card (README.md) of a training: how to load the model, its metrics and training arguments."""
    with refusals():
        typer.echo(f"Written: {write_card(folder, name, license, language, base_model, dataset, overwrite)}")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder or Hub name of a GPT-2, BERT, RoBERTa or DistilBERT model.")
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
) -> None:
    """Make a GMA model of a GPT-2- or BERT-style checkpoint, with its tokenizer if it has one."""
    with refusals():
        if out.exists():
            raise ValueError(f"OUT must not exist yet, but {str(out)!r} does.")
        if not out.absolute().parent.is_dir():
            raise ValueError(f"OUT must be in a folder that exists, but {str(out.parent)!r} does not.")
        texts = None
        if calibration is not None:
            texts = lines_of(calibration)
        model = convert_checkpoint(source, layers=layers, num_components=num_components, calibration=texts)
        tokenizer = open_tokenizer(source)
        # Written beside its place and moved there, so that nothing half-written is left behind
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-") as folder:
            written = Path(folder) / out.name
            model.save_pretrained(written)
            if tokenizer is not None:
                tokenizer.save_pretrained(written)
            written.rename(out)
        without = ", without a tokenizer, since SOURCE has none" if tokenizer is None else ""
        typer.echo(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {out}{without}.")


@app.command()
def report(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub name of a GMA model.")],
    text: Annotated[
        Path, typer.Argument(metavar="TEXT", exists=True, dir_okay=False, help="Text file that the model reads.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="HTML file to write.")] = Path(
        "report.html"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Also the tables, as a JSON file.")
    ] = None,
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
) -> None:
    """Show what the components of a GMA model learned, as one HTML file."""
    with refusals():
        for option, path in (("-o", output), ("--json", json_file), ("--csv", csv_folder), ("--png", png_folder)):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"{option} must be in a folder that exists, but {str(path.parent)!r} does not.")
            if path is not None and path.exists() and not (path.is_file() or path.is_dir()):
                raise ValueError(f"{option} must be a file or folder to write, but {str(path)!r} is neither.")
        try:
            from .analysis.command import report as analyse
        except ImportError as error:
            raise ValueError(f"`gma-hf report` needs `pip install gma-hf[analysis]`: {error}.") from error
        if json_file is not None and output.resolve() == json_file.resolve():
            raise ValueError(f"-o and --json must be two files, but both are {str(output)!r}.")
        model, tokenizer = open_checkpoint(checkpoint, AutoModel, "GMA model")
        if model.config.model_type != "gma":
            raise ValueError(f"CHECKPOINT must be a GMA model, but {checkpoint!r} is a {type(model).__name__}.")
        files = {"json_file": json_file, "csv_folder": csv_folder, "png_folder": png_folder}
        if sequence_length is None:
            has_limit = model.config.position_embedding == "learned"
            sequence_length = min(256, model.config.max_position_embeddings) if has_limit else 256
        length = {"max_tokens": max_tokens, "sequence_length": sequence_length}
        analysis = analyse(model.float(), tokenizer, text, output, name=Path(checkpoint).name, **length, **files)
        written = ", ".join(str(path) for path in (output, *files.values()) if path is not None)
        typer.echo(f"{analysis.counts.tokens:,} tokens read; written: {written}.")


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that hold something."""
    return [line for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """A text file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"A text file must be in UTF-8, but {str(path)!r} is not.") from error


@contextmanager
def refusals() -> Iterator[None]:
    """Wrong input, and a disk that is full, end the program as wrong usage does: one sentence, exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"gma-hf: {first_line(error)}", err=True)
        raise typer.Exit(2) from error


def sampling_choices(temperature: float | None, greedy: bool) -> dict[str, Any]:
    """What `generate` is told about how to take a token."""
    if greedy and temperature is not None:
        raise ValueError("Only one of --greedy and --temperature may be given, but both are.")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(
            f"--temperature must be a number above 0, but it is {temperature}; --greedy takes the likeliest token."
        )
    if greedy:  # what a checkpoint says about sampling would be warned of
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"do_sample": True} if temperature is None else {"do_sample": True, "temperature": temperature}


def check_served(checkpoint: str) -> None:
    """Refuses what cannot be served as a GMA model, before a server starts."""
    try:
        architectures = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).architectures or ["none"]
    except Exception as error:
        raise ValueError(f"CHECKPOINT {checkpoint!r} cannot be opened: {first_sentence(error)}.") from error
    if architectures != [GMAForCausalLM.__name__]:
        raise ValueError(
            f"CHECKPOINT must be a {GMAForCausalLM.__name__}, but {checkpoint!r} is a {', '.join(architectures)}."
        )


def check_abilities(model: PreTrainedModel, interactive: bool, has_state: bool) -> None:
    """Refuses what was asked for if the model cannot do it, before anything is written."""
    name = type(model).__name__
    if has_state and model.config.model_type != "gma":
        raise ValueError(f"With --state or --save-state, CHECKPOINT must be a GMA model, but it is a {name}.")
    if interactive and not keeps_a_cache(model):
        raise ValueError(
            f"With --interactive, CHECKPOINT must be a model that keeps what it reads in a cache, but {name} does not."
        )


def whole_text(prompt: str | None) -> str:
    """The prompt, or what the input holds instead."""
    if prompt is None and sys.stdin.isatty():
        raise ValueError("PROMPT must be given or come through a pipe, but it is missing; --interactive asks for it.")
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text:
        raise ValueError("PROMPT must hold some text, but it is empty.")
    return text


def turns(prompt: str | None) -> Iterator[str]:
    """The prompt, if there is one, and then what is typed, line by line."""
    if prompt == "-":
        raise ValueError("PROMPT must not be '-' with --interactive, which takes its turns from the standard input.")
    typed = (line.replace("\\n", "\n") for line in iter(read_line, ""))
    return chain([prompt] if prompt else [], typed)


def read_line() -> str:
    """A line without its break; empty at the end of the input."""
    is_terminal = sys.stdin.isatty()
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        if is_terminal:
            typer.echo()  # the cursor is still behind the question
        return ""


def open_checkpoint(
    name: str, auto_class: type = AutoModelForCausalLM, kind: str = "causal language model"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on the GPU if there is one, and its tokenizer."""
    logging.disable_progress_bar()
    # Code that comes with a checkpoint is not run; importing this package has made ours known. Whatever error that
    # ends in lies in somebody's files
    try:
        model = auto_class.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"CHECKPOINT must be the folder or Hub name of a {kind}, but "
            f"{name!r} cannot be opened: {first_sentence(error)}."
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"CHECKPOINT must hold the model's tokenizer too, but {name!r} has none that can be opened."
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
