"""
Associative recall of token mixers under one budget: networks of two layers that differ in the mixer alone, trained on
random key-value pairs that are asked for later (Arora et al., 2023, "Zoology"), or on a pair in a text (a needle). By
default 8 pairs in 64 tokens; with more of them, and longer rows:

    python -m benchmarks.recall
    python -m benchmarks.recall --pairs 4 8 16 --lengths 128 256 --learning_rates 1e-3 3e-3 1e-2 --seeds 0 1 2
    python -m benchmarks.recall --pairs 8 --lengths 64 --evaluate 8x128 8x256 8x512
    python -m benchmarks.recall --mixers gma-32 --fields '{"normalize_routing": true}' --mixture_rate 4
    python -m benchmarks.recall --task needle   # trained at 512 tokens, asked at 1,024 to 32,768

`--quick True` trains all mixers for a few steps, in `recall-quick` beside the folder of the whole one.

Each training is kept as a JSON file of its own in OUTPUT/runs and not repeated; several processes may work in one
folder, each on other mixers, pairs or lengths. Table, plot and JSON (`recall.*`) are of all that the folder holds.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from gma_hf.files import whole_file
from gma_hf.recipes.arguments import as_on_command_line, json_fields, parse
from gma_hf.recipes.running import run

from .harness import machine
from .mamba_scan import fast_scan
from .recall_contenders import CONTENDERS, config_of, network, state_size
from .recall_data import Needle, Recall
from .recall_results import write
from .recall_training import ask, train


ROOT = Path(__file__).parents[1]
SAMPLE = str(ROOT / "tests" / "data" / "shakespeare.txt")
TASKS = ("recall", "needle")
NEEDLE_LENGTHS = [2**power for power in range(10, 16)]
MOST_TOKENS, FEWEST_ROWS = 2**19, 32  # of an evaluation
QUICK = {"max_steps": 4, "warmup_steps": 1, "batch_size": 4, "evaluation_examples": 8, "pairs": [4], "lengths": [32]}
QUICK |= {"evaluate": ["2x48"], "output_dir": "benchmarks/results/recall-quick"}


@dataclass
class RecallArguments:
    """What is compared, and for how long."""

    output_dir: str = field(default="benchmarks/results/recall", metadata={"help": "Where runs, table and plot go."})
    task: str = field(default="recall", metadata={"help": f"One of {', '.join(TASKS)}."})
    mixers: list[str] | None = field(default=None, metadata={"help": f"Of {', '.join(CONTENDERS)}; all by default."})
    pairs: list[int] | None = field(
        default=None, metadata={"help": "Key-value pairs of a row; 8, or 1 needle. One training for each, and length."}
    )
    lengths: list[int] | None = field(default=None, metadata={"help": "Tokens of a row; 64, or 512 with a needle."})
    evaluate: list[str] | None = field(
        default=None,
        metadata={
            "help": "Where each network is asked too, as pairs and tokens: 8x256. A needle: 1,024 to 32,768 tokens."
        },
    )
    bound_again: float = field(
        default=0.0, metadata={"help": "Share of the keys that are bound again to another value, which counts."}
    )
    text_file: str = field(default=SAMPLE, metadata={"help": "Text that the needle is in."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of weights and batches."})
    learning_rates: list[float] = field(
        default_factory=lambda: [3e-3], metadata={"help": "Grid; the best with the first seed is taken."}
    )
    max_steps: int = field(default=1000, metadata={"help": "Training steps of each run."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps before the full rate."})
    batch_size: int = field(default=32, metadata={"help": "Rows per step."})
    evaluation_examples: int = field(
        default=256,
        metadata={"help": f"Rows that are asked; fewer where they are long, but {FEWEST_ROWS} at least of so many."},
    )
    fields: str = field(default="{}", metadata={"help": "JSON of fields of GMAConfig, for GMA alone."})
    mixture_rate: float = field(
        default=1.0,
        metadata={"help": "Times the rate that GMA's components learn at, without weight decay unless it is 1."},
    )
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch."})
    quick: bool = field(default=False, metadata={"help": "A few steps of all mixers, where nothing else is said."})

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, but it is {self.task!r}.")
        self.mixers = list(CONTENDERS) if self.mixers is None else self.mixers
        for mixer in self.mixers:
            if mixer not in CONTENDERS:
                raise ValueError(f"`mixers` must be of {', '.join(CONTENDERS)}, but one is {mixer!r}.")
        for name in ("max_steps", "batch_size", "evaluation_examples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but it is {getattr(self, name)}.")
        if self.mixture_rate <= 0:
            raise ValueError(f"`mixture_rate` must be greater than 0, but it is {self.mixture_rate}.")
        is_needle = self.task == "needle"
        self.pairs = self.pairs or [1 if is_needle else 8]
        self.lengths = self.lengths or [512 if is_needle else 64]
        if self.evaluate is None:
            self.evaluate = [f"{self.pairs[0]}x{length}" for length in NEEDLE_LENGTHS] if is_needle else []
        self.gma_fields = json_fields("fields", self.fields, self.fields)
        self.points = [point(text) for text in self.evaluate]
        self.trained = [(pairs, length) for length in self.lengths for pairs in self.pairs]

    @property
    def runs(self) -> Path:
        """Return the folder of the runs."""
        return Path(self.output_dir) / "runs"

    def source(self) -> Recall | Needle:
        """Return what makes the batches, after all pairs and lengths, and the fields of all mixers, were checked."""
        if not 0 <= self.warmup_steps <= self.max_steps:
            raise ValueError(
                f"`warmup_steps` must be from 0 to `max_steps`, {self.max_steps}, but it is {self.warmup_steps}."
            )
        task = Needle(self.text_file) if self.task == "needle" else Recall(bound_again=self.bound_again)
        for pairs, length in self.trained + self.points:
            task.check(pairs, length)
        for mixer in self.mixers:
            config_of(mixer, task.vocab_size, self.fields_of(mixer))
        return task

    def fields_of(self, mixer: str) -> dict:
        """Return the fields of GMAConfig that were given for this mixer."""
        return self.gma_fields if CONTENDERS[mixer].is_gma else {}


def point(text: str) -> tuple[int, int]:
    """Return pairs and tokens of a text such as 8x256."""
    pairs, _, length = text.partition("x")
    if not (pairs.isdecimal() and length.isdecimal()):
        raise ValueError(f"`evaluate` must hold pairs and tokens as in 8x256, but one is {text!r}.")
    return int(pairs), int(length)


@dataclass
class Run:
    """One training."""

    mixer: str
    pairs: int
    length: int
    learning_rate: float
    seed: int
    steps: int

    def settings(self, args: RecallArguments) -> dict:
        """Return what the arguments say about this run otherwise than by default."""
        names = ["task", "evaluate", "bound_again", "warmup_steps", "batch_size", "evaluation_examples", "text_file"]
        if CONTENDERS[self.mixer].is_gma:
            names.append("mixture_rate")
        usual = RecallArguments(task=args.task)
        values = {name: getattr(args, name) for name in names}
        values = {name: value for name, value in values.items() if value != getattr(usual, name)}
        if args.task != "recall":
            values["task"] = args.task
        if fields := args.fields_of(self.mixer):
            values["fields"] = fields
        return values

    def name(self, settings: dict) -> str:
        """Return the name of the run's file."""
        name = f"{self.mixer}-{self.pairs}x{self.length}-{self.learning_rate:g}-{self.seed}-{self.steps}"
        if settings:
            name += "-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return name

    def result(self, args: RecallArguments, task: Recall | Needle) -> dict:
        """Return the figures of the run, from the file of an earlier time if there is one."""
        settings = self.settings(args)
        path = args.runs / f"{self.name(settings)}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        torch.manual_seed(self.seed)
        model = network(self.mixer, task.vocab_size, args.fields_of(self.mixer))
        figures = asdict(self) | {"settings": settings, "state": state_size(model, self.length)}
        figures["parameters"] = model.num_parameters()
        figures |= train(
            model,
            task,
            self.pairs,
            self.length,
            batch_size=args.batch_size,
            learning_rate=self.learning_rate,
            mixture_rate=args.mixture_rate if CONTENDERS[self.mixer].is_gma else 1.0,
            warmup_steps=args.warmup_steps,
            max_steps=self.steps,
            seed=self.seed,
        )
        points = list(dict.fromkeys([(self.pairs, self.length), *args.points]))
        figures["evaluation"] = [ask(model, task, *at, rows(args.evaluation_examples, at[1])) for at in points]
        figures["accuracy"] = figures["evaluation"][0]["accuracy"]
        figures["machine"] = machine("cpu")
        args.runs.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"{path.stem}: {figures['accuracy']:.1%} right, {figures['seconds']:.0f} s", flush=True)
        return figures


def rows(examples: int, length: int) -> int:
    """Return the rows of that length that are asked, where `examples` short ones are."""
    return min(examples, max(FEWEST_ROWS, MOST_TOKENS // length))


def train_all(args: RecallArguments, task: Recall | Needle) -> None:
    """Train each mixer at each rate with the first seed, then with the other seeds at the rate that was best."""
    for pairs, length in args.trained:
        for mixer in args.mixers:
            first, *others = args.seeds
            tried = {
                rate: Run(mixer, pairs, length, rate, first, args.max_steps).result(args, task)["accuracy"]
                for rate in args.learning_rates
            }
            best = max(tried, key=tried.get)
            for seed in others:
                Run(mixer, pairs, length, best, seed, args.max_steps).result(args, task)


def parsed(arguments: list[str]) -> RecallArguments:
    """Return the arguments; what `quick` says comes before those on the command line."""
    (args,) = parse((RecallArguments,), arguments)
    if args.quick:
        (args,) = parse((RecallArguments,), [*as_on_command_line(QUICK), *arguments])
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run what has not been run; table and plot are of all that the folder holds."""
    args = parsed(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(args.threads)
    with fast_scan():
        train_all(args, args.source())
    write(Path(args.output_dir))


if __name__ == "__main__":
    run(main)
