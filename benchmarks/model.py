"""
A whole 12-layer model with each of the mixers in turn: a training step (forward, loss, backward) and the prefill of a
prompt, side by side in one run. Everything but the mixer is the same network.

    python -m benchmarks.model                                # two CPU cores, float32: about 15 minutes
    python -m benchmarks.model --device cuda --dtype bfloat16 --batch_size 8 --lengths 1024 4096 16384
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.model.attention_gma import MixerOutput
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .contenders import CumsumGMA, Linear, Mamba
from .harness import freed_memory_kept, machine, save, time_side_by_side


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    lengths: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048, 4096], metadata={"help": "Tokens."})
    batch_size: int = field(default=1, metadata={"help": "Rows."})
    layers: int = field(default=12, metadata={"help": "Layers."})
    heads: int = field(default=8, metadata={"help": "Heads."})
    hidden_size: int = field(default=512, metadata={"help": "Width."})
    vocab_size: int = field(default=8192, metadata={"help": "Vocabulary."})
    components: int = field(default=64, metadata={"help": "K of GMA."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the models."})
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "cpu or cuda."})
    rounds: int = field(default=5, metadata={"help": "Turns of each contender; the median counts."})
    limit: float = field(default=30.0, metadata={"help": "Seconds beyond which a contender gets one turn only."})
    longest_cumsum: int = field(default=256, metadata={"help": "Tokens beyond which the textbook GMA is left out."})
    longest_mamba: int = field(default=256, metadata={"help": "Tokens beyond which Mamba is left out."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where JSON and plot go."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})


class Substitute(nn.Module):
    """Another mixer between the same projections, in the place of a model's attention."""

    def __init__(self, args: Arguments, mixer: nn.Module):
        super().__init__()
        self.heads, self.mixer = args.heads, mixer
        self.qkv_proj = nn.Linear(args.hidden_size, 3 * args.hidden_size)
        self.o_proj = nn.Linear(args.hidden_size, args.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> MixerOutput:
        projected = self.qkv_proj(hidden_states).unflatten(-1, (3, self.heads, -1))
        output = self.mixer(*projected.permute(2, 0, 3, 1, 4))
        return MixerOutput(self.o_proj(output.transpose(1, 2).flatten(2)))


class MambaLayer(nn.Module):
    """Transformers' Mamba mixer of the model's width, in the place of a model's attention."""

    def __init__(self, args: Arguments):
        super().__init__()
        self.mixer = Mamba(args.heads, 2 * args.hidden_size // args.heads).mixer

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> MixerOutput:
        return MixerOutput(self.mixer(hidden_states))


def model(args: Arguments, name: str) -> GMAForCausalLM:
    """The network with the mixer of that name."""
    config = GMAConfig.gpt2_style(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_components=args.components,
        max_position_embeddings=max(args.lengths),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,  # softmax layers alone would have it
        layer_types=["full_attention" if name == "softmax (SDPA)" else "gma"] * args.layers,
        **({"conv_kernel_size": 4, "forget_gate": True} if name == "GMA + conv + gate" else {}),
    )
    network = GMAForCausalLM(config)
    for layer in network.model.layers:
        if name == "linear (elu + 1)":
            layer.attention = Substitute(args, Linear(network.config.chunk_size))
        elif name == "GMA by cumsum":
            width = args.hidden_size // args.heads
            layer.attention = Substitute(args, CumsumGMA(args.heads, args.components, width))
        elif name == "Mamba":
            layer.attention = MambaLayer(args)
    return network.to(args.device, getattr(torch, args.dtype))


def training_step(network: GMAForCausalLM, tokens: torch.Tensor) -> Callable[[], object]:
    """Forward, loss, backward, without an optimizer."""

    def call() -> None:
        network.train()(tokens, labels=tokens, use_cache=False).loss.backward()
        network.zero_grad(set_to_none=True)

    return call


def prefill(network: GMAForCausalLM, tokens: torch.Tensor) -> Callable[[], object]:
    """Forward of a prompt up to its last logits, without a cache."""
    return torch.inference_mode()(lambda: network.eval()(tokens, use_cache=False, logits_to_keep=1))


@freed_memory_kept()
def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    torch.manual_seed(args.seed)
    names = ["GMA", "GMA + conv + gate", "softmax (SDPA)", "linear (elu + 1)", "GMA by cumsum", "Mamba"]
    longest = {"GMA by cumsum": args.longest_cumsum, "Mamba": args.longest_mamba}
    networks = {name: model(args, name) for name in names}
    training, prompts = {name: {} for name in names}, {name: {} for name in names}
    for length in args.lengths:
        tokens = torch.randint(args.vocab_size, (args.batch_size, length), device=args.device)
        here = [name for name in names if length <= longest.get(name, length)]
        for make, figures in ((training_step, training), (prefill, prompts)):
            calls = {name: make(networks[name], tokens) for name in here}
            for name, seconds in time_side_by_side(calls, args.device, args.rounds, args.limit).items():
                figures[name][length] = seconds * 1e3
        print(f"{length:,} tokens done", flush=True)
    panels = {"training step": (training, "milliseconds"), "prefill": (prompts, "milliseconds")}
    ratios = {
        title: {n: figures["softmax (SDPA)"][n] / figures["GMA"][n] for n in args.lengths}
        for title, (figures, _) in panels.items()
    }
    parameters = {name: network.num_parameters() for name, network in networks.items()}
    report = {"machine": machine(args.device), "arguments": asdict(args), "parameters": parameters, "ratios": ratios}
    report |= {title: figures for title, (figures, _) in panels.items()}
    save(Path(args.output_dir), f"model_{args.device}", report, panels)
    print(f"\n{parameters}\n\nThe softmax model's time over the GMA model's:")
    for title, row in ratios.items():
        print(f"{title:>20}: " + ", ".join(f"{n:,}: {value:.2f}" for n, value in row.items()))


if __name__ == "__main__":
    run(main)
