"""
Time per generated token and bytes of what is remembered, at contexts from 1,000 to 100,000 tokens: a GMA model beside
a GPT-2 of the same size with its key-value cache, in one run, both with random weights.

    python benchmarks/decode.py                               # two CPU cores, float32
    python benchmarks/decode.py --device cuda --dtype bfloat16

GMA reads the context in pieces. GPT-2's cache is filled with random keys and values instead, since reading 100,000
tokens would take it hours on a CPU; the time of a step does not depend on what the cache holds. GPT-2's cache grows by
concatenation, as `DynamicCache` does it; with `--static` it is a preallocated `StaticCache`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from harness import machine, save, time_side_by_side
from transformers import Cache, DynamicCache, GPT2Config, GPT2LMHeadModel, HfArgumentParser, StaticCache

from gma_hf import GMAConfig, GMAForCausalLM


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    contexts: list[int] = field(
        default_factory=lambda: [1000, 4096, 16384, 32768, 65536, 100000], metadata={"help": "Tokens read before."}
    )
    layers: int = field(default=12, metadata={"help": "Layers of both models."})
    heads: int = field(default=12, metadata={"help": "Heads of both models."})
    hidden_size: int = field(default=768, metadata={"help": "Width of both models."})
    vocab_size: int = field(default=50257, metadata={"help": "Vocabulary of both models."})
    components: int = field(default=64, metadata={"help": "K of GMA."})
    additions: bool = field(default=False, metadata={"help": "GMA with convolution and forget gate."})
    static: bool = field(default=False, metadata={"help": "GPT-2 with a preallocated cache."})
    dtype: str = field(default="float32", metadata={"help": "Of both models."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    rounds: int = field(default=15, metadata={"help": "Turns; each is one token at each context. The median counts."})
    longest_softmax: int = field(default=100000, metadata={"help": "Tokens beyond which GPT-2 is left out."})
    piece: int = field(default=4096, metadata={"help": "Tokens that GMA reads at once."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where JSON and plot go."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})


def gma_model(args: Arguments) -> GMAForCausalLM:
    """A GMA model without a longest sequence."""
    additions = {"conv_kernel_size": 4, "forget_gate": True} if args.additions else {}
    config = GMAConfig.gpt2_style(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_components=args.components,
        position_embedding="none",
        **additions,
    )
    return GMAForCausalLM(config).to(args.device, getattr(torch, args.dtype)).eval()


def gpt2_model(args: Arguments) -> GPT2LMHeadModel:
    """GPT-2 with positions for the longest context."""
    config = GPT2Config(
        vocab_size=args.vocab_size,
        n_embd=args.hidden_size,
        n_layer=args.layers,
        n_head=args.heads,
        n_positions=max(args.contexts) + args.rounds + 2,
    )
    return GPT2LMHeadModel(config).to(args.device, getattr(torch, args.dtype)).eval()


def read(model: GMAForCausalLM, tokens: torch.Tensor, piece: int) -> Cache:
    """The cache after `tokens`, read `piece` at a time."""
    cache = DynamicCache(config=model.config)
    for part in tokens.split(piece, dim=1):
        model(part, past_key_values=cache, logits_to_keep=1)
    return cache


def filled(model: GPT2LMHeadModel, length: int, args: Arguments) -> Cache:
    """A key-value cache with `length` random tokens in it."""
    cache = DynamicCache(config=model.config)
    if args.static:
        cache = StaticCache(config=model.config, max_cache_len=length + args.rounds + 2)
    shape = (1, args.heads, length, args.hidden_size // args.heads)
    for layer in range(args.layers):
        keys = torch.randn(shape, dtype=model.dtype, device=model.device)
        cache.update(keys, torch.randn_like(keys), layer)
    return cache


def remembered(cache: Cache) -> int:
    """Bytes of all tensors in a cache."""
    tensors = []
    for layer in cache.layers:
        tensors += [layer.state, layer.conv_tail] if hasattr(layer, "conv_tail") else [layer.keys, layer.values]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@torch.inference_mode()
def main() -> None:
    """Measures, prints, writes."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    gma = gma_model(args)
    tokens = torch.randint(args.vocab_size, (1, max(args.contexts)), device=args.device)
    token = tokens[:, :1]
    caches = {length: read(gma, tokens[:, :length], args.piece) for length in args.contexts}
    steps = {f"GMA {n}": lambda n=n: gma(token, past_key_values=caches[n]) for n in args.contexts}
    # All contexts take turns: what is compared is the same step after different numbers of tokens
    milliseconds = {"GMA": {}, "GPT-2": {}}
    bytes_ = {"GMA": {}, "GPT-2": {}}
    for name, seconds in time_side_by_side(steps, args.device, args.rounds, limit=60).items():
        milliseconds["GMA"][int(name.split()[1])] = seconds * 1e3
    for length, cache in caches.items():
        bytes_["GMA"][length] = remembered(cache) / 2**20

    gpt2 = gpt2_model(args)
    beside = {}
    for length in [n for n in args.contexts if n <= args.longest_softmax]:
        cache = filled(gpt2, length, args)
        bytes_["GPT-2"][length] = remembered(cache) / 2**20
        calls = {
            "GPT-2": lambda cache=cache: gpt2(token, past_key_values=cache),
            "GMA": lambda n=length: gma(token, past_key_values=caches[n]),
        }
        seconds = time_side_by_side(calls, args.device, args.rounds, limit=60)
        milliseconds["GPT-2"][length] = seconds["GPT-2"] * 1e3
        beside[length] = seconds["GPT-2"] / seconds["GMA"]
        print(f"{length:,} tokens done", flush=True)
        del cache, calls
    shortest = milliseconds["GMA"][min(args.contexts)]
    ratios = {
        "GPT-2's time per token over GMA's": beside,
        "GMA's time per token over that at the shortest context": {
            n: value / shortest for n, value in milliseconds["GMA"].items()
        },
    }
    panels = {
        "time per token": (milliseconds, "milliseconds"),
        "state or key-value cache": (bytes_, "MiB"),
    }
    parameters = {
        "GMA": gma.num_parameters(),
        "GPT-2 without positions": gpt2.num_parameters() - gpt2.transformer.wpe.weight.numel(),
    }
    report = {"machine": machine(args.device), "arguments": asdict(args), "parameters": parameters, "ratios": ratios}
    report |= {title: figures for title, (figures, _) in panels.items()}
    save(Path(args.output_dir), f"decode_{args.device}", report, panels)
    print(f"\n{parameters}")
    for title, row in ratios.items():
        print(f"{title}: " + ", ".join(f"{n:,}: {value:.3f}" for n, value in row.items()))


if __name__ == "__main__":
    main()
