"""
Train a masked language model, GMA or any other encoder of Transformers, on plain text.

A small GMA encoder on WikiText-2:

    python -m gma_hf.recipes.train_mlm --train_file ../shared/data/wikitext-2/train.txt --train_tokenizer 8000 \
        --validation_file ../shared/data/wikitext-2/valid.txt --model_config gma-encoder \
        --block_size 256 --output_dir runs/gma-mlm --max_steps 1000 --per_device_train_batch_size 8 \
        --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_steps 100 --weight_decay 0.1 --report_to none

`--model_name_or_path` trains a checkpoint further; other text, `--config` and what a second run does: as in
`train_clm.py`. Each block is masked anew every time it is read; the validation text is masked once, by `--seed`.
"""

from dataclasses import dataclass, field

import torch
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

from .arguments import ModelArguments, RunArguments, parse
from .metrics import ACCURACY
from .models import encoder_fields, load_model
from .running import run, train_extra
from .texts import DataArguments, load_text, make_blocks
from .tokenizing import load_encoder_tokenizer
from .training import Start, finished_metrics, train_and_evaluate


with train_extra():
    import evaluate
    from datasets import Dataset


@dataclass
class MaskingArguments:
    """Which tokens the model has to predict."""

    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to predict."})


class MaskingCollator:
    """Mask blocks of tokens anew, and take those that have labels already as they are."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float):
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)

    def __call__(self, blocks: list[dict]) -> dict[str, torch.Tensor]:
        return default_data_collator(blocks) if "labels" in blocks[0] else self.mask(blocks)


def masked_once(blocks: Dataset, tokenizer: PreTrainedTokenizerBase, probability: float, seed: int) -> Dataset:
    """Return blocks with some tokens masked, and those as labels, the same for the same seed."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=seed)

    def mask(batch: dict) -> dict:
        masked = collator([{"input_ids": block} for block in batch["input_ids"]])
        return {name: masked[name].tolist() for name in ("input_ids", "labels")}

    return blocks.map(mask, batched=True, desc="Mask validation")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of the masked tokens that are predicted right."""
    asked = prediction.label_ids != -100
    metric = evaluate.load(ACCURACY)
    return metric.compute(predictions=prediction.predictions[asked], references=prediction.label_ids[asked])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate and save; return the metrics: loss, perplexity and accuracy of the masked tokens."""
    kinds = (ModelArguments, DataArguments, MaskingArguments, RunArguments, TrainingArguments)
    model_args, data_args, masking, run_args, training_args = parse(kinds, arguments)
    callbacks, start = run_args.callbacks(training_args), Start.of(training_args, run_args)
    if (metrics := finished_metrics(start, training_args, "eval")) is not None:
        return metrics
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
    return train_and_evaluate(trainer, start, "eval", validation, perplexity=True)


if __name__ == "__main__":
    run(main)
