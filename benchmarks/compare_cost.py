"""
What a training step of each mixer takes, in time and in memory, on the machine at hand: for the tables of `compare`,
and by itself, with ratios, in the network of `compare-wikitext2` or another:

    python -m benchmarks.compare_cost --batch_size 2 --length 256 --steps 100
    python -m benchmarks.compare_cost --batch_size 1 --length 2048 --steps 30

On a machine that others use too, `--clock process` counts the time of the CPU and not that of waiting for it; it is
the time of a step only with one thread.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedModel

from gma_hf import GMAForCausalLM
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .baselines import MIXERS, build
from .harness import machine
from .mamba_scan import fast_scan
from .memory import PeakMemory


Costs = dict[str, dict[str, float]]  # of each mixer: "milliseconds" and "mebibytes" of a step
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


@dataclass
class Network:
    """Sizes of the network, as of `GMAConfig`."""

    vocab_size: int = field(default=8000, metadata={"help": "Vocabulary."})
    hidden_size: int = field(default=128, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of a layer."})
    num_components: int = field(default=64, metadata={"help": "K of GMA."})


@dataclass
class CostArguments:
    """What is measured, and how often."""

    mixers: list[str] = field(
        default_factory=lambda: ["linear + conv + gates, no positions", "gma, recommended"],
        metadata={"help": f"Of {', '.join(map(repr, MIXERS))}; the others are divided by the first."},
    )
    batch_size: int = field(default=2, metadata={"help": "Rows of a step."})
    length: int = field(default=256, metadata={"help": "Tokens of a row."})
    steps: int = field(default=100, metadata={"help": "Steps of each mixer, in turns."})
    clock: Literal["wall", "process"] = field(default="wall", metadata={"help": "Which time counts."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})


class TrainingStep:
    """Forward, backward and optimizer of a model, as a call with a batch."""

    def __init__(self, model: PreTrainedModel):
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.model = model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


@fast_scan()
def measure(
    models: dict[str, PreTrainedModel],
    batches: list[dict[str, torch.Tensor]],
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """
    Return the median time of a step, the models in turns with each batch, so that whatever else the machine does falls
    on all of them; and the peak of memory above what model and optimizer have.

    Args:
        models: by the name of the mixer.
        batches: of one training step each.
        clock: returns the seconds of which a difference is the time of a step.
    """
    steps = {mixer: TrainingStep(model) for mixer, model in models.items()}
    seconds, memory = {mixer: [] for mixer in models}, {}
    for step in steps.values():  # makes the states of the optimizer, and whatever is made once
        step(batches[0])
    for mixer, step in steps.items():
        with PeakMemory() as peak:
            step(batches[0])
        memory[mixer] = peak.mebibytes
    for batch in batches:
        for mixer, step in steps.items():
            start = clock()
            step(batch)
            seconds[mixer].append(clock() - start)
    return {
        mixer: {"milliseconds": 1000 * statistics.median(seconds[mixer]), "mebibytes": memory[mixer]}
        for mixer in models
    }


def main(arguments: list[str] | None = None) -> Costs:
    """Measure and print."""
    args, network = parse((CostArguments, Network), arguments)
    torch.manual_seed(args.seed)
    fields = asdict(network) | {"hidden_act": "gelu_new", "max_position_embeddings": max(1024, args.length)}
    fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    models = {mixer: build(GMAForCausalLM, mixer, fields) for mixer in args.mixers}
    size = (args.batch_size, args.length)
    tokens = [torch.randint(network.vocab_size, size) for _ in range(args.steps)]
    costs = measure(models, [{"input_ids": x, "labels": x} for x in tokens], CLOCKS[args.clock])
    device = torch.accelerator.current_accelerator(check_available=True)
    print(f"{machine('cpu' if device is None else device.type)}; {size[0]} x {size[1]} tokens, {args.clock} time")
    first = costs[args.mixers[0]]
    for mixer, cost in costs.items():
        ratios = ", ".join(f"{cost[name]:.1f} {name} ({cost[name] / first[name]:.3f})" for name in cost)
        print(f"{mixer:>40}: {ratios}")
    return costs


if __name__ == "__main__":
    run(main)
