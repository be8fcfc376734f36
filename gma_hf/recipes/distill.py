"""
Convert a GPT-2- or BERT-style checkpoint to GMA and distil it, in two stages (`gma_hf.conversion.distill`):

1. each GMA layer learns to give what the softmax layer in its place gave, all layers at once, the rest frozen;
2. the whole model learns what the source gives: the distribution over the next (causal) or the masked token, together
   with the task's own loss, or the embedding of a text and the hidden states of its tokens (encoders without a head;
   pooled as sentence-transformers' modules of the source say, else the mean over its tokens).

The model is measured against its source before, between and after; table and plot go into its card.

    python -m gma_hf.recipes.distill --source runs/gpt2-wikitext2 --output_dir runs/gma-from-gpt2 \
        --train_file ../shared/data/wikitext-2/train.txt --validation_file ../shared/data/wikitext-2/valid.txt \
        --stage1_steps 100 --max_steps 140 --per_device_train_batch_size 8 --learning_rate 1e-3

With `--max_position_embeddings` above the source's, the model reads longer texts than its source. The source then
reads a long text in overlapping windows. A language model learns long texts with a long `--block_size`, an encoder
with `--max_documents`: documents of all lengths beside the sentences. `--start_from` continues from a model that was
distilled before, for instance on sentences.

The commands of the shipped checkpoints are on their cards. Run again with the same `--output_dir`, each stage resumes
from its last checkpoint, and a stage that has ended is not repeated. `transformers.TrainingArguments` hold for both
stages, except that `--max_steps` and `--learning_rate` are those of the second.
"""

import copy
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from ..conversion import DistillationArguments, convert_checkpoint, distill
from ..conversion.distillation import RESULTS, DistillationTrainer
from ..conversion.mixers import which_layers
from ..conversion.objectives import objective_for
from ..conversion.positions import extend_positions
from ..conversion.source import open_tokenizer
from ..files import whole_file
from ..hub.find import check_checkpoint
from ..hub.modules import copy_modules, find_modules, pooling_of
from ..model.modeling_gma import GMAPreTrainedModel
from ..session import longest_text
from .arguments import RunArguments, json_fields, parse
from .distill_card import table_of_figures, write_card
from .distill_data import document_examples, language_blocks, sentence_examples
from .running import run, train_extra
from .texts import DataArguments, load_text
from .training import check_output


with train_extra():
    from datasets import Dataset, DatasetDict, concatenate_datasets


SETTINGS = "distill_arguments.json"  # of a run, beside it
# Beside what is converted and read, what a run that resumes must be given again
TRAINED_WITH = ("max_steps", "learning_rate", "per_device_train_batch_size", "seed", "stage1_steps")
TRAINED_WITH += ("stage1_learning_rate", "source_weight", "pooling", "window_size", "window_overlap")


@dataclass
class ConversionArguments:
    """What is converted, how, and what it learns from."""

    source: str = field(metadata={"help": "Folder or Hub name of a checkpoint that can be converted."})
    start_from: str | None = field(
        default=None,
        metadata={"help": "GMA model of this source to start from, distilled before, instead of a conversion."},
    )
    layers: str = field(default="all", metadata={"help": "Layers that become GMA: all, every:N, or indices as 0,2,4."})
    num_components: int = field(default=64, metadata={"help": "K, the Gaussian components of each head."})
    max_position_embeddings: int | None = field(
        default=None, metadata={"help": "Tokens that the model reads, if more than its source does."}
    )
    mixer: str = field(default="{}", metadata={"help": "Other fields of GMAConfig, as JSON."})
    calibration_texts: int = field(
        default=256, metadata={"help": "Training examples that the mixtures are fitted to."}
    )
    source_name: str | None = field(
        default=None, metadata={"help": "Hub name of the source, for the card, if the source is a folder."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the source's weights, for the card."})
    half: bool = field(default=False, metadata={"help": "Save the weights in half precision."})
    max_validation: int = field(default=1000, metadata={"help": "Validation examples (blocks, sentences), at most."})
    max_sentences: int = field(
        default=200_000, metadata={"help": "Sentences of the training text, at most, where embeddings are distilled."}
    )
    max_documents: int = field(
        default=0,
        metadata={
            "help": "Documents of the training text beside the sentences, at most; cut at the positions of the model."
        },
    )
    max_validation_documents: int = field(
        default=50, metadata={"help": "Validation documents, at most, if there are documents to train on."}
    )


def open_source(args: ConversionArguments) -> tuple[GMAPreTrainedModel, PreTrainedTokenizerBase]:
    """
    Return the source with its softmax layers, in our modules, and its tokenizer, for texts as long as the model will
    read. The source is in float32, whatever its dtype: `--bf16` and `--fp16` are for the products in training.

    Raises:
        ValueError: if it has no tokenizer, or no layer that `layers` names.
    """
    source = convert_checkpoint(args.source, layers="none").float()
    tokenizer = open_tokenizer(args.source, args.max_position_embeddings)
    if tokenizer is None:
        raise ValueError(f"`source` must have a tokenizer to be distilled, but {args.source!r} has none.")
    if not which_layers(args.layers, source.config.num_hidden_layers):
        raise ValueError(f"`layers` must name at least one layer to be distilled, but it is {args.layers!r}.")
    return source, tokenizer


def check_lengths(args: ConversionArguments, data_args: DataArguments, source: GMAPreTrainedModel) -> int | None:
    """
    Return how many tokens the model will read, or None for any number.

    Raises:
        ValueError: if that is less than a block.
    """
    positions = args.max_position_embeddings or longest_text(source.config)
    if positions is not None and data_args.block_size > positions:
        whose = "source's number of positions" if args.max_position_embeddings is None else "number of positions"
        raise ValueError(f"`block_size` must be at most the {whose}, {positions}, but it is {data_args.block_size}.")
    return positions


def make_examples(
    source: GMAPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: ConversionArguments,
    data_args: DataArguments,
    seed: int,
) -> tuple[Dataset, Dataset | DatasetDict]:
    """Return what is trained on, and what is validated on, by the head of the source."""
    positions, texts = check_lengths(args, data_args, source), load_text(data_args)
    if source.get_output_embeddings() is not None:
        blocks = language_blocks(texts, data_args, tokenizer, source.config.is_causal, args.max_validation)
        return blocks["train"], blocks["validation"]
    most = {"train": args.max_sentences, "validation": args.max_validation}
    sentences = sentence_examples(texts, data_args, tokenizer, seed, most)
    if args.max_documents == 0:
        return sentences["train"], sentences["validation"]
    most = {"train": args.max_documents, "validation": args.max_validation_documents}
    documents = document_examples(texts, data_args, tokenizer, seed, most, positions)
    together = concatenate_datasets([sentences["train"], documents["train"]])
    return together, DatasetDict(sentences=sentences["validation"], documents=documents["validation"])


def open_student(source: GMAPreTrainedModel, args: ConversionArguments, examples: Dataset) -> GMAPreTrainedModel:
    """
    Return the model to be distilled, in float32: a conversion of the source, or one that was distilled before.

    Raises:
        ValueError: if there is no such checkpoint, or positions or fields of the mixer are wrong.
    """
    mixer = json_fields("mixer", args.mixer, args.mixer)
    if args.start_from is not None:
        check_checkpoint(args.start_from, "`start_from`")
        model = type(source).from_pretrained(args.start_from, dtype=torch.float32, **mixer)
        if args.max_position_embeddings is not None:
            extend_positions(model, args.max_position_embeddings)
        return model
    few = examples.take(min(args.calibration_texts, len(examples)))  # sentences, where there are documents too
    return convert_checkpoint(
        args.source,
        layers=args.layers,
        num_components=args.num_components,
        calibration=[torch.tensor([row["input_ids"]]) for row in few],
        max_position_embeddings=args.max_position_embeddings,
        **mixer,
    ).float()


@torch.no_grad()
def halve(model: GMAPreTrainedModel) -> dict[str, torch.Tensor]:
    """
    Put a model into half precision and return the weights to save. Its mixtures stay float32, rounded to half
    precision.
    """
    for parameter in model.half().parameters():
        parameter.copy_(parameter.half())
    return {name: x.half() for name, x in model.state_dict().items()}


def check_run(output: Path, settings: dict) -> None:
    """
    Refuse a folder that cannot be written to, or that holds a run with other settings.

    Raises:
        ValueError: for such a folder.
    """
    check_output(str(output))
    if not (output / SETTINGS).exists():
        return
    before = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"`{name}` must be as it was when the run in {str(output)!r} began, {before.get(name)!r}, but it "
                f"is {value!r}."
            )


def keep_settings(output: Path, settings: dict) -> None:
    """Write the settings of a run beside it."""
    output.mkdir(parents=True, exist_ok=True)
    with whole_file(output / SETTINGS) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def finished_rows(output: Path) -> list[dict] | None:
    """Return the rows of the card's table of a run that is finished; or None."""
    files = (f"stage2/{RESULTS}", "distillation.json", "README.md")
    if not all((output / name).is_file() for name in files):
        return None
    return json.loads((output / "distillation.json").read_text(encoding="utf-8"))["rows"]


def main(arguments: list[str] | None = None) -> list[dict]:
    """Convert, distil, save; return the rows of the card's table, the source's first."""
    kinds = (ConversionArguments, DataArguments, RunArguments, DistillationArguments)
    args, data_args, run_args, training_args = parse(kinds, arguments)
    set_seed(training_args.seed)
    output, is_first = Path(training_args.output_dir), training_args.process_index == 0
    settings = asdict(args) | asdict(data_args) | {name: getattr(training_args, name) for name in TRAINED_WITH}
    check_run(output, settings)
    if (rows := finished_rows(output)) is not None:
        if is_first:
            print(f"The run in {str(output)!r} is finished.")
        return rows
    (source, tokenizer), modules = open_source(args), find_modules(args.source)
    if modules is not None:
        training_args.pooling = pooling_of(modules)
    # Refuses a source that cannot be distilled
    objective_for(source, training_args.source_weight, training_args.pooling)
    train, validation = make_examples(source, tokenizer, args, data_args, training_args.seed)
    model = open_student(source, args, train)
    if is_first:
        keep_settings(output, settings)
    callbacks = run_args.callbacks(training_args)
    examples = {"train_dataset": train, "eval_dataset": validation, "processing_class": tokenizer}
    found = distill(model, source, training_args, **examples, callbacks=callbacks)
    weights = None
    if args.half:
        weights = halve(model)
        rounded = copy.deepcopy(model).float()  # products in half precision are slow on a CPU
        trainer = DistillationTrainer(rounded, source, training_args, **examples)
        found.rows.append({"model": "weights in half precision", **trainer.figures()})
    if is_first:
        model.save_pretrained(output, state_dict=weights)
        tokenizer.backend_tokenizer.no_truncation()  # it keeps that of its last call otherwise
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(output)
        if modules is not None:
            copy_modules(modules, output, args.max_position_embeddings)
        command = shlex.join(sys.argv[1:] if arguments is None else arguments)
        command = f"python -m gma_hf.recipes.distill {command}"
        write_card(output, found, model, args, data_args, training_args, command)
        print(f"{table_of_figures(found.rows)}\nSaved with its card: {str(output)!r}.")
    return found.rows


if __name__ == "__main__":
    run(main)
