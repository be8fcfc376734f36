"""
Train a causal language model, GMA or any other causal architecture of Transformers, on plain text.

The checkpoint `model_cards/gma-shakespeare` (characters of tiny Shakespeare; 25 minutes on one thread). The
text is github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt; `tests/data/shakespeare.txt` is its beginning:

    python recipes/train_clm.py --train_file ../shared/data/tinyshakespeare/input.txt --train_tokenizer 257 \
        --model_config recipes/configs/gma-small.json --block_size 256 --output_dir runs/gma-shakespeare \
        --max_steps 2000 --per_device_train_batch_size 8 --per_device_eval_batch_size 16 --learning_rate 4e-3 \
        --lr_scheduler_type cosine --warmup_steps 100 --weight_decay 0.1 --adam_beta2 0.99 --seed 0 \
        --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 --save_total_limit 1 \
        --report_to none

The checkpoint `model_cards/gma-wikitext2` (16 minutes of one core):

    python recipes/train_clm.py --config recipes/configs/wikitext2.yaml

Other text: a data set of the Hub by its name, or files; another tokenizer; another architecture (`--model_type gpt2`):

    python recipes/train_clm.py --dataset_name Salesforce/wikitext --dataset_config_name wikitext-103-raw-v1 \
        --tokenizer_name openai-community/gpt2 --model_config recipes/configs/gma-small.json \
        --output_dir runs/gma-wikitext103
    python recipes/train_clm.py --train_file train.txt --validation_file valid.txt --train_tokenizer 8000 \
        --model_config my_config.json --output_dir runs/mine

Arguments may stand in a YAML file (`--config FILE`), and `--early_stopping_patience N` ends what no longer gains. Run
again with the same `--output_dir`, training goes on from its last checkpoint. Fine-tune a checkpoint by
`--model_name_or_path`. All of `transformers.TrainingArguments` are accepted; `--help` lists everything.
"""

import math

from arguments import ModelArguments, RunArguments, checkpoint_to_resume, parse
from models import load_model
from texts import DataArguments, load_text, make_blocks
from tokenizing import load_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and saves; returns the metrics of the evaluation, with the perplexity."""
    kinds = (ModelArguments, DataArguments, RunArguments, TrainingArguments)
    model_args, data_args, run_args, training_args = parse(kinds, arguments)
    callbacks = run_args.callbacks(training_args)
    training_args.prediction_loss_only = True
    set_seed(training_args.seed)

    texts = load_text(data_args)
    tokenizer = load_tokenizer(model_args, texts["train"], data_args.text_column)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = load_model(model_args, AutoModelForCausalLM, {"vocab_size": len(tokenizer), **tokens})
    blocks = make_blocks(texts, data_args.text_column, tokenizer, data_args.block_size)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=callbacks,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    model.config.use_cache = True  # which Trainer turns off while it trains
    trainer.save_model()
    trainer.save_metrics("train", {**result.metrics, "parameters": model.num_parameters()})

    metrics = trainer.evaluate()
    metrics["perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    main()
