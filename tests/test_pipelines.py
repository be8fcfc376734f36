"""The pipelines of Transformers: a batch of texts of unequal length gives what each gives alone, without a warning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline
from transformers.utils import logging

import gma_hf


CARDS = Path(__file__).parents[1] / "model_cards"
TOKENIZERS = {"causal": CARDS / "gma-shakespeare", "bidirectional": CARDS / "gma-minilm-l6"}
TEXTS = ["Speak.", "You are all resolved rather to die than to famish?", "First, you know"]
TASKS = [
    ("text-generation", "GMAForCausalLM", "causal"),
    ("text-generation", "GMAForCausalLM", "causal_hybrid_additions"),
    ("fill-mask", "GMAForMaskedLM", "bidirectional_conv"),
    ("fill-mask", "GMAForMaskedLM", "bidirectional_hybrid"),
    ("text-classification", "GMAForSequenceClassification", "bidirectional_conv"),
    ("text-classification", "GMAForSequenceClassification", "causal_additions"),
    ("token-classification", "GMAForTokenClassification", "bidirectional_conv"),
    ("token-classification", "GMAForTokenClassification", "causal_additions"),
    ("feature-extraction", "GMAModel", "bidirectional_conv"),
    ("feature-extraction", "GMAModel", "causal_additions"),
]


@pytest.fixture
def warned(caplog):
    """The warnings and errors that Transformers has logged."""
    logging.enable_propagation()
    yield lambda: [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    logging.disable_propagation()


@pytest.fixture
def save(make_config, make_model, tmp_path):
    """`save(head, name)`: a folder with a model and its tokenizer."""

    def save(head: str, name: str) -> str:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS[name.partition("_")[0]])
        tokenizer.padding_side = "left" if head == "GMAForCausalLM" else "right"  # token numbers count the padding
        config = make_config(name, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        make_model(getattr(gma_hf, head), config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def assert_same(actual, expected):
    """Nested lists and dicts: numbers within rounding, all else alike."""
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, float | np.floating):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-5)
    else:
        assert actual == expected


@pytest.mark.parametrize(("task", "head", "name"), TASKS)
def test_a_batch_gives_what_each_text_gives_alone(save, warned, task, head, name):
    pipe = pipeline(task, save(head, name))
    assert type(pipe.model) is getattr(gma_hf, head)
    texts = [f"{text} {pipe.tokenizer.mask_token}." for text in TEXTS] if task == "fill-mask" else TEXTS
    choices = {"max_new_tokens": 12, "do_sample": False} if task == "text-generation" else {}
    alone = [pipe(text, **choices) for text in texts]
    together = pipe(texts, batch_size=len(texts), **choices)
    if task == "feature-extraction":  # which leaves the padding in
        lengths = [len(pipe.tokenizer(text)["input_ids"]) for text in texts]
        assert len({len(features[0]) for features in together}) == 1
        together = [[features[0][:length]] for features, length in zip(together, lengths)]
        assert [len(features[0]) for features in alone] == lengths
    elif task == "text-classification":
        alone = [answer for (answer,) in alone]
    assert_same(together, alone)
    assert warned() == []


def test_a_model_without_the_head_of_a_pipeline_is_warned_of(save, warned):
    """As the test above would see it."""
    pipe = pipeline("text-generation", save("GMAForCausalLM", "causal"))
    pipeline("text-classification", pipe.model, tokenizer=pipe.tokenizer)
    assert any("is not supported for text-classification" in message for message in warned())


@torch.no_grad()
def test_question_answering_without_a_pipeline(save, assert_close):
    """Transformers 5 has none; the model gives the same answers alone and in a batch."""
    folder = save("GMAForQuestionAnswering", "bidirectional_conv")
    with pytest.raises(KeyError, match="question-answering has been removed"):
        pipeline("question-answering", folder)
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    questions, contexts = ["Who?", "What is it?", "Where?"], TEXTS
    together = model(**tokenizer(questions, contexts, padding=True, return_tensors="pt"))
    for row, (question, context) in enumerate(zip(questions, contexts)):
        alone = model(**tokenizer(question, context, return_tensors="pt"))
        for name in ("start_logits", "end_logits"):
            assert_close(together[name][row, : alone[name].shape[1]], alone[name][0], 1e-4, name)
