"""Checkpoints and states that version 0.1.0 wrote open for ever, and give what they gave."""

import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from gma_hf import GMAState
from gma_hf.model.compat_gma import CACHE_NAME


WRITTEN = Path(__file__).parent / "data" / "version-0.1.0"
HEADS = {
    "causal": "CausalLM",
    "causal_additions": "CausalLM",
    "causal_hybrid": "SequenceClassification",
    "causal_hybrid_additions": "CausalLM",
    "causal_sliding": "CausalLM",
    "bidirectional": "MaskedLM",
    "bidirectional_conv": "TokenClassification",
    "bidirectional_hybrid": "QuestionAnswering",
}
GENERATED = 16
DECODERS = [name for name, head in HEADS.items() if head == "CausalLM"]


of_all = pytest.mark.parametrize("name", HEADS)
of_decoders = pytest.mark.parametrize("name", DECODERS)


@pytest.fixture
def model(name):
    return getattr(transformers, f"AutoModelFor{HEADS[name]}").from_pretrained(WRITTEN / name).eval()


@pytest.fixture
def expected(name):
    return load_file(WRITTEN / name / "expected.safetensors")


def inputs_of(expected):
    return {key: expected[key] for key in ("input_ids", "attention_mask")}


@of_all
@torch.no_grad()
def test_it_gives_the_logits_it_gave(assert_close, model, expected):
    output = model(**inputs_of(expected))
    for key in [key for key in expected if key.endswith("logits")]:
        real = expected["attention_mask"].bool() if output[key].shape[:2] == (2, 23) else slice(None)
        assert_close(output[key][real], expected[key][real], 1e-5)


@of_decoders
def test_it_generates_what_it_generated(name, model, expected):
    tokens = model.generate(**inputs_of(expected), max_new_tokens=GENERATED, do_sample=False)
    assert torch.equal(tokens, expected["greedy"])


@of_decoders
@torch.no_grad()
def test_a_state_it_saved_goes_on(name, assert_close, model, expected):
    cache = GMAState.load(WRITTEN / name / "after_12_tokens.state").to_cache(model)
    mask = expected["attention_mask"]
    output = model(expected["input_ids"][:, 12:], attention_mask=mask, **{CACHE_NAME: cache})
    assert_close(output.logits, expected["logits"][:, 12:], 1e-4)


@of_all
def test_it_opens_beside_its_own_code_too(name, assert_close, model, tmp_path):
    """As pulled from the Hub, with the code of then; this package takes its own."""
    for file in (WRITTEN / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with zipfile.ZipFile(WRITTEN / "code.zip") as code:
        code.extractall(tmp_path)
    opened = getattr(transformers, f"AutoModelFor{HEADS[name]}").from_pretrained(tmp_path)
    assert type(opened) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(opened.state_dict()[key], value), key
