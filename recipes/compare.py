"""
Compare token mixers under one budget: the same text, tokens, schedule and network, the learning rate of each mixer
chosen on the same grid, several seeds. Writes a table with mean and spread, and learning curves.

WikiText-2 through a BPE of 8,000:

    python recipes/compare.py --train_file ../shared/data/wikitext-2/train.txt --train_tokenizer 8000 \
        --validation_file ../shared/data/wikitext-2/valid.txt --output_dir runs/compare-wikitext2

A small one in a minute, on the text sample of the tests:

    python recipes/compare.py --quick True --output_dir runs/compare-quick

Each run is kept as a JSON file in the output folder: a comparison that is interrupted goes on with the next run, and
one with more mixers, seeds, rates or steps runs only those. Another network, batch or text needs another folder.
"""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from baselines import MIXERS, build
from datasets import DatasetDict
from matplotlib.figure import Figure
from train_clm import DataArguments, ModelArguments, load_text, load_tokenizer, make_blocks
from transformers import (
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from gma_hf import GMAForCausalLM


SAMPLE = str(Path(__file__).parents[1] / "tests" / "data" / "shakespeare.txt")


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    output_dir: str = field(metadata={"help": "Where runs, table and plot go."})
    mixers: list[str] = field(
        default_factory=lambda: [*MIXERS, "mamba"], metadata={"help": "Of recipes/baselines.py, or mamba."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of weights and order."})
    learning_rates: list[float] = field(
        default_factory=lambda: [2e-3, 4e-3, 8e-3], metadata={"help": "Grid; the best with the first seed is taken."}
    )
    max_steps: int = field(default=400, metadata={"help": "Training steps of each run."})
    tuning_steps: int = field(
        default=100, metadata={"help": "Training steps of each run that chooses a learning rate."}
    )
    batch_size: int = field(default=4, metadata={"help": "Blocks per step."})
    validation_blocks: int = field(
        default=256, metadata={"help": "Blocks of the validation text, from its beginning."}
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of the network."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Layers of the network."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of a layer."})
    num_components: int = field(default=64, metadata={"help": "K of GMA, and random features of Performer."})
    quick: bool = field(default=False, metadata={"help": "A small network, few steps, the text sample of the tests."})


QUICK = {"max_steps": 10, "tuning_steps": 4, "batch_size": 2, "hidden_size": 32, "num_hidden_layers": 4}
QUICK |= {"num_attention_heads": 2, "num_components": 16, "seeds": [0, 1], "learning_rates": [1e-3, 4e-3]}


@dataclass
class Run:
    """One training."""

    mixer: str
    learning_rate: float
    seed: int
    steps: int

    def train(
        self, args: CompareArguments, block_size: int, blocks: DatasetDict, tokenizer: PreTrainedTokenizerBase
    ) -> dict:
        """Its figures, from the file of an earlier time if there is one (see `check_settings`)."""
        name = f"{self.mixer}-{self.learning_rate}-{self.seed}-{self.steps}".replace(" ", "")
        path = Path(args.output_dir) / "runs" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        set_seed(self.seed)
        fields = {name: getattr(args, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        fields |= {"num_components": args.num_components, "vocab_size": len(tokenizer), "hidden_act": "gelu_new"}
        fields |= {
            "max_position_embeddings": block_size,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        model = build(GMAForCausalLM, self.mixer, fields)
        training = TrainingArguments(
            output_dir=str(path.parent / name),
            max_steps=self.steps,
            learning_rate=self.learning_rate,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=16,
            lr_scheduler_type="cosine",
            warmup_steps=self.steps // 10,
            weight_decay=0.1,
            adam_beta2=0.99,
            seed=self.seed,
            save_strategy="no",
            logging_steps=max(1, self.steps // 20),
            report_to="none",
            prediction_loss_only=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,  # which warns where there is no GPU
        )
        trainer = Trainer(
            model=model,
            args=training,
            train_dataset=blocks["train"],
            eval_dataset=blocks["validation"].take(min(args.validation_blocks, len(blocks["validation"]))),
            data_collator=default_data_collator,
        )
        start = time.perf_counter()
        trainer.train()
        figures = asdict(self) | {"seconds": time.perf_counter() - start}
        figures["curve"] = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
        figures["loss"] = trainer.evaluate()["eval_loss"]
        figures["parameters"] = model.num_parameters()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"{self.mixer}, learning rate {self.learning_rate}, seed {self.seed}: {figures['loss']:.4f}", flush=True)
        return json.loads(path.read_text())


def check_settings(args: CompareArguments, *others: ModelArguments | DataArguments) -> None:
    """
    Keeps what all runs have in common beside them.

    Raises:
        ValueError: if the runs in the folder were made with other settings.
    """
    of_a_run = ("output_dir", "mixers", "seeds", "learning_rates", "max_steps", "tuning_steps", "quick")
    settings = {name: value for name, value in asdict(args).items() if name not in of_a_run}
    for other in others:
        settings |= asdict(other)
    path = Path(args.output_dir) / "settings.json"
    before = json.loads(path.read_text()) if path.exists() else settings
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"`{name}` must be as in the other runs in {args.output_dir!r}, {before.get(name)!r}, but it is "
                f"{value!r}."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def compare(args: CompareArguments, block_size: int, blocks: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The runs of each mixer at its best learning rate, by mixer."""
    results = {}
    for mixer in args.mixers:
        tuning = [Run(mixer, rate, args.seeds[0], args.tuning_steps) for rate in args.learning_rates]
        losses = [run.train(args, block_size, blocks, tokenizer)["loss"] for run in tuning]
        best = tuning[losses.index(min(losses))].learning_rate
        runs = [Run(mixer, best, seed, args.max_steps) for seed in args.seeds]
        results[mixer] = [run.train(args, block_size, blocks, tokenizer) for run in runs]
    return results


def table(results: dict[str, list[dict]]) -> str:
    """In Markdown: perplexity as mean and standard deviation over the seeds, best first."""
    lines = [
        "| mixer | perplexity | loss | learning rate | parameters | seconds per run |",
        "|---|---|---|---|---|---|",
    ]
    for mixer, runs in sorted(results.items(), key=lambda item: statistics.mean(run["loss"] for run in item[1])):
        perplexities = [math.exp(run["loss"]) for run in runs]
        spread = f" ± {statistics.stdev(perplexities):.2f}" if len(runs) > 1 else ""
        loss, seconds = (statistics.mean(run[name] for run in runs) for name in ("loss", "seconds"))
        lines.append(
            f"| {mixer} | {statistics.mean(perplexities):.2f}{spread} | {loss:.4f} | {runs[0]['learning_rate']:g} | "
            f"{runs[0]['parameters']:,} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, list[dict]]) -> Figure:
    """Training loss by step, mean over the seeds."""
    plot = Figure(figsize=(7, 5), layout="constrained")
    axis = plot.subplots()
    for mixer, runs in results.items():
        steps = [step for step, _ in runs[0]["curve"]]
        means = [statistics.mean(values) for values in zip(*([loss for _, loss in run["curve"]] for run in runs))]
        axis.plot(steps, means, marker="o", markersize=3, label=mixer)
    axis.set(xlabel="training steps", ylabel="training loss (nats per token)")
    axis.legend(fontsize=8)
    return plot


def main(arguments: list[str] | None = None) -> dict[str, list[dict]]:
    """Runs what has not been run, writes table.md, results.json and curves.png."""
    parser = HfArgumentParser((CompareArguments, ModelArguments, DataArguments))
    args, model_args, data_args = parser.parse_args_into_dataclasses(arguments)
    if args.quick:
        for name, value in QUICK.items():
            setattr(args, name, value)
        data_args.train_file, data_args.block_size, model_args.train_tokenizer = [SAMPLE], 64, 300
    texts = load_text(data_args)
    tokenizer = load_tokenizer(model_args, texts["train"], data_args.text_column)
    blocks = make_blocks(texts, data_args.text_column, tokenizer, data_args.block_size)
    check_settings(args, model_args, data_args)
    results = compare(args, data_args.block_size, blocks, tokenizer)
    output = Path(args.output_dir)
    (output / "table.md").write_text(table(results) + "\n")
    (output / "results.json").write_text(json.dumps({"arguments": asdict(args), "runs": results}, indent=1) + "\n")
    draw(results).savefig(output / "curves.png", dpi=110)
    print(table(results))
    return results


if __name__ == "__main__":
    main()
