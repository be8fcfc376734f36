"""`gma-hf generate`: a text that a model continues."""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
            help="Take turns: each line is added to the text (\\n in it for a line break) and the model continues, "
            "reading nothing twice. An empty line or Ctrl-D ends.",
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most, each turn.")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="Of the sampling, above 0 (default: the checkpoint's, or 1).")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Sample from the likeliest tokens that make up this probability, above 0 to 1."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Sample from so many of the likeliest tokens.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token instead of sampling.")] = False,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End each turn behind this text (\\n in it for a line break); may be given several times."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the sampling (default: any).")] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Continue from what --save-state (or GMAState.save) wrote with this model.",
        ),
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write what the model remembers to this file after each turn.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda:0.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto (the checkpoint's), float32, bfloat16, float16.")
    ] = "auto",
) -> None:
    """Continue a text with a model, printing each token as it is generated."""
    from transformers import TextStreamer, set_seed

    from ..files import check_output
    from ..session import TextSession
    from ..state import GMAState
    from .opening import open_model, open_tokenizer

    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused later, in a sentence
    choices = sampling_choices(greedy, temperature=temperature, top_p=top_p, top_k=top_k)
    if save_state is not None:
        check_output("--save-state", save_state, force=True)
    texts = turns(prompt) if interactive else iter([whole_text(prompt)])
    start = None if state is None else GMAState.load(state)
    model = open_model(checkpoint, "AutoModelForCausalLM", "causal language model", device, dtype)
    tokenizer = open_tokenizer(checkpoint)
    if stop:
        choices |= {"stop_strings": stop_texts(stop), "tokenizer": tokenizer}
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
        if session.is_full:
            typer.echo(f"gma-hf: the text ends here, since the model takes {session.limit} tokens at most.", err=True)
            break


def sampling_choices(greedy: bool, **given: float | int | None) -> dict[str, Any]:
    """Return what `generate` of Transformers is told about how to take a token."""
    asked = {name: value for name, value in given.items() if value is not None}
    if greedy and asked:
        other = next(iter(asked)).replace("_", "-")
        raise ValueError(f"Only one of --greedy and --{other} may be given, but both are.")
    if not 0 < asked.get("temperature", 1) < float("inf"):
        raise ValueError(
            f"--temperature must be a number above 0, but it is {asked['temperature']}; --greedy takes the likeliest "
            "token."
        )
    if not 0 < asked.get("top_p", 1) <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, but it is {asked['top_p']}.")
    if greedy:  # what a checkpoint says about sampling would be warned of
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"do_sample": True, **asked}


def stop_texts(stop: list[str]) -> list[str]:
    """Return the texts that end a turn."""
    if not all(stop):
        raise ValueError("--stop must hold some text, but it is empty.")
    return [text.replace("\\n", "\n") for text in stop]


def check_abilities(model: "PreTrainedModel", interactive: bool, has_state: bool) -> None:
    """Refuse what was asked for if the model cannot do it, before anything is written."""
    from ..session import keeps_a_cache

    name = type(model).__name__
    if has_state and model.config.model_type != "gma":
        raise ValueError(f"With --state or --save-state, CHECKPOINT must be a GMA model, but it is a {name}.")
    if interactive and not keeps_a_cache(model):
        raise ValueError(
            f"With --interactive, CHECKPOINT must be a model that keeps what it reads in a cache, but {name} does not."
        )


def whole_text(prompt: str | None) -> str:
    """Return the prompt, or what the standard input holds instead."""
    if prompt is None and sys.stdin.isatty():
        raise ValueError("PROMPT must be given or come through a pipe, but it is missing; --interactive asks for it.")
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text:
        raise ValueError("PROMPT must hold some text, but it is empty.")
    return text


def turns(prompt: str | None) -> Iterator[str]:
    """Return the prompt, if there is one, and then what is typed, line by line."""
    if prompt == "-":
        raise ValueError("PROMPT must not be '-' with --interactive, which takes its turns from the standard input.")
    typed = (line.replace("\\n", "\n") for line in iter(read_line, ""))
    return chain([prompt] if prompt else [], typed)


def read_line() -> str:
    """Return a line without its break, empty at the end of the input."""
    is_terminal = sys.stdin.isatty()
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        if is_terminal:
            typer.echo()  # the cursor is still behind the question
        return ""
