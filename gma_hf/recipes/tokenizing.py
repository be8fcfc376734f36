"""Tokenizers: one that is named, or one trained on the text of a recipe."""

from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .arguments import TokenizerArguments
from .models import opened
from .running import train_extra


with train_extra():
    from datasets import Dataset


END_OF_TEXT = "<|endoftext|>"  # of causal models
PAD, CLS, MASK, UNKNOWN = SPECIAL = ["[PAD]", "[CLS]", "[MASK]", "[UNK]"]
BYTES = 256 + len(SPECIAL)


def load_tokenizer(args: TokenizerArguments, texts: Dataset, column: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer that is named, or one trained on `texts`."""
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
    return named_tokenizer(args)


def named_tokenizer(args: TokenizerArguments) -> PreTrainedTokenizerBase:
    """Return the tokenizer that is named, else the checkpoint's own."""
    name = args.tokenizer_source()
    if name is None:
        raise ValueError(
            "`tokenizer_name` or `train_tokenizer` must be given where no checkpoint is, but both are None."
        )
    return opened(AutoTokenizer, name, "tokenizer_name" if args.tokenizer_name else "model_name_or_path")


def load_encoder_tokenizer(args: TokenizerArguments, texts: Dataset, column: str = "text") -> PreTrainedTokenizerBase:
    """Return the tokenizer that is named, or a byte-level BPE trained on `texts` (260: bytes alone)."""
    if args.train_tokenizer is None:
        return named_tokenizer(args)
    if args.train_tokenizer < BYTES:
        raise ValueError(
            f"`train_tokenizer` must be at least {BYTES} (the bytes and {', '.join(SPECIAL)}), but it is "
            f"{args.train_tokenizer}."
        )
    tokenizer = ByteLevelBPETokenizer()
    texts = texts[column] if args.train_tokenizer > BYTES else []
    tokenizer.train_from_iterator(texts, vocab_size=args.train_tokenizer, special_tokens=SPECIAL)
    return finished(tokenizer._tokenizer)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per word of a fixed list, between white space."""
    entries = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return finished(tokenizer)


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    """Return the tokenizer with [CLS] in front of every text, and the names of the special tokens."""
    special = [(CLS, tokenizer.token_to_id(CLS))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A", pair=f"{CLS} $A {CLS} $B", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        cls_token=CLS,
        mask_token=MASK,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )
