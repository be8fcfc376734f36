"""
Compare token mixers under one budget: the same data, tokens, schedule and network, the learning rate of each mixer
chosen on the same grid, several seeds. Writes a table with mean and spread, and learning curves.

WikiText-2 through a BPE of 8,000 (what was run of it: recipes/RESULTS.md), IMDB as bytes, ListOps:

    python recipes/compare.py --config recipes/configs/compare-wikitext2.yaml
    python recipes/compare.py --config recipes/configs/compare-imdb-bytes.yaml
    python recipes/compare.py --config recipes/configs/compare-listops.yaml

Small ones in a minute, on the text sample of the tests, and on ListOps:

    python recipes/compare.py --quick True --output_dir runs/compare-quick
    python recipes/compare.py --quick True --task classification --output_dir runs/compare-quick-listops

Each run is kept as a JSON file in the output folder: a comparison that is interrupted goes on with the next run, and
one with more mixers, seeds, rates or steps runs only those. Another network, batch or text needs another folder.
"""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from arguments import ModelArguments, RunArguments, parse
from baselines import MIXERS, build
from classify import ClassificationArguments
from compare_tasks import TASKS, Task
from matplotlib.figure import Figure
from memory import PeakMemory
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed


SAMPLE = str(Path(__file__).parents[1] / "tests" / "data" / "shakespeare.txt")


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    output_dir: str = field(metadata={"help": "Where runs, table and plot go."})
    task: str = field(default="causal_lm", metadata={"help": "causal_lm or classification."})
    mixers: list[str] | None = field(
        default=None, metadata={"help": "Of recipes/baselines.py, or mamba (causal_lm); all by default."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of weights and order."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 2e-3, 4e-3], metadata={"help": "Grid; the best with the first seed is taken."}
    )
    max_steps: int = field(default=800, metadata={"help": "Training steps of each run."})
    tuning_steps: int = field(
        default=200, metadata={"help": "Training steps of each run that chooses a learning rate."}
    )
    batch_size: int = field(default=2, metadata={"help": "Blocks or texts per step."})
    evaluation_examples: int = field(
        default=256, metadata={"help": "Blocks or texts of the validation split, from its beginning."}
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of the network."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Layers of the network."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of a layer."})
    num_components: int = field(default=64, metadata={"help": "K of GMA, and random features of Performer."})
    quick: bool = field(default=False, metadata={"help": "A small network, few steps, the text sample of the tests."})

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, but it is {self.task!r}.")
        # An encoder has no forget gate, and Mamba is causal
        known = [*MIXERS, "mamba"] if self.task == "causal_lm" else [name for name in MIXERS if "gate" not in name]
        self.mixers = known if self.mixers is None else self.mixers
        for mixer in self.mixers:
            if mixer not in known:
                raise ValueError(f"`mixers` must be of {', '.join(known)}, but one is {mixer!r}.")


QUICK = {"max_steps": 10, "tuning_steps": 4, "batch_size": 2, "hidden_size": 32, "num_hidden_layers": 4}
QUICK |= {"num_attention_heads": 2, "num_components": 16, "seeds": [0, 1], "learning_rates": [1e-3, 4e-3]}
QUICK |= {"evaluation_examples": 64}
QUICK_DATA = {
    "causal_lm": {"train_file": [SAMPLE], "block_size": 64},
    "classification": {
        "listops": [4, 40],
        "train_examples": 64,
        "validation_examples": 32,
        "test_examples": 1,
        "max_length": 41,
    },
}


@dataclass
class Run:
    """One training."""

    mixer: str
    learning_rate: float
    seed: int
    steps: int

    def train(self, args: CompareArguments, task: Task) -> dict:
        """Its figures, from the file of an earlier time if there is one (see `check_settings`)."""
        name = f"{self.mixer}-{self.learning_rate}-{self.seed}-{self.steps}".replace(" ", "").replace(",", "-")
        path = Path(args.output_dir) / "runs" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        set_seed(self.seed)
        model = self.model(args, task)
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
            prediction_loss_only=task.metrics is None,
            disable_tqdm=True,
            dataloader_pin_memory=False,  # which warns where there is no GPU
        )
        trainer = Trainer(
            model=model,
            args=training,
            train_dataset=task.train,
            eval_dataset=task.evaluation,
            data_collator=task.collator,
            compute_metrics=task.metrics,
        )
        with PeakMemory() as memory:
            start = time.perf_counter()
            trainer.train()
            figures = asdict(self) | {"seconds": time.perf_counter() - start}
        figures["mebibytes"] = memory.mebibytes
        figures["curve"] = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
        evaluation = trainer.evaluate()
        figures |= {name: evaluation[f"eval_{name}"] for name in ("loss", "accuracy") if f"eval_{name}" in evaluation}
        figures["parameters"] = model.num_parameters()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"{self.mixer}, learning rate {self.learning_rate}, seed {self.seed}: {figures['loss']:.4f}", flush=True)
        return json.loads(path.read_text())

    def model(self, args: CompareArguments, task: Task) -> PreTrainedModel:
        """The network with this mixer, without dropout."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_components")
        fields = {name: getattr(args, name) for name in names} | {"hidden_act": "gelu_new"}
        fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return build(task.head, self.mixer, fields | task.fields)


def check_settings(args: CompareArguments, *others: ModelArguments | ClassificationArguments) -> None:
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


def compare(args: CompareArguments, task: Task) -> dict[str, list[dict]]:
    """The runs of each mixer at its best learning rate, by mixer."""
    results = {}
    for mixer in args.mixers:
        best = args.learning_rates[0]
        if len(args.learning_rates) > 1:
            tuning = [Run(mixer, rate, args.seeds[0], args.tuning_steps) for rate in args.learning_rates]
            losses = [run.train(args, task)["loss"] for run in tuning]
            best = args.learning_rates[losses.index(min(losses))]
        results[mixer] = [Run(mixer, best, seed, args.max_steps).train(args, task) for seed in args.seeds]
    return results


def table(results: dict[str, list[dict]]) -> str:
    """In Markdown, best first: perplexity or accuracy as mean and standard deviation over the seeds."""
    is_classification = "accuracy" in next(iter(results.values()))[0]
    score = "accuracy, %" if is_classification else "perplexity"
    lines = [
        f"| mixer | {score} | seeds | loss | learning rate | parameters | seconds per run | MiB at the peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    means = {mixer: statistics.mean(run["loss"] for run in runs) for mixer, runs in results.items()}
    scores_of = {
        mixer: [100 * run["accuracy"] if is_classification else math.exp(run["loss"]) for run in runs]
        for mixer, runs in results.items()
    }
    ranked = sorted(scores_of, key=lambda mixer: statistics.mean(scores_of[mixer]), reverse=is_classification)
    for mixer in ranked:
        runs, scores = results[mixer], scores_of[mixer]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(runs) > 1 else ""
        seconds, memory = (statistics.mean(run[name] for run in runs) for name in ("seconds", "mebibytes"))
        lines.append(
            f"| {mixer} | {statistics.mean(scores):.2f}{spread} | {len(runs)} | {means[mixer]:.4f} | "
            f"{runs[0]['learning_rate']:g} | {runs[0]['parameters']:,} | {seconds:.0f} | {memory:.0f} |"
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
    axis.set(xlabel="training steps", ylabel="training loss (nats)")
    axis.legend(fontsize=8)
    return plot


def main(arguments: list[str] | None = None) -> dict[str, list[dict]]:
    """Runs what has not been run, writes table.md, results.json and curves.png."""
    kinds = (CompareArguments, ModelArguments, ClassificationArguments, RunArguments)
    args, model_args, data_args, _ = parse(kinds, arguments)
    if args.quick:
        model_args.train_tokenizer = 300
        for target, values in ((args, QUICK), (data_args, QUICK_DATA[args.task])):
            for name, value in values.items():
                setattr(target, name, value)
    task = TASKS[args.task](model_args, data_args, args.evaluation_examples)
    check_settings(args, model_args, data_args)
    results = compare(args, task)
    output = Path(args.output_dir)
    (output / "table.md").write_text(table(results) + "\n")
    (output / "results.json").write_text(json.dumps({"arguments": asdict(args), "runs": results}, indent=1) + "\n")
    draw(results).savefig(output / "curves.png", dpi=110)
    print(table(results))
    return results


if __name__ == "__main__":
    main()
