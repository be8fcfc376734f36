"""
Train a causal language model, GMA or any other causal architecture of Transformers, on plain text.

The checkpoint `model_cards/gma-shakespeare` (characters of tiny Shakespeare; 25 minutes on one thread). The
text is github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt; `tests/data/shakespeare.txt` is its beginning:

    python -m gma_hf.recipes.train_clm --train_file ../shared/data/tinyshakespeare/input.txt --train_tokenizer 257 \
        --model_config gma-small --block_size 256 --output_dir runs/gma-shakespeare \
        --max_steps 2000 --per_device_train_batch_size 8 --per_device_eval_batch_size 16 --learning_rate 4e-3 \
        --lr_scheduler_type cosine --warmup_steps 100 --weight_decay 0.1 --adam_beta2 0.99 --seed 0 \
        --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 --save_total_limit 1 \
        --report_to none

The checkpoint `model_cards/gma-wikitext2` (two hours of one core; `--use_cpu` where there is no GPU):

    python -m gma_hf.recipes.train_clm --config wikitext2 --use_cpu True

Other text: a data set of the Hub by its name, or files; another tokenizer; another architecture (`--model_type gpt2`):

    python -m gma_hf.recipes.train_clm --dataset_name Salesforce/wikitext --dataset_config_name wikitext-103-raw-v1 \
        --tokenizer_name openai-community/gpt2 --model_config gma-small \
        --output_dir runs/gma-wikitext103
    python -m gma_hf.recipes.train_clm --train_file train.txt --validation_file valid.txt --train_tokenizer 8000 \
        --model_config my_config.json --output_dir runs/mine

Blocks that are too long for one process, cut in two halves, one for each of two processes (GMA layers only):

    torchrun --nproc_per_node 2 -m gma_hf.recipes.train_clm --sequence_parallel_size 2 --block_size 65536 ...

Arguments may stand in a YAML file (`--config FILE`; those of `gma_hf/recipes/configs` by their name), and
`--early_stopping_patience N` ends a training that no longer gains. Run again with the same `--output_dir`, training
resumes from its last checkpoint, or says that it is finished. Fine-tune a checkpoint by `--model_name_or_path`. All of
`transformers.TrainingArguments` are accepted; `--help` lists everything.
"""

from transformers import AutoModelForCausalLM, TrainingArguments, default_data_collator, set_seed

from .arguments import ModelArguments, ParallelArguments, RunArguments, parse
from .models import load_model
from .running import run
from .texts import DataArguments, load_text, make_blocks
from .tokenizing import load_tokenizer
from .training import Start, finished_metrics, train_and_evaluate


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate and save; return the metrics of the evaluation, with the perplexity."""
    kinds = (ModelArguments, DataArguments, RunArguments, ParallelArguments, TrainingArguments)
    model_args, data_args, run_args, parallel_args, training_args = parse(kinds, arguments)
    callbacks, start = run_args.callbacks(training_args), Start.of(training_args, run_args)
    if (metrics := finished_metrics(start, training_args, "eval")) is not None:
        return metrics
    training_args.prediction_loss_only = True
    set_seed(training_args.seed)

    texts = load_text(data_args)
    tokenizer = load_tokenizer(model_args, texts["train"], data_args.text_column)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = load_model(model_args, AutoModelForCausalLM, {"vocab_size": len(tokenizer), **tokens})
    blocks = make_blocks(texts, data_args.text_column, tokenizer, data_args.block_size)

    trainer = parallel_args.trainer_class()(
        model=model,
        args=training_args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=callbacks,
    )
    return train_and_evaluate(trainer, start, "eval", blocks["validation"], perplexity=True)


if __name__ == "__main__":
    run(main)
