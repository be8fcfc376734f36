"""
Train a causal language model, GMA or any other causal architecture of Transformers, on plain text.

The checkpoint `model_cards/gma-shakespeare` (characters of tiny Shakespeare; at most 20 minutes on two CPU cores). The
text is github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt; `tests/data/shakespeare.txt` is its beginning:

    python recipes/train_clm.py --train_file ../shared/data/tinyshakespeare/input.txt --train_tokenizer 257 \
        --model_config recipes/configs/gma-shakespeare.json --block_size 256 --output_dir runs/gma-shakespeare \
        --max_steps 1000 --per_device_train_batch_size 8 --per_device_eval_batch_size 16 --learning_rate 2e-3 \
        --lr_scheduler_type cosine --warmup_steps 100 --weight_decay 0.1 --adam_beta2 0.99 --seed 0 \
        --eval_strategy steps --eval_steps 250 --save_strategy steps --save_steps 250 --save_total_limit 1 \
        --report_to none

Other text: a data set of the Hub by its name, or files; another tokenizer; another architecture:

    python recipes/train_clm.py --dataset_name Salesforce/wikitext --dataset_config_name wikitext-103-raw-v1 \
        --tokenizer_name openai-community/gpt2 --model_type gpt2 --output_dir runs/gpt2-wikitext103
    python recipes/train_clm.py --train_file train.txt --validation_file valid.txt --train_tokenizer 8000 \
        --model_config my_config.json --output_dir runs/mine

Run again with the same `--output_dir`, training goes on from its last checkpoint. Fine-tune a checkpoint by
`--model_name_or_path`. All of `transformers.TrainingArguments` are accepted; `--help` lists everything.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import gma_hf  # noqa: F401  (makes the Auto classes know the model type "gma")


END_OF_TEXT = "<|endoftext|>"


@dataclass
class ModelArguments:
    """Which model is trained, and which tokenizer it reads with."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from."})
    model_type: str = field(
        default="gma", metadata={"help": "Architecture to train from scratch, as AutoConfig names it."}
    )
    model_config: str | None = field(
        default=None, metadata={"help": "Config arguments of a model from scratch: a JSON file or a JSON text."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer; the checkpoint's own by default."})
    train_tokenizer: int | None = field(
        default=None, metadata={"help": "Train a byte-level BPE of so many entries (257: bytes alone) on the text."}
    )


@dataclass
class DataArguments:
    """Which text is read, and in which pieces."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set of the Hub, or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_file: list[str] | None = field(
        default=None, metadata={"help": "Files to train on: plain text, or parquet, json, csv, tsv."}
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Files to evaluate on, of the same kind."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the characters, at the end, held out where nothing else is."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the data set that holds the text."})
    block_size: int = field(default=256, metadata={"help": "Tokens per training example."})


def load_text(args: DataArguments) -> DatasetDict:
    """The splits "train" and "validation", each with one text column."""
    if (args.dataset_name is None) == (args.train_file is None):
        given = "neither" if args.train_file is None else "both"
        raise ValueError(f"Exactly one of `dataset_name` and `train_file` must be given, but {given} are.")
    if args.dataset_name is not None:
        texts = load_dataset(args.dataset_name, args.dataset_config_name)
    else:
        files = {"train": args.train_file, "validation": args.validation_file}
        missing = [path for paths in files.values() for path in paths or [] if not Path(path).is_file()]
        if missing:
            raise ValueError(f"`train_file` and `validation_file` must be files, but {missing[0]!r} is none.")
        files = {split: paths for split, paths in files.items() if paths is not None}
        texts = load_files(files)
    if args.text_column not in texts["train"].column_names:
        raise ValueError(
            f"`text_column` must be one of {texts['train'].column_names}, but it is {args.text_column!r}."
        )
    if "validation" not in texts:
        texts["train"], texts["validation"] = hold_out_end(texts["train"], args.text_column, args.validation_fraction)
    return texts


def load_files(files: dict[str, list[str]]) -> DatasetDict:
    """Plain text, or tables by the ending of their names: .parquet, .json, .jsonl, .csv, .tsv."""
    ending = Path(files["train"][0]).suffix
    match ending:
        case ".parquet":
            return load_dataset("parquet", data_files=files)
        case ".json" | ".jsonl":
            return load_dataset("json", data_files=files)
        case ".csv" | ".tsv":
            return load_dataset("csv", data_files=files, sep="\t" if ending == ".tsv" else ",")
        case _:
            return load_dataset("text", data_files=files, keep_linebreaks=True)


def hold_out_end(texts: Dataset, column: str, fraction: float) -> tuple[Dataset, Dataset]:
    """Splits off the rows that hold the last `fraction` of all characters."""
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must be between 0 and 1, but it is {fraction}.")
    lengths = [len(text) for text in texts[column]]
    seen, first_held_out = 0, 0
    while seen < (1 - fraction) * sum(lengths):
        seen += lengths[first_held_out]
        first_held_out += 1
    return texts.select(range(first_held_out)), texts.select(range(first_held_out, len(texts)))


def load_tokenizer(args: ModelArguments, texts: Dataset, column: str) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or one trained on `texts`."""
    if args.train_tokenizer is not None:
        if args.train_tokenizer < 257:
            raise ValueError(
                f"`train_tokenizer` must be at least 257 (the bytes and {END_OF_TEXT}), but it is "
                f"{args.train_tokenizer}."
            )
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(texts[column], vocab_size=args.train_tokenizer, special_tokens=[END_OF_TEXT])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer._tokenizer,
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            padding_side="left",
            model_input_names=["input_ids", "attention_mask"],
        )
    name = args.tokenizer_name or args.model_name_or_path
    if name is None:
        raise ValueError("One of `tokenizer_name`, `train_tokenizer` and `model_name_or_path` must be given.")
    return AutoTokenizer.from_pretrained(name)


def load_model(args: ModelArguments, tokenizer: PreTrainedTokenizerBase):  # noqa: ANN201
    """The checkpoint that is named, or a model from scratch with the vocabulary of the tokenizer."""
    if args.model_name_or_path is not None:
        return AutoModelForCausalLM.from_pretrained(args.model_name_or_path)
    choices = {}
    if args.model_config is not None:
        path = Path(args.model_config)
        is_text = args.model_config.lstrip().startswith("{")
        choices = json.loads(args.model_config if is_text else path.read_text(encoding="utf-8"))
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(args.model_type, **{"vocab_size": len(tokenizer), **tokens, **choices})
    return AutoModelForCausalLM.from_config(config)


def make_blocks(texts: DatasetDict, column: str, tokenizer: PreTrainedTokenizerBase, block_size: int) -> DatasetDict:
    """Tokens of each split, one text after another, in blocks of `block_size`; a last, shorter block of every
    100,000 texts is left out."""

    def tokenize(batch: dict) -> dict:
        return {"input_ids": tokenizer(batch[column], verbose=False)["input_ids"]}

    def group(batch: dict) -> dict:
        tokens = [token for text in batch["input_ids"] for token in text]
        usable = len(tokens) // block_size * block_size
        blocks = [tokens[start : start + block_size] for start in range(0, usable, block_size)]
        return {"input_ids": blocks, "labels": blocks}

    blocks = DatasetDict()
    for split in ("train", "validation"):
        tokens = texts[split].map(
            tokenize, batched=True, remove_columns=texts[split].column_names, desc=f"Tokenize {split}"
        )
        blocks[split] = tokens.map(group, batched=True, batch_size=100_000, desc=f"Blocks of {block_size}, {split}")
        if len(blocks[split]) == 0:
            raise ValueError(
                f"`block_size` must leave at least one block in each split, but {block_size} leaves none in {split}."
            )
    return blocks


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and saves; returns the metrics of the evaluation, with the perplexity."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(arguments)
    training_args.prediction_loss_only = True
    set_seed(training_args.seed)

    texts = load_text(data_args)
    tokenizer = load_tokenizer(model_args, texts["train"], data_args.text_column)
    model = load_model(model_args, tokenizer)
    blocks = make_blocks(texts, data_args.text_column, tokenizer, data_args.block_size)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    checkpoint = training_args.resume_from_checkpoint or get_last_checkpoint(training_args.output_dir)
    result = trainer.train(resume_from_checkpoint=checkpoint)
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
