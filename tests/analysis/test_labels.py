"""Categories of tokens, for the vocabularies of GPT-2, BERT and bytes."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gma_hf.analysis.labels import (
    LENGTHS,
    POSITIONS,
    SURFACE_FORMS,
    frequency_bands,
    lengths,
    position_bands,
    surface_form,
    surface_forms,
    token_texts,
)


CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize(
    ("text", "starts_word", "form"),
    [
        (" the", True, "stop word"),
        ("the", False, "continuation"),
        (" NASA", True, "upper case"),
        (" Rome", True, "capitalised"),
        (" I", True, "stop word"),
        (" river", True, "word start"),
        ("ing", False, "continuation"),
        (" 1905", True, "digits"),
        ("...", False, "punctuation"),
        (" \n", False, "white space"),
        ("3rd", False, "continuation"),
        ("²½", False, "other"),
    ],
)
def test_surface_forms(text, starts_word, form):
    assert surface_form(text, False, starts_word) == form
    assert surface_form(text, True, starts_word) == "special"


def test_of_characters_and_of_word_pieces():
    characters = AutoTokenizer.from_pretrained(CARDS / "gma-shakespeare")
    of_entries = surface_forms(characters, token_texts(characters))
    forms = {text: SURFACE_FORMS[of_entries[characters(text)["input_ids"][0]]] for text in "aZ7,\n "}
    assert forms == {"a": "continuation", "Z": "capitalised", "7": "digits", ",": "punctuation"} | {
        "\n": "white space",
        " ": "white space",
    }
    pieces = AutoTokenizer.from_pretrained(CARDS / "gma-minilm-l6")
    texts = token_texts(pieces)
    kinds = surface_forms(pieces, texts)
    of = {
        entry: SURFACE_FORMS[kinds[pieces.convert_tokens_to_ids(entry)]]
        for entry in ("the", "##ing", "[CLS]", "river")
    }
    assert of == {"the": "stop word", "##ing": "continuation", "[CLS]": "special", "river": "word start"}
    assert LENGTHS[lengths(texts)[pieces.convert_tokens_to_ids("##ing")]] == "3 characters"


def test_frequencies_and_positions():
    bands = frequency_bands(np.array([0, 50, 1, 24, 25]))
    assert bands.tolist() == [3, 0, 3, 3, 2]
    assert [POSITIONS[band] for band in position_bands(16)] == ["first eighth"] * 2 + ["second eighth"] * 2 + [
        "second quarter"
    ] * 4 + ["second half"] * 8


@pytest.mark.parametrize("name", ["gma-shakespeare", "gma-wikitext2", "gma-minilm-l6"])
def test_texts_of_tokens_make_the_text(name):
    """Word pieces are put together as words, whatever marks them."""
    tokenizer = AutoTokenizer.from_pretrained(CARDS / name)
    texts = token_texts(tokenizer)
    ids = tokenizer("the great rift valley, photosynthesised", add_special_tokens=False)["input_ids"]
    assert "".join(texts[index] for index in ids).replace(" ,", ",").strip() == tokenizer.decode(ids).strip()


def test_a_vocabulary_with_holes():
    vocabulary = {"a": 0, "Ġthe": 3}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[])
    holed = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))
    holed.add_tokens(["B"])
    texts = token_texts(holed)
    assert len(surface_forms(holed, texts)) == len(lengths(texts)) == len(holed)
