"""Distillation: a converted model learns what its source gives, layer by layer and then as a whole."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging

from ..checkpoints import expect_tied_weights, last_checkpoint, load_weights
from ..errors import extra
from ..model.modeling_gma import GMAPreTrainedModel
from .objectives import Comparison, LayerObjective, Objective, objective_for
from .teacher import Teacher


with extra("train", "Distillation"):
    import accelerate  # noqa: F401  Trainer's
    from transformers import Trainer, TrainingArguments

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)

Stage = Literal["layers", "outputs"]
RESULTS = "train_results.json"  # of a stage; the last file that it writes
FIGURES_BATCHES = 4  # that the errors of the layers are measured on


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments`, of which `max_steps` and `learning_rate` are those of the second stage, and a few more."""

    stage1_steps: int = field(
        default=500, metadata={"help": "Steps of the first stage, in which each GMA layer learns alone; 0: none."}
    )
    stage1_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the first stage."})
    source_weight: float = field(
        default=0.5,
        metadata={"help": "Share of the source's distribution in a language model's loss; the rest is the task's."},
    )
    pooling: str = field(
        default="mean",
        metadata={"help": "How an encoder makes one embedding of its tokens': mean, or cls, the first token's."},
    )
    window_size: int | None = field(
        default=None,
        metadata={"help": "Tokens that the source reads at once of longer texts; its number of positions by default."},
    )
    window_overlap: int | None = field(
        default=None, metadata={"help": "Tokens that a window shares with the next; a quarter of it by default."}
    )


class DistillationTrainer(Trainer):
    """
    A Trainer of one stage of a distillation.

    In the stage "layers" each GMA layer learns to give what the softmax layer in its place gives for the source's own
    hidden states; the rest is frozen while it trains. In the stage "outputs" the whole model learns what the source
    gives: a language model the distribution over the next or the masked token, an encoder without a head the
    embedding of a text, by `args.pooling`, and the hidden states of its tokens. Dropout is off while it trains, since
    the source answers without.

    Texts that the source has no room for are read by it in overlapping windows: a token learns from the window that
    holds most of its context, the embedding of a text from the mean over its windows.

    Evaluations give the loss and the figures of `objective.metrics`, under their names with "eval_" before.

    Args:
        model: from `convert_checkpoint`, or a GMA model that was distilled before.
        source: its source: folder, Hub name or model.
        args: a `DistillationArguments`.
        data_collator: of examples of `input_ids`, and `labels` for a causal language model; by default what pads
            texts (encoders), masks tokens (masked language models), or batches blocks (causal ones).
        processing_class: the tokenizer.
        stage: "layers" or "outputs".
        others: as those of `transformers.Trainer`.

    Raises:
        ValueError: for a model that there is no objective for, or has no GMA layer, or for wrong arguments.
    """

    args: DistillationArguments

    def __init__(
        self,
        model: GMAPreTrainedModel,
        source: str | PreTrainedModel | Teacher,
        args: DistillationArguments,
        data_collator: Any = None,
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | dict[str, Dataset] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        stage: Stage = "outputs",
        **others: Any,
    ):
        if stage not in ("layers", "outputs"):
            raise ValueError(f"`stage` must be layers or outputs, but it is {stage!r}.")
        if "gma" not in model.config.layer_types:
            raise ValueError(f"`model` must have at least one GMA layer, but it has {model.config.layer_types}.")
        self.stage, self.objective = stage, objective_for(model, args.source_weight, args.pooling)
        if stage == "layers":
            self.objective = LayerObjective(model, self.objective)
        if args.ddp_find_unused_parameters is None:  # of the first stage, the outputs depend on none
            args = replace(args, ddp_find_unused_parameters=False)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or self.objective.collator(processing_class, args.seed),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self.objective.figures,
            **others,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch at hand
        windows = (args.window_size, args.window_overlap)
        self.teacher = source if isinstance(source, Teacher) else Teacher(source, processing_class, *windows)
        self.teacher.network.to(args.device)
        self._is_of_source = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer.train` does; dropout and what is frozen are as before after it."""
        # Accelerate marks a model that was evaluated as prepared, and would not wrap it for several processes any more
        vars(self.model).pop("_is_accelerate_prepared", None)
        use_cache = self.model.config.use_cache  # which Trainer turns off
        with without_dropout(self.model), trained(self.model, self._trained_modules()):
            result = super().train(*args, **kwargs)
        self.model.config.use_cache = use_cache
        return result

    def _trained_modules(self) -> list[nn.Module] | None:
        if self.stage == "outputs":
            return None
        return [self.model.base_model.layers[index].attention for index in self.objective.layers]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.objective.attached(self.model):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ANN001, ANN201
        compared = self.objective.compare(model, inputs, self.teacher)
        return (compared.loss, compared) if return_outputs else compared.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):  # noqa: ANN001, ANN201
        inputs, judged = self._prepare_inputs(inputs), None if self._is_of_source else model
        with torch.no_grad(), self.objective.attached(self.model), self.compute_loss_context_manager():
            compared: Comparison = self.objective.compare(judged, inputs, self.teacher)
        if prediction_loss_only:
            return compared.loss, None, None
        # Trainer computes metrics only where there are labels
        return compared.loss, compared.of_examples, torch.zeros_like(compared.of_examples[0][:, 0])

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return what evaluations read; a collator that masks tokens at random masks the same ones each time."""
        collator = self.data_collator
        if isinstance(collator, DataCollatorForLanguageModeling) and collator.seed is not None:
            self.data_collator = copy.copy(collator)
            self.data_collator.create_rng()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def figures(self, of_source: bool = False) -> dict[str, float]:
        """
        Evaluate and return the figures of `objective.metrics` alone, by their names (with several data sets, that of
        the data set before).

        Args:
            of_source: whether they are to be those that the source itself gets.
        """
        self._is_of_source = of_source
        try:
            metrics = self.evaluate()
        finally:
            self._is_of_source = False
        names = tuple(self.objective.metrics)
        return {key.removeprefix("eval_"): value for key, value in metrics.items() if key.endswith(names)}


class Distillation(NamedTuple):
    """What a distillation gave, beside the model that it trained."""

    rows: list[dict[str, Any]]  # the figures of "model": the source, the model before and after each stage
    layer_errors: dict[str, list[float]]  # of the GMA layers, before and after the first stage
    seconds: list[float]  # of each stage
    metrics: dict[str, str]  # what each figure says


def distill(
    model: GMAPreTrainedModel,
    source: str | PreTrainedModel,
    args: DistillationArguments,
    train_dataset: "Dataset",
    eval_dataset: "Dataset | dict[str, Dataset]",
    processing_class: PreTrainedTokenizerBase | None = None,
    data_collator: Any = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Distillation:
    """
    Train a converted model to compute what its source computes, in two stages, and measure it before, between and
    after: see `DistillationTrainer`.

    Each stage keeps its checkpoints in a folder of its own in `output_dir`, "stage1" and "stage2", with the weights
    that it ended with. Called again with the same `output_dir`, a stage resumes from its last checkpoint, and one that
    has ended is not repeated.

    Args:
        model: from `convert_checkpoint`, or a GMA model that was distilled before. It is trained in place.
        source: its source: folder, Hub name or model.
        args: of both stages.
        train_dataset, eval_dataset: examples of `input_ids` (and `labels` for a causal language model). With several
            data sets to evaluate on, by name, the figures have the names before.
        processing_class, data_collator, callbacks: as for `DistillationTrainer`.

    Raises:
        ValueError: as `DistillationTrainer` does.
    """
    teacher = Teacher(source, processing_class, args.window_size, args.window_overlap)
    common = {"model": model, "source": teacher, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
    common |= {"processing_class": processing_class, "data_collator": data_collator}
    second = DistillationTrainer(
        args=replace(args, output_dir=str(Path(args.output_dir) / "stage2")), callbacks=callbacks, **common
    )
    first = DistillationTrainer(
        args=first_stage(args, second.objective), stage="layers", callbacks=copy.deepcopy(callbacks), **common
    )
    found = Distillation([], {}, [], second.objective.metrics)

    def measure(name: str, of_source: bool = False, with_layers: bool = False) -> None:
        figures = second.figures(of_source)
        second.log_metrics(name, figures)
        found.rows.append({"model": name, **figures})
        if with_layers:
            found.layer_errors[name] = layer_errors(first)

    measure("source", of_source=True)
    measure("converted", with_layers=True)
    if args.stage1_steps > 0:
        found.seconds.append(run_stage(first))
        measure("after stage 1", with_layers=True)
    found.seconds.append(run_stage(second))
    measure("after stage 2")
    return found


def first_stage(args: DistillationArguments, objective: Objective) -> DistillationArguments:
    """Return the arguments of the first stage; its best model is that of the least loss, by whatever figure later."""
    own = {"max_steps": args.stage1_steps, "learning_rate": args.stage1_learning_rate}
    own["output_dir"] = str(Path(args.output_dir) / "stage1")
    best = args.metric_for_best_model or ""
    if name := next((name for name in objective.metrics if best.endswith(name)), None):
        own |= {"metric_for_best_model": f"{best.removesuffix(name)}loss", "greater_is_better": False}
    return replace(args, **own)


def layer_errors(trainer: DistillationTrainer) -> list[float]:
    """Return the errors of the GMA layers on the first validation batches."""
    examples = trainer.eval_dataset
    if isinstance(examples, dict):
        examples = next(iter(examples.values()))
    few = examples.select(range(min(FIGURES_BATCHES * trainer.args.eval_batch_size, len(examples))))
    metrics = trainer.evaluate(few)
    return [metrics[f"eval_{name}"] for name in trainer.objective.metrics]


def run_stage(trainer: DistillationTrainer) -> float:
    """
    Train, from the last checkpoint if there is one, and save what comes out; or load what came out before. Return the
    seconds that it took.
    """
    folder = Path(trainer.args.output_dir)
    results, checkpoint = folder / RESULTS, last_checkpoint(folder)
    if results.exists():
        logger.warning_once(f"{folder.name} is finished and is taken from {str(folder)!r}.")
        load_weights(trainer.model, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        expect_tied_weights(trainer.model)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.accelerator.wait_for_everyone()
    return json.loads(results.read_text(encoding="utf-8"))["train_runtime"]


@contextmanager
def without_dropout(model: GMAPreTrainedModel) -> Iterator[None]:
    """Turn off all dropouts on the residual stream and that of attention weights in the block."""
    config, parts = model.config, [model.base_model.embeddings, *model.base_model.layers]
    before = (config.attention_probs_dropout_prob, [part.dropout.p for part in parts])
    config.attention_probs_dropout_prob = 0.0
    for part in parts:
        part.dropout.p = 0.0
    try:
        yield
    finally:
        config.attention_probs_dropout_prob = before[0]
        for part, probability in zip(parts, before[1]):
            part.dropout.p = probability


@contextmanager
def trained(model: nn.Module, modules: list[nn.Module] | None) -> Iterator[None]:
    """Freeze all but the parameters of some modules in the block; with None, nothing."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    if modules is not None:
        kept = {parameter for module in modules for parameter in module.parameters()}
        for parameter, was_trained in before.items():
            parameter.requires_grad_(was_trained and parameter in kept)
    try:
        yield
    finally:
        for parameter, was_trained in before.items():
            parameter.requires_grad_(was_trained)
