"""Categories of tokens: what a token looks like, how long and how frequent it is."""

import unicodedata

import numpy as np
from transformers import PreTrainedTokenizerBase


SURFACE_FORMS = ["special", "white space", "digits", "punctuation", "stop word", "upper case", "capitalised"]
SURFACE_FORMS += ["word start", "continuation", "other"]
LENGTHS = ["1 character", "2 characters", "3 characters", "4 to 5 characters", "6 or more characters"]
FREQUENCY_BANDS = ["most frequent quarter", "second quarter", "third quarter", "rarest quarter"]
POSITIONS = ["first eighth", "second eighth", "second quarter", "second half"]  # of the sequences that are read
# What marks the first token of a word in the vocabularies of GPT-2, SentencePiece, and BERT (which marks the others)
WORD_START, NOT_WORD_START = ("Ġ", "▁"), "##"
NO_CHARACTER = "\ufffd"  # what a byte that is no whole character is decoded as
STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being but by can could did do does for
    from had has have he her here him his how i if in into is it its me more most my no nor not of on one only
    or other our out over own s she should so some such t than that the their them then there these they this
    those through to too under until up very was we were what when where which while who whom why will with
    would you your
    """.split()  # noqa: SIM905
)


def surface_form(text: str, is_special: bool, starts_word: bool) -> str:
    """
    One of `SURFACE_FORMS`, the first that fits. A vocabulary of bytes or characters does not mark where words start:
    there its lower-case letters are all "continuation".

    Args:
        text: of the token, white space included.
        is_special: whether it is no text, as padding or the end of a text.
        starts_word: whether the vocabulary marks it as the first of a word.
    """
    if is_special:
        return "special"
    word = text.strip()
    if not word:
        return "white space"
    if word.isdigit():
        return "digits"
    if NO_CHARACTER in word:
        return "other"
    if all(unicodedata.category(character)[0] in "PS" for character in word):
        return "punctuation"
    if not any(character.isalpha() for character in word):
        return "other"
    if starts_word and word.lower() in STOP_WORDS:
        return "stop word"
    if len(word) > 1 and word.isupper():
        return "upper case"
    if word[0].isupper():
        return "capitalised"
    return "word start" if starts_word else "continuation"


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each entry of the vocabulary, with white space before what starts a word."""
    starts, special = _starts_word(tokenizer), set(tokenizer.all_special_ids)
    texts = []
    for index, starts_word in enumerate(starts):
        text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
        if index not in special:
            text = text.removeprefix(NOT_WORD_START)
            if starts_word and not text[:1].isspace():  # which BERT and SentencePiece leave out
                text = " " + text
        texts.append(text)
    return texts


def _starts_word(tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Of each entry of the vocabulary, by its mark."""
    entries = [entry or "" for entry in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]  # there may be holes
    marks_inner = any(entry.startswith(NOT_WORD_START) for entry in entries)
    return [not entry.startswith(NOT_WORD_START) if marks_inner else entry.startswith(WORD_START) for entry in entries]


def surface_forms(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """Index into `SURFACE_FORMS` of each entry of the vocabulary, whose `token_texts` are `texts`."""
    special = set(tokenizer.all_special_ids)
    forms = [
        surface_form(text, index in special, starts_word)
        for index, (text, starts_word) in enumerate(zip(texts, _starts_word(tokenizer)))
    ]
    return np.array([SURFACE_FORMS.index(form) for form in forms])


def lengths(texts: list[str]) -> np.ndarray:
    """Index into `LENGTHS` of each token, without the white space around it."""
    return np.digitize([len(text.strip()) for text in texts], [2, 3, 4, 6])


def frequency_bands(counts: np.ndarray) -> np.ndarray:
    """
    Index into `FREQUENCY_BANDS` of each entry of the vocabulary: the most frequent entries that make up a quarter of
    the text, and so on.

    Args:
        counts: how often each entry occurs.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    bands = np.empty(len(counts), dtype=np.int64)
    bands[order] = np.minimum(4 * before // max(counts.sum(), 1), 3)
    return bands


def position_bands(length: int) -> np.ndarray:
    """Index into `POSITIONS` of each place in a sequence of this length."""
    return np.digitize(np.arange(length) / length, [1 / 8, 1 / 4, 1 / 2])
