"""
Open a causal checkpoint through the Auto classes, generate text, and print its speed and the size of its state:

    python -m gma_hf.recipes.demo --prompt "JULIET:" --max_new_tokens 200
"""

import platform
import time
from dataclasses import dataclass, field

import torch
from transformers import TextStreamer, set_seed

from ..model.cache_gma import is_gma
from ..session import TextSession
from .arguments import parse
from .models import SHIPPED_HELP, open_causal
from .running import run


@dataclass
class DemoArguments:
    """What is opened, and what it is asked to write."""

    checkpoint: str | None = field(default=None, metadata={"help": SHIPPED_HELP})
    prompt: str = field(default="ROMEO:\n", metadata={"help": "How the text starts."})
    max_new_tokens: int = field(default=400, metadata={"help": "Tokens to generate."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})


def cache_bytes(cache) -> int:  # noqa: ANN001
    """Return the bytes of all tensors that the layers of a cache hold."""
    tensors = []
    for layer in cache.layers:
        tensors += layer.tensors.values() if is_gma(layer) else [layer.keys, layer.values]
    return sum(tensor.nbytes for tensor in tensors)


def main(arguments: list[str] | None = None) -> None:
    """Generate once, streaming, and print the figures."""
    (args,) = parse((DemoArguments,), arguments)
    set_seed(args.seed)
    model, tokenizer = open_causal(args.checkpoint)
    text = TextSession(model, tokenizer)

    start = time.perf_counter()
    written = len(text.generate(args.prompt, args.max_new_tokens, TextStreamer(tokenizer), do_sample=True))
    seconds = time.perf_counter() - start

    read, config = text.num_read, model.config
    per_token = 2 * config.num_hidden_layers * config.hidden_size * torch.finfo(model.dtype).bits // 8
    print(f"\n{'-' * 80}")
    print(f"{model.num_parameters():,} parameters, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{written / seconds:,.0f} tokens per second")
    print(f"{cache_bytes(text.cache):,} bytes of state, whatever the number of tokens")
    print(f"{per_token * read:,} bytes of a key-value cache of the same model after {read:,} tokens")
    print(f"{per_token * 100_000:,} bytes of a key-value cache of the same model after 100,000 tokens")


if __name__ == "__main__":
    run(main)
