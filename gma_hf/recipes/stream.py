"""
Take generated text piece by piece while the model generates it in another thread.

    python -m gma_hf.recipes.stream --prompt "JULIET:" --max_new_tokens 200
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)

from ..placing import choose_device, choose_dtype
from ..session import TextSession
from .arguments import parse
from .models import SHIPPED_HELP, open_causal
from .running import run


@dataclass
class StreamArguments:
    """What is opened, and what it is asked to write."""

    checkpoint: str | None = field(default=None, metadata={"help": SHIPPED_HELP})
    prompt: str = field(default="ROMEO:\n", metadata={"help": "How the text starts."})
    max_new_tokens: int = field(default=400, metadata={"help": "Tokens to generate."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    device: str = field(default="auto", metadata={"help": "Where to compute: auto, cpu, cuda:0."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights: auto (the checkpoint's), float32, bfloat16, float16."},
    )


def stream(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, **choices: Any) -> Iterator[str]:
    """
    Yield the continuation of `prompt` in pieces; `choices` are those of `TextSession.generate`. It ends at the last
    position of the model. Closing the generator ends the generation after the next token.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    is_closed = Event()

    def stops(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), is_closed.is_set(), device=input_ids.device)

    choices["stopping_criteria"] = StoppingCriteriaList([*choices.get("stopping_criteria", ()), stops])
    with ThreadPoolExecutor(max_workers=1) as thread:
        generation = thread.submit(TextSession(model, tokenizer).generate, prompt, streamer=streamer, **choices)
        generation.add_done_callback(lambda _: streamer.end())  # or an error there would leave us waiting here
        try:
            yield from streamer
        finally:
            is_closed.set()
        generation.result()  # raises that error


def main(arguments: list[str] | None = None) -> None:
    """Print each piece at once; put your own use of it here."""
    (args,) = parse((StreamArguments,), arguments)
    set_seed(args.seed)
    place, weights = choose_device(args.device, "`device`"), choose_dtype(args.dtype, "`dtype`")
    model, tokenizer = open_causal(args.checkpoint)
    model.to(place, weights)
    if not args.prompt:
        raise ValueError("`prompt` must hold at least one character, but it is ''.")
    choices = {"max_new_tokens": args.max_new_tokens, "do_sample": True}
    with closing(stream(model, tokenizer, args.prompt, **choices)) as pieces:  # Ctrl-C ends the writing too
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    run(main)
