"""
Convert a GPT-2- or BERT-style checkpoint to GMA and distil it, in two stages:

1. each GMA layer learns to give what the softmax layer in its place gave, all layers at once, the rest frozen;
2. the whole model learns what the source gives: the distribution over the next (causal) or the masked token, together
   with the task's own loss, or the embedding of a sentence (encoders without a head, mean over its tokens).

The model is measured against its source before, between and after; table and plot go into its card.

    python -m gma_hf.recipes.distill --source runs/gpt2-wikitext2 --output_dir runs/gma-from-gpt2 \
        --train_file ../shared/data/wikitext-2/train.txt --validation_file ../shared/data/wikitext-2/valid.txt \
        --stage1_steps 100 --max_steps 140 --per_device_train_batch_size 8 --learning_rate 1e-3

Commands of the shipped checkpoints: benchmarks/RESULTS.md. Run again with the same `--output_dir`, each stage goes on
from its last checkpoint, and a stage that has ended is not repeated. `transformers.TrainingArguments` hold for both
stages, except that `--max_steps` and `--learning_rate` are those of the second; Trainer's own evaluation and gradient
checkpointing are refused.
"""

import copy
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from ..conversion import convert_checkpoint
from ..conversion.mixers import which_layers
from ..conversion.source import open_tokenizer
from ..files import whole_file
from ..hub.modules import copy_modules, find_modules
from ..model.modeling_gma import GMAForCausalLM, GMAForMaskedLM, GMAModel, GMAPreTrainedModel
from ..session import longest_text
from .arguments import RunArguments, json_fields, parse
from .distill_card import write_card
from .distill_objectives import EmbeddingObjective, LanguageModelObjective, Objective
from .running import run
from .texts import DataArguments, load_text
from .training import check_output, expect_tied_weights, last_checkpoint, load_weights


SETTINGS = "distill_arguments.json"  # of a run, beside it


@dataclass
class DistillArguments:
    """What is converted, how, and how long each stage is."""

    source: str = field(metadata={"help": "Folder or Hub name of a GPT-2, BERT, RoBERTa or DistilBERT checkpoint."})
    layers: str = field(default="all", metadata={"help": "Layers that become GMA: all, every:N, or indices as 0,2,4."})
    num_components: int = field(default=64, metadata={"help": "K, the Gaussian components of each head."})
    mixer: str = field(default="{}", metadata={"help": "Other fields of GMAConfig, as JSON."})
    calibration_texts: int = field(
        default=256, metadata={"help": "Training examples that the mixtures are fitted to."}
    )
    stage1_steps: int = field(default=500, metadata={"help": "Steps of the first stage."})
    stage1_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the first stage."})
    source_weight: float = field(
        default=0.5,
        metadata={"help": "Share of the source's distribution in the second loss; the rest is the task's."},
    )
    source_name: str | None = field(
        default=None, metadata={"help": "Of the source in the card, where it is a folder."}
    )
    license: str | None = field(default=None, metadata={"help": "Of the source's weights, for the card."})
    half: bool = field(default=False, metadata={"help": "Keep the weights in half precision in the end."})
    max_validation: int = field(default=1000, metadata={"help": "Validation examples (blocks, sentences), at most."})
    max_sentences: int = field(
        default=200_000, metadata={"help": "Sentences of the training text, at most, where embeddings are distilled."}
    )


class LayerTrainer(Trainer):
    """The first stage: the mean over the GMA layers of their errors, see `layer_errors`."""

    loss_is_scaled_for_ga = False
    source: GMAPreTrainedModel

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ANN001, ANN201
        return torch.stack(layer_errors(self.source, model, inputs)).mean()


class SourceTrainer(Trainer):
    """The second stage: what the objective makes of the outputs of the model and of its source."""

    loss_is_scaled_for_ga = False
    source: GMAPreTrainedModel
    objective: Objective

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ANN001, ANN201
        with torch.no_grad():
            target = self.source(**inputs)
        return self.objective.loss(model(**inputs), target, inputs)


def layer_errors(source: GMAPreTrainedModel, model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """
    Return, per GMA layer, the mean squared error of what it gives for the source's own hidden states, over the
    variance of what the source's softmax layer gave: 1 for a layer that gives its mean. Each layer passes the source's
    output on, so that the next one gets the source's hidden states too.
    """
    network = getattr(model, "module", model)  # within DistributedDataParallel
    pairs = zip(source.base_model.layers, network.base_model.layers, strict=True)
    pairs = [(theirs.attention, ours.attention) for theirs, ours in pairs if ours.layer_type == "gma"]
    targets, errors = {}, []
    mask = inputs.get("attention_mask")
    is_real = torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()

    def record(theirs: nn.Module, ours: nn.Module):  # noqa: ANN202
        return theirs.register_forward_hook(lambda module, args, output: targets.update({ours: output}))

    def compare(module: nn.Module, args: tuple, output: tuple) -> tuple:
        target = targets[module][0]
        error, spread = (output[0] - target)[is_real], target[is_real].var(dim=0).sum()
        errors.append(error.square().sum(dim=-1).mean() / spread)
        return targets[module]

    hooks = [record(*pair) for pair in pairs] + [ours.register_forward_hook(compare) for _, ours in pairs]
    try:
        inputs = {name: x for name, x in inputs.items() if name != "labels"}
        with torch.no_grad():
            source(**inputs)
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return errors


@torch.no_grad()
def mean_layer_errors(source: GMAPreTrainedModel, model: GMAPreTrainedModel, batches: DataLoader) -> list[float]:
    """Return the errors on the first validation batches, layer by layer."""
    model.eval()
    inputs = ({name: x.to(model.device) for name, x in batch.items()} for batch in islice(batches, 4))
    return torch.stack([torch.stack(layer_errors(source, model, batch)) for batch in inputs]).mean(dim=0).tolist()


def set_dropout(model: GMAPreTrainedModel, hidden: float, attention: float) -> None:
    """Set all dropouts on the residual stream and that of attention weights, in modules and config."""
    model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob = hidden, attention
    for layer in [model.base_model.embeddings, *model.base_model.layers]:
        layer.dropout.p = hidden


@torch.no_grad()
def halve(model: GMAPreTrainedModel) -> dict[str, torch.Tensor]:
    """
    Put a model into half precision and return the weights to save. Its mixtures stay float32, rounded to half
    precision.
    """
    for parameter in model.half().parameters():
        parameter.copy_(parameter.half())
    return {name: x.half() for name, x in model.state_dict().items()}


def check_arguments(output: Path, args: TrainingArguments, settings: dict) -> None:
    """
    Raises:
        ValueError: if a run in `output` was begun with other settings, or Trainer is asked for what the stages do
            not do.
    """
    if args.eval_strategy != "no" or args.activation_checkpointing:
        name = "activation_checkpointing" if args.activation_checkpointing else "eval_strategy"
        raise ValueError(f"`{name}` must be left off, since the stages do without, but it is {getattr(args, name)!r}.")
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


def open_teacher(
    args: DistillArguments, data_args: DataArguments
) -> tuple[GMAPreTrainedModel, PreTrainedTokenizerBase]:
    """
    Return the source with its softmax layers, in our modules, and its tokenizer. The source is in float32, whatever
    its dtype: `--bf16` and `--fp16` are for the products in training.

    Raises:
        ValueError: if it has no tokenizer, no layer that `layers` names, or fewer positions than a block.
    """
    source = convert_checkpoint(args.source, layers="none").float().eval().requires_grad_(False)
    tokenizer, positions = open_tokenizer(args.source), longest_text(source.config)
    if tokenizer is None:
        raise ValueError(f"`source` must have a tokenizer to be distilled, but {args.source!r} has none.")
    if not which_layers(args.layers, source.config.num_hidden_layers):
        raise ValueError(f"`layers` must name at least one layer to be distilled, but it is {args.layers!r}.")
    if positions is not None and data_args.block_size > positions:
        raise ValueError(
            f"`block_size` must be at most the source's number of positions, {positions}, but it is "
            f"{data_args.block_size}."
        )
    return source, tokenizer


def make_objective(model: GMAPreTrainedModel, args: DistillArguments) -> Objective:
    """Return what the second stage learns, by the head of the model."""
    if isinstance(model, GMAModel) and not model.config.is_causal:
        return EmbeddingObjective(args.max_sentences, args.max_validation)
    if isinstance(model, (GMAForCausalLM, GMAForMaskedLM)):
        return LanguageModelObjective(model.config.is_causal, args.source_weight, args.max_validation)
    raise ValueError(
        "`source` must be a language model (causal or masked) or an encoder without a head to be distilled, but it "
        f"becomes a {type(model).__name__}."
    )


def run_stage(trainer: Trainer) -> float:
    """
    Train, from the last checkpoint if there is one, and save what comes out; or load what came out before. Return the
    seconds that it took.
    """
    folder = Path(trainer.args.output_dir)
    results = folder / "train_results.json"  # the last that is written
    says, checkpoint = trainer.is_world_process_zero(), last_checkpoint(folder)
    if results.exists():
        if says:
            print(f"{folder.name} is finished and is taken from {str(folder)!r}.", flush=True)
        load_weights(trainer.model, folder)
    else:
        if says and checkpoint is not None:
            print(f"{folder.name}: resuming from {checkpoint!r}.", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        expect_tied_weights(trainer.model)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.accelerator.wait_for_everyone()
    return json.loads(results.read_text(encoding="utf-8"))["train_runtime"]


def finished_rows(output: Path) -> list[dict] | None:
    """Return the rows of the card's table of a run that is finished; or None."""
    files = ("stage1/train_results.json", "stage2/train_results.json", "distillation.json", "README.md")
    if not all((output / name).is_file() for name in files):
        return None
    return json.loads((output / "distillation.json").read_text(encoding="utf-8"))["rows"]


def main(arguments: list[str] | None = None) -> list[dict]:
    """Convert, distil, save; return the rows of the card's table, the source's first."""
    kinds = (DistillArguments, DataArguments, RunArguments, TrainingArguments)
    args, data_args, run_args, training_args = parse(kinds, arguments)
    if run_args.early_stopping_patience is not None:
        raise ValueError("`early_stopping_patience` must be left off, since the stages do without evaluations.")
    set_seed(training_args.seed)
    output = Path(training_args.output_dir)
    trained_with = ("max_steps", "learning_rate", "per_device_train_batch_size", "seed")
    settings = asdict(args) | asdict(data_args) | {name: getattr(training_args, name) for name in trained_with}
    check_arguments(output, training_args, settings)
    if (rows := finished_rows(output)) is not None:
        if training_args.process_index == 0:
            print(f"The run in {str(output)!r} is finished.")
        return rows
    # Of the first stage, the model gives no output that depends on all parameters, and DDP would look for those
    training_args.ddp_find_unused_parameters = False

    source, tokenizer = open_teacher(args, data_args)
    source.to(training_args.device)
    objective, modules = make_objective(source, args), find_modules(args.source)
    mixer = json_fields("mixer", args.mixer, args.mixer)
    data = objective.prepare(load_text(data_args), data_args, tokenizer, training_args.seed)
    model = convert_checkpoint(
        args.source,
        layers=args.layers,
        num_components=args.num_components,
        calibration=[torch.tensor([row["input_ids"]]) for row in data["train"].take(args.calibration_texts)],
        **mixer,
    ).float()
    if training_args.process_index == 0:
        keep_settings(output, settings)
    dropouts = (source.config.hidden_dropout_prob, source.config.attention_probs_dropout_prob)
    set_dropout(model, 0.0, 0.0)  # the source answers without

    common = {"model": model, "data_collator": objective.collator, "processing_class": tokenizer}
    common |= {"train_dataset": data["train"]}
    first_args = replace(
        training_args,
        output_dir=str(output / "stage1"),
        max_steps=args.stage1_steps,
        learning_rate=args.stage1_learning_rate,
    )
    first = LayerTrainer(args=first_args, **common)
    first.source = source
    # Not Trainer's, so that each process measures all of it
    batches = DataLoader(data["validation"], training_args.per_device_eval_batch_size, collate_fn=objective.collator)
    rows, errors = [], {}

    def measure(name: str, measured: GMAPreTrainedModel) -> None:
        rows.append({"model": name, **objective.evaluate(measured, source, batches)})
        print(rows[-1], flush=True)

    measure("source", source)
    measure("converted", model)
    errors["converted"] = mean_layer_errors(source, model, batches)

    model.requires_grad_(False)
    for layer in model.base_model.layers:
        layer.attention.requires_grad_(layer.layer_type == "gma")
    seconds = [run_stage(first)]
    measure("after stage 1", model)
    errors["after stage 1"] = mean_layer_errors(source, model, batches)

    model.requires_grad_(True)
    second = SourceTrainer(args=replace(training_args, output_dir=str(output / "stage2")), **common)
    second.source, second.objective = source, objective
    seconds.append(run_stage(second))
    measure("after stage 2", model)
    weights = None
    if args.half:
        weights = halve(model)
        measure("weights in half precision", copy.deepcopy(model).float())  # products in it are slow on a CPU

    set_dropout(model, *dropouts)
    model.config.use_cache = source.config.use_cache  # which Trainer turns off while it trains
    if second.is_world_process_zero():
        model.save_pretrained(output, state_dict=weights)
        tokenizer.backend_tokenizer.no_truncation()  # it keeps that of its last call otherwise
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(output)
        if modules is not None:
            copy_modules(modules, output)
        command = shlex.join(sys.argv[1:] if arguments is None else arguments)
        write_card(
            output,
            rows,
            errors,
            objective,
            model,
            args,
            data_args,
            training_args,
            seconds,
            command=f"python -m gma_hf.recipes.distill {command}",
        )
    return rows


if __name__ == "__main__":
    run(main)
