"""Train from where an earlier run stopped, evaluate and save: the parts that all training recipes share."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer, TrainerState, TrainingArguments

from ..checkpoints import STATE, expect_tied_weights, last_checkpoint, load_weights
from .arguments import RunArguments
from .running import train_extra


with train_extra():
    from datasets import Dataset


@dataclass
class Start:
    """Say where a training starts: from nothing, from a checkpoint, or after its end."""

    checkpoint: str | None = None
    done: str = ""  # how far the checkpoint was trained, in words
    is_finished: bool = False

    @classmethod
    def of(cls, training: TrainingArguments, run: RunArguments) -> "Start":
        """
        Return the start of a run: the checkpoint that is named, else the last whole one in `output_dir`.

        Raises:
            ValueError: if nothing can be written to `output_dir`, or the checkpoint that is named is none.
        """
        check_output(training.output_dir)
        named = training.resume_from_checkpoint
        if named is not None and not (Path(named) / STATE).is_file():
            raise ValueError(f"`resume_from_checkpoint` must be a checkpoint of Trainer, but {named!r} is none.")
        checkpoint = named or last_checkpoint(training.output_dir)
        if checkpoint is None:
            return cls()
        state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
        if training.max_steps > 0:
            done, asked = state.global_step, training.max_steps
            words = f"{done} of the {asked} steps of `max_steps`"
        else:
            done, asked = state.epoch, training.num_train_epochs
            words = f"{done:g} of the {asked:g} epochs of `num_train_epochs`"
        patience = run.early_stopping_patience
        if patience is not None and evaluations_in_vain(state) >= patience:
            return cls(checkpoint, f"{words}, stopped early", True)
        return cls(checkpoint, words, done >= asked)


def evaluations_in_vain(state: TrainerState) -> int:
    """Return how many evaluations in a row were no better than the best, as early stopping counts them."""
    callback = state.stateful_callbacks.get("EarlyStoppingCallback") or {}
    return callback.get("attributes", {}).get("early_stopping_patience_counter", 0)


def check_output(output_dir: str) -> None:
    """
    Refuse an `output_dir` that cannot be written to.

    Raises:
        ValueError: if it is no folder to write to, and cannot be made one.
    """
    folder = Path(output_dir).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"`output_dir` must be a folder to write to, but {output_dir!r} is not.")


def finished_metrics(start: Start, training: TrainingArguments, *splits: str) -> dict[str, float] | None:
    """Return the metrics that a finished run left, of the first split that has some, and say that it is; or None."""
    paths = [Path(training.output_dir) / f"{split}_results.json" for split in splits]
    path = next((path for path in paths if path.is_file()), None)
    if path is None or not start.is_finished:
        return None
    if training.process_index == 0:
        print(f"The run in {training.output_dir!r} is finished: {start.done} are done. A longer one resumes it.")
    return json.loads(path.read_text(encoding="utf-8"))


def train_and_evaluate(
    trainer: Trainer, start: Start, split: str, examples: Dataset, perplexity: bool = False
) -> dict[str, float]:
    """
    Train from `start`, save the model, and return its metrics.

    A run that was interrupted between its last checkpoint and the end is not trained, only evaluated and saved.

    Args:
        trainer: with model and data.
        start: of the run.
        split: under whose name the metrics are saved.
        examples: that the model is evaluated on.
        perplexity: whether the exponential of the loss is one of the metrics.
    """
    says = trainer.is_world_process_zero()
    if start.is_finished:
        if says:
            print(f"The training in {trainer.args.output_dir!r} is finished: {start.done} are done. Evaluating it.")
        state = TrainerState.load_from_json(str(Path(start.checkpoint) / STATE))
        best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        load_weights(trainer.model, best or start.checkpoint)
    else:
        if says and start.checkpoint is not None:
            print(f"Resuming from {start.checkpoint!r}: {start.done} are done.", flush=True)
        expect_tied_weights(trainer.model)
        result = trainer.train(resume_from_checkpoint=start.checkpoint)
        trainer.save_metrics("train", {**result.metrics, "parameters": trainer.model.num_parameters()})
    if trainer.model.can_generate():
        trainer.model.config.use_cache = True  # which Trainer turns off while it trains
    trainer.save_model()
    metrics = trainer.evaluate(examples)
    if perplexity:
        metrics["perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return metrics
