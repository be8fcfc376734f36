"""
Time per generated token and bytes of what is remembered, at contexts from 1,000 to 100,000 tokens: a GMA model beside
a GPT-2 of the same size with its key-value cache, linear attention in GMA's network, and a Mamba of about the same
size, in one run, all with random weights.

    python -m benchmarks.decode                               # two CPU cores, float32
    python -m benchmarks.decode --device cuda --dtype bfloat16

GMA reads the context in pieces. The time of a step does not depend on what is remembered, so that the others are
spared the hours that reading would take them. GPT-2's caches are filled with random keys and values: one that grows by
concatenation (`DynamicCache`, what `generate` takes by itself), and one that is allocated beforehand (`StaticCache`).
Linear attention and Mamba, whose states have one size at every context, have read one token.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import (
    Cache,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.model.attention_gma import GaussianMixtureAttention, MixerOutput
from gma_hf.model.cache_gma import is_gma
from gma_hf.model.compat_gma import CACHE_NAME
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine, save, time_side_by_side
from .linear_attention import elu_features, one_token


GMA, LINEAR, MAMBA, GROWING, PREALLOCATED = CONTENDERS = (
    "GMA",
    "linear (elu + 1)",
    "Mamba",
    "GPT-2",
    "GPT-2, preallocated cache",
)


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    contexts: list[int] = field(
        default_factory=lambda: [1000, 4096, 16384, 32768, 65536, 100000], metadata={"help": "Tokens read before."}
    )
    layers: int = field(default=12, metadata={"help": "Layers of all models; of Mamba twice as many."})
    heads: int = field(default=12, metadata={"help": "Heads of GMA, linear attention and GPT-2."})
    hidden_size: int = field(default=768, metadata={"help": "Width of all models."})
    vocab_size: int = field(default=50257, metadata={"help": "Vocabulary of all models."})
    components: int = field(default=64, metadata={"help": "K of GMA."})
    additions: bool = field(default=False, metadata={"help": "GMA with convolution and forget gate."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of all models."})
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "cpu or cuda."})
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


class LinearAttention(nn.Module):
    """Linear attention (elu + 1) of one token at a time with GMA's projections, its state in GMA's cache."""

    def __init__(self, layer: GaussianMixtureAttention):
        super().__init__()
        self.layer_idx, self.heads, self.widths = layer.layer_idx, layer.config.num_attention_heads, layer.qkv_widths
        self.qkv_proj, self.o_proj = layer.qkv_proj, layer.o_proj

    def forward(self, hidden_states: torch.Tensor, cache: Cache, **kwargs) -> MixerOutput:
        """Return what the layer gives for `[batch, 1, hidden]`."""
        layer = cache.layers[self.layer_idx]
        queries, keys, values = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in self.qkv_proj(hidden_states).split(self.widths, dim=-1)
        )
        output, state = one_token(elu_features(queries), elu_features(keys), values, layer.state)
        layer.update({"state": state})
        return MixerOutput(self.o_proj(output.transpose(1, 2).flatten(2)))


def linear_model(args: Arguments) -> GMAForCausalLM:
    """GMA's network with linear attention, whose state has a row for each of a head's features."""
    model = gma_model(replace(args, components=args.hidden_size // args.heads))
    for layer in model.model.layers:
        layer.attention = LinearAttention(layer.attention)
    return model


def mamba_model(args: Arguments) -> MambaForCausalLM:
    """Mamba of the same width; two of its layers have about the parameters of one with attention and MLP."""
    config = MambaConfig(vocab_size=args.vocab_size, hidden_size=args.hidden_size, num_hidden_layers=2 * args.layers)
    return MambaForCausalLM(config).to(args.device, getattr(torch, args.dtype)).eval()


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


def read_in_pieces(model: GMAForCausalLM, tokens: torch.Tensor, piece: int) -> Cache:
    """The cache after `tokens`, read `piece` at a time."""
    cache = DynamicCache(config=model.config)
    for part in tokens.split(piece, dim=1):
        model(part, cache=cache, logits_to_keep=1)
    return cache


def filled(model: GPT2LMHeadModel, length: int, name: str, args: Arguments) -> Cache:
    """A key-value cache with `length` random tokens in it, GROWING or PREALLOCATED."""
    cache = DynamicCache(config=model.config)
    if name == PREALLOCATED:
        cache = StaticCache(config=model.config, max_cache_len=length + args.rounds + 2)
    shape = (1, args.heads, length, args.hidden_size // args.heads)
    for layer in range(args.layers):
        keys = torch.randn(shape, dtype=model.dtype, device=model.device)
        cache.update(keys, torch.randn_like(keys), layer)
    return cache


def remembered(cache: Cache) -> float:
    """MiB of all tensors in a cache."""
    tensors = []
    for layer in cache.layers:
        if is_gma(layer):
            tensors += layer.tensors.values()
        elif hasattr(layer, "recurrent_states"):
            tensors += [*layer.recurrent_states.values(), *layer.conv_states.values()]
        else:
            tensors += [layer.keys, layer.values]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) / 2**20


def mamba_cache_name() -> str:
    """Return what Transformers' Mamba calls its cache."""
    return CACHE_NAME if CACHE_NAME == "cache" else "cache_params"


def step(model: PreTrainedModel, token: torch.Tensor, cache: Cache) -> Callable[[], object]:
    """One more token."""
    name = mamba_cache_name() if isinstance(model, MambaForCausalLM) else CACHE_NAME
    return lambda: model(token, use_cache=True, **{name: cache})


def constancy(args: Arguments, gma: GMAForCausalLM, token: torch.Tensor, caches: dict[int, Cache]) -> dict[int, float]:
    """GMA's time per token at each context over that at the shortest, all contexts in turns."""
    steps = {str(length): step(gma, token, cache) for length, cache in caches.items()}
    seconds = time_side_by_side(steps, args.device, args.rounds, limit=60)
    return {length: seconds[str(length)] / seconds[str(min(caches))] for length in caches}


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    torch.manual_seed(args.seed)
    gma, linear, mamba, gpt2 = gma_model(args), linear_model(args), mamba_model(args), gpt2_model(args)
    tokens = torch.randint(args.vocab_size, (1, max(args.contexts)), device=args.device)
    token = tokens[:, :1]
    read_by_gma = {length: read_in_pieces(gma, tokens[:, :length], args.piece) for length in args.contexts}
    of_others = {
        LINEAR: (linear, read_in_pieces(linear, token, 1)),
        MAMBA: (mamba, mamba(token, use_cache=True)[mamba_cache_name()]),
    }
    milliseconds, mebibytes = ({name: {} for name in CONTENDERS} for _ in range(2))
    over_gma = {name: {} for name in CONTENDERS if name != GMA}
    constant = constancy(args, gma, token, read_by_gma)
    for length in args.contexts:
        for name in (GROWING, PREALLOCATED):  # one after the other: both at 100,000 tokens are 14 GB
            caches = {GMA: (gma, read_by_gma[length])} | of_others
            if length <= args.longest_softmax:
                caches[name] = (gpt2, filled(gpt2, length, name, args))
            for contender, (_, cache) in caches.items():
                mebibytes[contender].setdefault(length, remembered(cache))
            calls = {contender: step(model, token, cache) for contender, (model, cache) in caches.items()}
            seconds = time_side_by_side(calls, args.device, args.rounds, limit=60)
            for contender in calls:
                milliseconds[contender].setdefault(length, seconds[contender] * 1e3)
                if contender != GMA:
                    over_gma[contender].setdefault(length, seconds[contender] / seconds[GMA])
            del caches, calls
        print(f"{length:,} tokens done", flush=True)
    ratios = {f"{name}: time per token over GMA's in the same turns": row for name, row in over_gma.items()}
    ratios["GMA's time per token over that at the shortest context"] = constant
    panels = {
        "time per token": (milliseconds, "milliseconds"),
        "state or key-value cache": (mebibytes, "MiB"),
    }
    parameters = {GMA: gma.num_parameters(), LINEAR: linear.num_parameters(), MAMBA: mamba.num_parameters()}
    parameters["GPT-2 without positions"] = gpt2.num_parameters() - gpt2.transformer.wpe.weight.numel()
    report = {"machine": machine(args.device), "arguments": asdict(args), "parameters": parameters, "ratios": ratios}
    report |= {title: figures for title, (figures, _) in panels.items()}
    save(Path(args.output_dir), f"decode_{args.device}", report, panels)
    print(f"\n{parameters}")
    for title, row in ratios.items():
        print(f"{title}: " + ", ".join(f"{n:,}: {value:.3f}" for n, value in row.items()))


if __name__ == "__main__":
    run(main)
