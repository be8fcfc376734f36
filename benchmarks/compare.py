"""
Compare token mixers under one budget: the same data, tokens, schedule and network, the learning rate of each mixer
chosen on the same grid, several seeds. Writes a table with mean and spread, and a plot.

WikiText-2 through a BPE of 8,000 (what was run of it: docs/results/quality.md), IMDB as bytes, ListOps:

    python -m benchmarks.compare --config compare-wikitext2
    python -m benchmarks.compare --config compare-imdb-bytes
    python -m benchmarks.compare --config compare-listops

IMDB a second time, as causal networks that learn the next byte first, each with its own mixer:

    python -m benchmarks.compare --config compare-imdb-bytes-pretrained

WikiText-2 for longer; and beside the checkpoints `gma-shakespeare` and `gma-imdb-bytes`, with their training:

    python -m benchmarks.compare --config compare-wikitext2-long
    python -m benchmarks.compare --config compare-shakespeare
    python -m benchmarks.compare --config compare-imdb-bytes-long

`--quick True` makes any of them small (network, steps, seeds), in `NAME-quick` beside the folder of the whole one.
Without data, on the text sample of the tests, and on ListOps, in a minute or two each:

    python -m benchmarks.compare --quick True --output_dir runs/compare-quick
    python -m benchmarks.compare --quick True --task classification --output_dir runs/compare-quick-listops
    python -m benchmarks.compare --quick True --task pretrained_classification \
        --output_dir runs/compare-quick-pretrained

Each run is kept as a JSON file in the output folder: a comparison that is interrupted goes on with the next run, and
one with more mixers, seeds, rates or steps runs only those. The table has the runs of `max_steps` steps in the folder,
of each mixer those at its best rate. Another network, batch or text needs another folder. Where a network learns the
next token first, the rate of that is the same for all. Time and memory in the table are those of a few training steps
of all mixers in turns, anew each time the table is written.
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from gma_hf.files import whole_file
from gma_hf.recipes.arguments import RunArguments, TokenizerArguments, as_on_command_line, parse
from gma_hf.recipes.classify import ClassificationArguments
from gma_hf.recipes.running import run

from .baselines import MIXERS, build
from .compare_cost import Costs, measure
from .compare_results import Results, finished, write
from .compare_tasks import TASKS, Task
from .mamba_scan import fast_scan


CONFIGS = Path(__file__).parent / "configs"
COST_STEPS = 12
SAMPLE = str(Path(__file__).parents[1] / "tests" / "data" / "shakespeare.txt")


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    output_dir: str = field(metadata={"help": "Where runs, table and plot go."})
    task: str = field(default="causal_lm", metadata={"help": f"One of {', '.join(TASKS)}."})
    mixers: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Of {', '.join(map(repr, MIXERS))}; for causal_lm 'mamba'; in quotes. All that the task admits."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of weights and order."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 2e-3, 4e-3], metadata={"help": "Grid; the best with the first seed is taken."}
    )
    max_steps: int = field(default=800, metadata={"help": "Training steps of each run."})
    pretraining_steps: int = field(
        default=1000, metadata={"help": "Steps on the next token before those, for pretrained_classification."}
    )
    pretraining_batch_size: int = field(default=8, metadata={"help": "Blocks per step of those."})
    pretraining_learning_rate: float = field(default=4e-3, metadata={"help": "Of those, for all mixers."})
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
    conv_kernel_size: int = field(
        default=4, metadata={"help": "Taps of the convolution of causal mixers that have one, but Mamba."}
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={"help": "As of TrainingArguments, for all trainings: 'group_by_length' pads texts less."},
    )
    report_to: str = field(default="none", metadata={"help": "Tracker that the learning curves go to as well."})
    quick: bool = field(default=False, metadata={"help": "A small network and few steps, where nothing else is said."})

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, but it is {self.task!r}.")
        known = list(MIXERS)
        if self.task == "causal_lm":
            known.append("mamba")
        if self.task == "classification":
            known = [name for name in MIXERS if MIXERS[name].suits_encoders]
        self.mixers = known if self.mixers is None else self.mixers
        for mixer in self.mixers:
            if mixer not in known:
                raise ValueError(f"`mixers` must be of {', '.join(map(repr, known))}, but one is {mixer!r}.")

    @property
    def runs(self) -> Path:
        """Return the folder of the runs."""
        return Path(self.output_dir) / "runs"


QUICK = {"max_steps": 10, "tuning_steps": 4, "batch_size": 2, "hidden_size": 32, "num_hidden_layers": 4}
QUICK |= {"num_attention_heads": 2, "num_components": 16, "seeds": [0, 1], "learning_rates": [1e-3, 4e-3]}
QUICK |= {"evaluation_examples": 64, "pretraining_steps": 10, "pretraining_batch_size": 2}
QUICK_LISTOPS = {"listops": [4, 40], "train_examples": 64, "validation_examples": 32, "test_examples": 1}
QUICK_LISTOPS |= {"max_length": 41, "block_size": 32}
QUICK_DATA = {
    "causal_lm": {"train_file": [SAMPLE], "block_size": 64, "train_tokenizer": 300},
    "classification": QUICK_LISTOPS,
    "pretrained_classification": QUICK_LISTOPS,
}


@dataclass
class Run:
    """One training."""

    mixer: str
    learning_rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Return the name of the run's file."""
        return f"{self.mixer}-{self.learning_rate}-{self.seed}-{self.steps}".replace(" ", "").replace(",", "-")

    def train(self, args: CompareArguments, task: Task) -> dict:
        """Return the figures of the run, from the file of an earlier time if there is one (see `check_settings`)."""
        path = args.runs / f"{self.name}.json"
        if path.exists():
            return json.loads(path.read_text())
        set_seed(self.seed)
        start = time.perf_counter()
        model = network(self.mixer, args, task)
        if task.before is not None:
            language_model = network(self.mixer, args, task.before)
            how = (args.pretraining_steps, args.pretraining_batch_size, args.pretraining_learning_rate)
            self.trainer(language_model, args, task.before, *how).train()
            model.base_model.load_state_dict(language_model.base_model.state_dict())
        trainer = self.trainer(model, args, task, self.steps, args.batch_size, self.learning_rate)
        trainer.train()
        figures = asdict(self) | {"seconds": time.perf_counter() - start}
        figures["curve"] = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
        evaluation = trainer.evaluate()
        figures |= {name: evaluation[f"eval_{name}"] for name in ("loss", "accuracy") if f"eval_{name}" in evaluation}
        figures["parameters"] = model.num_parameters()
        args.runs.mkdir(exist_ok=True)
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"{self.mixer}, learning rate {self.learning_rate}, seed {self.seed}: {figures['loss']:.4f}", flush=True)
        return json.loads(path.read_text())

    def trainer(
        self,
        model: PreTrainedModel,
        args: CompareArguments,
        task: Task,
        steps: int,
        batch_size: int,
        learning_rate: float,
    ) -> Trainer:
        """Return a trainer for so many steps of this task."""
        training = TrainingArguments(
            output_dir=str(Path(args.output_dir) / "trainer"),
            run_name=self.name,
            max_steps=steps,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=16,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 10,
            weight_decay=0.1,
            adam_beta2=0.99,
            train_sampling_strategy=args.train_sampling_strategy,
            seed=self.seed,
            save_strategy="no",
            logging_steps=max(1, steps // 20),
            report_to=args.report_to,
            prediction_loss_only=task.metrics is None,
            disable_tqdm=True,
            dataloader_pin_memory=False,  # which warns where there is no GPU
        )
        return Trainer(
            model=model,
            args=training,
            train_dataset=task.train,
            eval_dataset=task.evaluation,
            data_collator=task.collator,
            compute_metrics=task.metrics,
        )


def network(mixer: str, args: CompareArguments, task: Task) -> PreTrainedModel:
    """Return a network with this mixer, without dropout."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_components")
    fields = {name: getattr(args, name) for name in names} | {"hidden_act": "gelu_new"}
    fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return build(task.head, mixer, fields | task.fields, args.conv_kernel_size)


def costs(mixers: Iterable[str], args: CompareArguments, task: Task) -> Costs:
    """Return what a training step takes, by the first `COST_STEPS` batches."""
    batches = list(islice(DataLoader(task.train, args.batch_size, collate_fn=task.collator), COST_STEPS))
    return measure({mixer: network(mixer, args, task) for mixer in mixers}, batches)


def check_settings(args: CompareArguments, *others: TokenizerArguments | ClassificationArguments) -> None:
    """
    Keep what all runs have in common beside them.

    Raises:
        ValueError: if the runs in the folder were made with other settings.
    """
    of_a_run = ("output_dir", "mixers", "seeds", "learning_rates", "max_steps", "tuning_steps", "quick", "report_to")
    settings = {name: value for name, value in asdict(args).items() if name not in of_a_run}
    for other in others:
        settings |= asdict(other)
    path = Path(args.output_dir) / "settings.json"
    # Runs that were made before there was a setting had its default
    before = {setting.name: setting.default for kind in (args, *others) for setting in fields(kind)}
    before |= json.loads(path.read_text()) if path.exists() else settings
    for name, value in settings.items():
        if before[name] != value:
            raise ValueError(
                f"`{name}` must be as in the other runs in {args.output_dir!r}, {before[name]!r}, but it is {value!r}."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


@fast_scan()
def train_all(args: CompareArguments, task: Task) -> None:
    """Train each mixer at each rate for the steps of the tuning, then with each seed at the rate that was best."""
    for mixer in args.mixers:
        best = args.learning_rates[0]
        if len(args.learning_rates) > 1:
            tuning = [Run(mixer, rate, args.seeds[0], args.tuning_steps) for rate in args.learning_rates]
            losses = [run.train(args, task)["loss"] for run in tuning]
            best = args.learning_rates[losses.index(min(losses))]
        for seed in args.seeds:
            Run(mixer, best, seed, args.max_steps).train(args, task)


def parsed(arguments: list[str]) -> tuple[CompareArguments, TokenizerArguments, ClassificationArguments]:
    """Return the arguments; what `quick` says comes before those on the command line and after those of a file."""
    kinds = (CompareArguments, TokenizerArguments, ClassificationArguments, RunArguments)
    args, tokenizer_args, data_args, _ = parse(kinds, arguments, CONFIGS)
    if args.quick:
        has_data = any((data_args.dataset_name, data_args.train_file, data_args.listops))
        preset = QUICK | ({} if has_data else QUICK_DATA[args.task])
        preset = as_on_command_line(preset | {"output_dir": f"{args.output_dir}-quick"})  # another one may be told
        args, tokenizer_args, data_args, _ = parse(kinds, [*preset, *arguments], CONFIGS)
    return args, tokenizer_args, data_args


def main(arguments: list[str] | None = None) -> Results:
    """Run what has not been run; table and plot are of all that the folder holds."""
    args, tokenizer_args, data_args = parsed(sys.argv[1:] if arguments is None else arguments)
    task = TASKS[args.task](tokenizer_args, data_args, args.evaluation_examples)
    check_settings(args, tokenizer_args, data_args)
    train_all(args, task)
    results = finished(args.runs, args.max_steps, [*MIXERS, "mamba"])
    write(results, costs(results, args, task), Path(args.output_dir))
    return results


if __name__ == "__main__":
    run(main)
