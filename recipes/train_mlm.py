"""
Train a masked language model, GMA or any other encoder of Transformers, on plain text.

A small GMA encoder on WikiText-2:

    python recipes/train_mlm.py --train_file ../shared/data/wikitext-2/train.txt --train_tokenizer 8000 \
        --validation_file ../shared/data/wikitext-2/valid.txt --model_config recipes/configs/gma-encoder.json \
        --block_size 256 --output_dir runs/gma-mlm --max_steps 1000 --per_device_train_batch_size 8 \
        --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_steps 100 --weight_decay 0.1 --report_to none

A checkpoint goes on with `--model_name_or_path`; other text, `--config` and what a second run does: as in
`train_clm.py`. Each block is masked anew every time it is read; the validation text is masked once, by `--seed`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import torch
from arguments import ModelArguments, RunArguments, checkpoint_to_resume, parse
from datasets import Dataset
from models import encoder_fields, load_model
from texts import DataArguments, load_text, make_blocks
from tokenizing import load_encoder_tokenizer
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


ACCURACY = Path(__file__).parent / "metrics" / "accuracy"


@dataclass
class MaskingArguments:
    """What the model has to find out."""

    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to predict."})


class MaskingCollator:
    """Masks blocks of tokens anew, and takes those that have labels already as they are."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float):
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)

    def __call__(self, blocks: list[dict]) -> dict[str, torch.Tensor]:
        return default_data_collator(blocks) if "labels" in blocks[0] else self.mask(blocks)


def masked_once(blocks: Dataset, tokenizer: PreTrainedTokenizerBase, probability: float, seed: int) -> Dataset:
    """Blocks with their tokens masked, and labels, the same for the same seed."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=seed)

    def mask(batch: dict) -> dict:
        masked = collator([{"input_ids": block} for block in batch["input_ids"]])
        return {name: masked[name].tolist() for name in ("input_ids", "labels")}

    return blocks.map(mask, batched=True, desc="Mask validation")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Of the masked tokens."""
    asked = prediction.label_ids != -100
    metric = evaluate.load(str(ACCURACY))
    return metric.compute(predictions=prediction.predictions[asked], references=prediction.label_ids[asked])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and saves; returns the metrics: loss, perplexity and accuracy of the masked tokens."""
    kinds = (ModelArguments, DataArguments, MaskingArguments, RunArguments, TrainingArguments)
    model_args, data_args, masking, run_args, training_args = parse(kinds, arguments)
    callbacks = run_args.callbacks(training_args)
    set_seed(training_args.seed)

    texts = load_text(data_args)
    tokenizer = load_encoder_tokenizer(model_args, texts["train"], data_args.text_column)
    fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = load_model(model_args, AutoModelForMaskedLM, fields | encoder_fields(model_args.model_type))
    blocks = make_blocks(texts, data_args.text_column, tokenizer, data_args.block_size).remove_columns("labels")
    validation = masked_once(blocks["validation"], tokenizer, masking.mlm_probability, training_args.seed)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=blocks["train"],
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=MaskingCollator(tokenizer, masking.mlm_probability),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        callbacks=callbacks,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    trainer.save_metrics("train", {**result.metrics, "parameters": model.num_parameters()})

    metrics = trainer.evaluate()
    metrics["perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    main()
