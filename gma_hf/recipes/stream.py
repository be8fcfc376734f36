"""
Take generated text piece by piece, as it comes: the model writes in a thread of its own.

    python -m gma_hf.recipes.stream --prompt "JULIET:" --max_new_tokens 200
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer, set_seed

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


def stream(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, **choices: Any) -> Iterator[str]:
    """Yield the text that `model.generate` adds to `prompt`, in pieces; `choices` are those of `generate`."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with ThreadPoolExecutor(max_workers=1) as thread:
        inputs = tokenizer(prompt, return_tensors="pt")
        generation = thread.submit(model.generate, **inputs, streamer=streamer, **choices)
        generation.add_done_callback(lambda _: streamer.end())  # or an error there would leave us waiting here
        yield from streamer
        generation.result()  # raises that error


def main(arguments: list[str] | None = None) -> None:
    """Print each piece at once; put your own use of it here."""
    (args,) = parse((StreamArguments,), arguments)
    set_seed(args.seed)
    model, tokenizer = open_causal(args.checkpoint)
    for piece in stream(model, tokenizer, args.prompt, max_new_tokens=args.max_new_tokens, do_sample=True):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    run(main)
