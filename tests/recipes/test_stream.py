"""The recipe as its user runs it: pieces come while the model still writes, and together are what it wrote."""

import threading
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gma_hf import GMAForCausalLM
from gma_hf.recipes import stream


ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_cards" / "gma-shakespeare"


@pytest.fixture(scope="module")
def opened():
    return AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)


def test_pieces_come_while_the_model_writes(opened):
    model, tokenizer = opened
    inputs = tokenizer("ROMEO:\n", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, 7:])

    has_come, calls, waited = threading.Event(), [], []

    def wait(module, inputs):
        calls.append(1)
        if len(calls) == 40:  # by then there are whole words, and the model goes on once one has come
            waited.append(has_come.wait(timeout=30))

    handle = model.register_forward_pre_hook(wait)
    pieces = []
    for piece in stream.stream(model, tokenizer, "ROMEO:\n", max_new_tokens=60, do_sample=False):
        pieces.append(piece)
        if piece:
            has_come.set()
    handle.remove()
    assert waited == [True]
    assert "".join(pieces) == expected


def test_closing_it_ends_the_writing(opened):
    """As Ctrl-C does, which would wait for the last token otherwise."""
    calls = []
    handle = opened[0].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    pieces = stream.stream(*opened, "ROMEO:\n", max_new_tokens=2000, do_sample=False)
    next(pieces)
    pieces.close()
    handle.remove()
    assert len(calls) < 1000


def test_it_ends_at_the_last_position(make_config, make_model, opened):
    model = make_model(GMAForCausalLM, make_config("causal", vocab_size=len(opened[1]), max_position_embeddings=20))
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    assert "".join(stream.stream(model, opened[1], "ROMEO:\n", max_new_tokens=50, do_sample=False))
    assert len(calls) == 20 - len(opened[1]("ROMEO:\n")["input_ids"])


def test_an_error_of_the_thread_comes_out(opened):
    with pytest.raises(ValueError, match="`max_new_tokens` must be greater than 0"):
        list(stream.stream(*opened, "ROMEO:\n", max_new_tokens=-1))


def test_command(capsys):
    stream.main(["--prompt", "JULIET:\n", "--max_new_tokens", "20"])
    assert len(capsys.readouterr().out) == 21
    stream.main(["--prompt", "JULIET:\n", "--max_new_tokens", "20", "--device", "cpu", "--dtype", "bfloat16"])
    assert len(capsys.readouterr().out) == 21
