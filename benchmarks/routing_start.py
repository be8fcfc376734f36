"""
How the routing starts decides what it learns. This trains the same small model briefly from several starts, and prints
for each the validation loss (nats per token), the mean entropy of the responsibilities (at most log K) before and
after, and how many components are in use after (exponential of the entropy of their mean mass, at most K):

    python -m benchmarks.routing_start --train_file ../shared/data/tinyshakespeare/input.txt --train_tokenizer 257 \
        --output_dir runs/routing_start --max_steps 200 --per_device_train_batch_size 4 --learning_rate 2e-3 \
        --warmup_steps 20 --lr_scheduler_type cosine --weight_decay 0.1 --seed 0 --report_to none --save_strategy no

`docs/results/tried.md` keeps what came out, `results/trainings/routing_start.json` its figures.
"""

import json
import math
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments, default_data_collator, set_seed

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.recipes.arguments import TokenizerArguments, parse
from gma_hf.recipes.running import run
from gma_hf.recipes.texts import DataArguments, load_text, make_blocks
from gma_hf.recipes.tokenizing import load_tokenizer


MODEL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_dropout_prob": 0.0}
ADDITIONS = {"conv_kernel_size": 4, "forget_gate": True}
STARTS = {
    "softmax": {"layer_types": ["full_attention"] * 4},
    "GMA, temperature 0.1": {"routing_temperature": 0.1},
    "GMA, temperature 0.2": {},
    "GMA, temperature 0.5": {"routing_temperature": 0.5},
    "GMA, temperature 1.0": {"routing_temperature": 1.0},
    "GMA, normalised, 0.2": {"normalize_routing": True},
    "GMA + conv + gate, 0.1": {**ADDITIONS, "routing_temperature": 0.1},
    "GMA + conv + gate, 0.2": ADDITIONS,
    "GMA + conv + gate, normalised, 0.2": {**ADDITIONS, "normalize_routing": True},
    "GMA + conv + gate, normalised, 0.5": {**ADDITIONS, "normalize_routing": True, "routing_temperature": 0.5},
    "GMA + conv + gate, normalised, 0.2, no positions": {
        **ADDITIONS,
        "normalize_routing": True,
        "position_embedding": "none",
    },
}


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats over the last axis."""
    return torch.special.entr(probabilities).sum(dim=-1)


@torch.no_grad()
def routing_figures(model: GMAForCausalLM, input_ids: torch.Tensor) -> tuple[float, float]:
    """Return the mean entropy of the responsibilities of queries and keys, and the number of components in use."""
    output = model.eval()(input_ids.to(model.device), use_cache=False, output_responsibilities=True)
    gammas = [side for layer in output.responsibilities for side in layer]
    if not gammas:
        return float("nan"), float("nan")
    gamma = torch.stack(gammas)  # [sides of layers, batch, heads, N, K]
    return entropy(gamma).mean().item(), entropy(gamma.mean(dim=(1, 3))).exp().mean().item()


def main(arguments: list[str] | None = None) -> None:
    """Train from every start and write the table."""
    kinds = (TokenizerArguments, DataArguments, TrainingArguments)
    tokenizer_args, data_args, training_args = parse(kinds, arguments)
    training_args.prediction_loss_only = True
    texts = load_text(data_args)
    tokenizer = load_tokenizer(tokenizer_args, texts["train"], data_args.text_column)
    blocks = make_blocks(texts, data_args.text_column, tokenizer, data_args.block_size)
    sample = torch.tensor(blocks["validation"][:8]["input_ids"])

    rows = {}
    for name, choices in STARTS.items():
        set_seed(training_args.seed)
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": data_args.block_size}
        model = GMAForCausalLM(GMAConfig.gpt2_style(**MODEL, **sizes, **choices))
        before, _ = routing_figures(model, sample)
        trainer = Trainer(
            model=model,
            args=training_args,
            train_dataset=blocks["train"],
            eval_dataset=blocks["validation"],
            data_collator=default_data_collator,
        )
        trainer.train()
        after, in_use = routing_figures(model, sample)
        loss = trainer.evaluate()["eval_loss"]
        rows[name] = {"loss": loss}
        if not math.isnan(before):
            rows[name] |= {"entropy_before": before, "entropy_after": after, "components_in_use": in_use}
        print(f"| {name} | {loss:.3f} | {before:.2f} | {after:.2f} | {in_use:.1f} |", flush=True)
    folder = Path(training_args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run(main)
