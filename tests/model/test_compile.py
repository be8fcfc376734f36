"""`torch.compile(fullgraph=True)`: the whole forward as one graph, and decoding without a new graph at each step."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import DynamicCache, StaticCache

from gma_hf import GMAForCausalLM, GMAForMaskedLM


pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="this torch cannot trace Transformers' outputs and caches"
)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def compiled(model):
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("name", ["causal", "causal_additions", "bidirectional"])
def test_a_training_step_is_one_graph(make_config, make_model, random_rows, assert_close, name, masked):
    head = GMAForMaskedLM if name == "bidirectional" else GMAForCausalLM
    model, ids = make_model(head, make_config(name)), torch.stack(random_rows([21, 21]))
    mask = torch.ones_like(ids).index_fill(1, torch.arange(3), 0) if masked else None
    losses = [f(input_ids=ids, attention_mask=mask, labels=ids).loss for f in (model, compiled(model))]
    assert_close(losses[1], losses[0], 1e-6)
    parameters = dict(model.named_parameters())
    gradients = [torch.autograd.grad(loss, list(parameters.values())) for loss in losses]
    for key, eager, graph in zip(parameters, *gradients, strict=True):
        assert_close(graph, eager, 1e-4, key, at_least=1e-3)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["causal", "causal_additions", "causal_hybrid", "causal_hybrid_additions"])
@torch.no_grad()
def test_decoding_does_not_compile_at_each_step(make_config, make_model, random_rows, assert_close, name, kind):
    model, ids = make_model(GMAForCausalLM, make_config(name)), torch.stack(random_rows([40, 40]))
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=40)
    model(ids[:, :10], past_key_values=cache)
    step = compiled(model)
    for token in range(10, 40):
        place = torch.full((2, 1), token)
        logits = step(input_ids=ids[:, token : token + 1], position_ids=place, past_key_values=cache).logits
    assert_close(logits, model(ids, use_cache=False).logits[:, -1:], 1e-4)
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles for a CPU with g++")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # Inductor does it
@torch.no_grad()
def test_a_step_by_the_default_backend(make_config, make_model, random_rows, assert_close):
    model = make_model(GMAForCausalLM, make_config("causal_additions", num_hidden_layers=1))
    ids, cache = torch.stack(random_rows([21, 21])), DynamicCache(config=model.config)
    model(ids[:, :20], past_key_values=cache)
    logits = torch.compile(model, fullgraph=True)(input_ids=ids[:, 20:], past_key_values=cache).logits
    assert_close(logits, model(ids, use_cache=False).logits[:, -1:], 1e-4)


@pytest.mark.parametrize("name", ["causal", "causal_hybrid"])
def test_generation_with_a_compiled_forward(make_config, make_model, random_rows, name):
    model, ids = make_model(GMAForCausalLM, make_config(name)), torch.stack(random_rows([12, 12]))
    choices = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **choices)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert torch.equal(model.generate(ids, **choices), expected)
