"""torchao: weights in int8, by `from_pretrained` and on a live model."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig


pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def perplexity(shakespeare, text):
    """`perplexity(model)` of the first characters of the text sample."""
    ids = AutoTokenizer.from_pretrained(shakespeare)(text[:4096], return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def measure(model: torch.nn.Module) -> float:
        return math.exp(model(ids, labels=ids).loss)

    return measure


@pytest.fixture(scope="module")
def quantized(shakespeare):
    from torchao.quantization import Int8WeightOnlyConfig

    return AutoModelForCausalLM.from_pretrained(shakespeare, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))


def test_perplexity_stays(shakespeare, quantized, perplexity):
    before, after = perplexity(AutoModelForCausalLM.from_pretrained(shakespeare)), perplexity(quantized)
    assert before != after
    assert after == pytest.approx(before, rel=5e-3)


def test_what_is_int8_and_what_is_not(quantized):
    for layer in quantized.model.layers:
        attention, mlp = layer.attention, layer.mlp
        for linear in (attention.qkv_proj, attention.o_proj, mlp.up_proj, mlp.down_proj):
            assert linear.weight.qdata.dtype == torch.int8
        assert {type(parameter) for parameter in attention.mixture.parameters()} == {torch.nn.Parameter}
        assert {parameter.dtype for parameter in attention.mixture.parameters()} == {torch.float32}


def test_generates(shakespeare, quantized):
    inputs = AutoTokenizer.from_pretrained(shakespeare)("ROMEO:\n", return_tensors="pt")
    choices = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(
        quantized.generate(**inputs, **choices), quantized.generate(**inputs, **choices, use_cache=False)
    )


def test_a_live_model(shakespeare, quantized, perplexity):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = AutoModelForCausalLM.from_pretrained(shakespeare)

    def is_quantized(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and name != "lm_head"

    quantize_(model, Int8WeightOnlyConfig(), is_quantized)
    assert perplexity(model) == pytest.approx(perplexity(quantized), rel=1e-5)
