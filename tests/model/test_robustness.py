"""Inputs at the edge give finite outputs, and wrong inputs one sentence that says what is wrong."""

import re
import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from gma_hf import GMAForCausalLM, GMAForMaskedLM, GMAModel
from gma_hf.model.compat_gma import CACHE_NAME


CAUSAL = ["causal", "causal_additions", "causal_hybrid"]
BIDIRECTIONAL = ["bidirectional", "bidirectional_conv", "bidirectional_hybrid"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def base(make_config, make_model):
    def make(name, dtype=torch.float32, **overrides):
        return make_model(GMAModel, make_config(name, **overrides)).to(dtype)

    return make


def assert_finite_with_gradients(model, *arguments, **kwargs):
    output = model(*arguments, **kwargs).last_hidden_state
    assert output.isfinite().all()
    output.float().square().mean().backward()
    for key, parameter in model.named_parameters():
        if key == "embeddings.word_embeddings.weight" and "inputs_embeds" in kwargs:
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 19])
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
def test_a_row_of_padding_only(base, name, length, dtype):
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1] = 0
    assert_finite_with_gradients(base(name, dtype), torch.randint(1, 61, (3, length)), attention_mask=mask)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_row_of_padding_only_can_go_on(base, name):
    model, mask = base(name), torch.ones(2, 12, dtype=torch.long)
    mask[1, :9] = 0
    ids = torch.randint(1, 61, (2, 12))
    cache = model(ids[:, :9], attention_mask=mask[:, :9])[CACHE_NAME]
    continued = model(ids[:, 9:], attention_mask=mask, past_key_values=cache).last_hidden_state
    torch.testing.assert_close(continued[1:], model(ids[1:, 9:]).last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
def test_one_token(base, name, dtype):
    assert_finite_with_gradients(base(name, dtype), torch.tensor([[5]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
def test_identical_tokens(base, name, dtype):
    assert_finite_with_gradients(base(name, dtype), torch.full((2, 100), 7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
def test_large_inputs(base, name, dtype):
    torch.manual_seed(0)
    model = base(name, dtype)
    embeddings = torch.randn(2, 40, model.config.embedding_size).clamp(-3, 3) * 1e4
    embeddings[:, 20:] = 1e4
    if dtype == torch.float16:  # PyTorch's own layer norm has no finite gradient there
        assert model(inputs_embeds=embeddings.to(dtype)).last_hidden_state.isfinite().all()
    else:
        assert_finite_with_gradients(model, inputs_embeds=embeddings.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["causal", "causal_additions", "bidirectional_conv"])
@torch.no_grad()
def test_a_mixer_takes_large_inputs_as_they_are(base, name, dtype):
    """In a post-norm stack nothing normalises what the mixer reads, so that its scores may be huge."""
    mixer = base(name, dtype).layers[0].attention
    largest = 1e3 if dtype == torch.float16 else 1e4  # or a projection of 24 such numbers may leave float16 itself
    spread = 1e3
    if dtype == torch.float16 and mixer.output_gate is not None:
        largest = spread = 30.0  # a product of two such projections leaves float16 sooner
    for hidden_states in (torch.full((1, 40, 24), largest), torch.randn(1, 40, 24) * spread):
        assert mixer(hidden_states.to(dtype)).hidden_states.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["causal", "causal_additions", "bidirectional_conv"])
@torch.no_grad()
def test_many_tokens(base, name, dtype):
    model = base(name, dtype, position_embedding="none", chunk_size=64)
    ids = torch.randint(0, 61, (1, 65_536), generator=torch.Generator().manual_seed(0))
    outputs = model(ids, use_cache=model.config.is_causal)
    assert outputs.last_hidden_state.isfinite().all()
    if model.config.is_causal:
        assert all(layer.state.isfinite().all() for layer in outputs[CACHE_NAME].layers)
        following = model(ids[:, :1], past_key_values=outputs[CACHE_NAME])
        assert following.last_hidden_state.isfinite().all()


def cache_of(make_config, make_model, **overrides):
    model = make_model(GMAModel, make_config("causal", **overrides))
    return model(torch.ones(2, 5, dtype=torch.long))[CACHE_NAME]


def assert_refused(said, function, *arguments, **kwargs):
    with pytest.raises(ValueError) as error:
        function(*arguments, **kwargs)
    message = str(error.value)
    for words in said:
        assert words in message
    assert message.endswith(".") and "\n" not in message and ". " not in message


@pytest.mark.parametrize("shape", [(2, 8), (2, 10), (3, 9), (1, 9)], ids=str)
@pytest.mark.parametrize("name", ["causal", "causal_hybrid", "bidirectional"])
def test_a_mask_of_the_wrong_shape_is_refused(base, name, shape):
    said = ["`attention_mask`", "[2, 9]", str(list(shape))]
    assert_refused(said, base(name), torch.ones(2, 9, dtype=torch.long), attention_mask=torch.ones(shape))


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (2, 9, 9), (9,)], ids=str)
@pytest.mark.parametrize("name", ["causal", "causal_hybrid", "bidirectional"])
def test_a_mask_that_is_not_two_dimensional_is_refused(base, name, shape):
    said = ["`attention_mask`", str(list(shape))]
    assert_refused(said, base(name), torch.ones(2, 9, dtype=torch.long), attention_mask=torch.ones(shape))


def test_a_mask_of_the_new_tokens_only_is_refused_after_a_cache(base):
    model = base("causal")
    cache = model(torch.ones(2, 5, dtype=torch.long))[CACHE_NAME]
    said = ["`attention_mask`", "[2, 8]", "[2, 3]"]
    ids = torch.ones(2, 3, dtype=torch.long)
    assert_refused(said, model, ids, attention_mask=torch.ones(2, 3), past_key_values=cache)


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_more_tokens_than_positions_are_refused(base, name):
    model = base(name, max_position_embeddings=8)
    model(torch.ones(1, 8, dtype=torch.long))
    model(torch.ones(1, 10, dtype=torch.long), attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1, 0]]))
    assert_refused(["`max_position_embeddings`", "8"], model, torch.ones(1, 9, dtype=torch.long))


def test_more_tokens_than_positions_are_refused_after_a_cache(base):
    model = base("causal", max_position_embeddings=8)
    cache = model(torch.ones(1, 8, dtype=torch.long))[CACHE_NAME]
    said = ["`max_position_embeddings`", "8"]
    assert_refused(said, model, torch.ones(1, 1, dtype=torch.long), past_key_values=cache)


def test_a_document_cannot_begin_after_the_past_of_softmax_layers(base):
    model = base("causal_hybrid")
    cache = model(torch.ones(1, 5, dtype=torch.long), use_cache=True)[CACHE_NAME]
    inputs = {"position_ids": torch.tensor([[5, 6, 0, 1]]), "past_key_values": cache}
    assert_refused(["`position_ids`", "softmax"], model, torch.ones(1, 4, dtype=torch.long), **inputs)


@pytest.mark.parametrize(
    "other",
    [
        {"num_hidden_layers": 3},
        {"num_components": 8},
        {"num_attention_heads": 4},
        {"hidden_size": 48},
        {"conv_kernel_size": 4},
        {"layer_types": ["gma", "full_attention"]},
    ],
    ids=str,
)
def test_a_cache_of_another_config_is_refused(make_config, make_model, base, other):
    cache = cache_of(make_config, make_model, **other)
    assert_refused([f"`{CACHE_NAME}`"], base("causal"), torch.ones(2, 1, dtype=torch.long), past_key_values=cache)


@pytest.mark.parametrize("kernel_size", [0, 3, 5])
def test_a_cache_of_another_convolution_is_refused(make_config, make_model, base, kernel_size):
    model, cache = base("causal", conv_kernel_size=4), cache_of(make_config, make_model, conv_kernel_size=kernel_size)
    assert_refused([f"`{CACHE_NAME}`"], model, torch.ones(2, 1, dtype=torch.long), past_key_values=cache)


def test_a_cache_of_another_routing_width_is_refused(make_config, make_model, base):
    """The tail of the convolution holds queries and keys."""
    cache = cache_of(make_config, make_model, conv_kernel_size=4, routing_dim=5)
    ids = torch.ones(2, 1, dtype=torch.long)
    assert_refused([f"`{CACHE_NAME}`"], base("causal", conv_kernel_size=4), ids, past_key_values=cache)


def test_a_cache_of_another_batch_is_refused(make_config, make_model, base):
    cache, ids = cache_of(make_config, make_model), torch.ones(3, 1, dtype=torch.long)
    assert_refused([f"`{CACHE_NAME}`", "3", "2"], base("causal"), ids, past_key_values=cache)


@pytest.mark.parametrize("name", ["causal", "causal_hybrid"])
@torch.no_grad()
def test_an_empty_cache_without_a_config_will_do(make_config, make_model, name):
    """As people make it for other models."""
    model, ids = make_model(GMAForCausalLM, make_config(name)), torch.ones(2, 3, dtype=torch.long)
    cache = DynamicCache()
    model(ids[:, :2], past_key_values=cache)
    actual, expected = model(ids[:, 2:], past_key_values=cache).logits, model(ids).logits[:, 2:]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    choices = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **{CACHE_NAME: DynamicCache()}, **choices), model.generate(ids, **choices))


@pytest.mark.parametrize("held", ["sliding_attention", "full_attention"])
def test_a_cache_of_another_softmax_layer_is_refused(make_config, make_model, base, held):
    wanted = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}[held]
    ids = torch.ones(2, 5, dtype=torch.long)
    cache = base("causal", layer_types=["gma", held], sliding_window=3)(ids)[CACHE_NAME]
    model = base("causal", layer_types=["gma", wanted], sliding_window=3)
    assert_refused([f"`{CACHE_NAME}`"], model, ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("overrides", [{"num_attention_heads": 4}, {"hidden_size": 12, "num_attention_heads": 1}])
def test_a_cache_of_another_softmax_size_is_refused(base, overrides):
    layer_types, ids = ["full_attention"] * 2, torch.ones(2, 5, dtype=torch.long)
    cache = base("causal", layer_types=layer_types, **overrides)(ids)[CACHE_NAME]
    assert_refused([f"`{CACHE_NAME}`"], base("causal", layer_types=layer_types), ids[:, :1], past_key_values=cache)


def test_a_cache_of_another_kind_is_refused(base):
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert_refused([f"`{CACHE_NAME}`"], base("causal"), torch.ones(2, 1, dtype=torch.long), past_key_values=cache)


def test_a_refused_cache_is_left_as_it_was(make_config, make_model, base):
    cache = cache_of(make_config, make_model, num_components=8)
    before = [layer.state.clone() for layer in cache.layers]
    with pytest.raises(ValueError):
        base("causal")(torch.ones(2, 1, dtype=torch.long), past_key_values=cache)
    assert cache.get_seq_length() == 5
    assert all(torch.equal(layer.state, state) for layer, state in zip(cache.layers, before))


@pytest.mark.parametrize("head", [GMAForCausalLM, GMAModel])
def test_both_or_neither_of_ids_and_embeddings_are_refused(make_config, make_model, head):
    model = make_model(head, make_config("causal"))
    ids = torch.ones(1, 3, dtype=torch.long)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": torch.randn(1, 3, 24)}):
        assert_refused(["`input_ids`", "`inputs_embeds`"], model, **inputs)


def test_no_token_at_all_is_refused(base):
    assert_refused(["`input_ids`", "at least one token", "[2, 0]"], base("causal"), torch.ones(2, 0, dtype=torch.long))


@pytest.mark.parametrize("borders", [[0, 3], [1, 6], [0, 4, 2, 6], [0, 3, 3, 6]], ids=str)
def test_borders_that_do_not_fit_are_refused(base, borders):
    ids, borders = torch.ones(1, 6, dtype=torch.long), torch.tensor(borders, dtype=torch.int32)
    assert_refused(["`cu_seq_lens_q`", "6"], base("causal"), ids, cu_seq_lens_q=borders)
    assert_refused(["`cu_seq_lens_q`", "2 rows"], base("causal"), ids.expand(2, 6), cu_seq_lens_q=borders)


@pytest.mark.parametrize("head", [GMAForMaskedLM, GMAModel])
def test_a_cache_in_a_bidirectional_model_is_refused(make_config, make_model, head):
    model = make_model(head, make_config("bidirectional"))
    cache = DynamicCache(config=model.config)
    assert_refused([f"`{CACHE_NAME}`"], model, torch.ones(1, 3, dtype=torch.long), past_key_values=cache)


def test_importing_the_package_prints_and_warns_nothing():
    command = [sys.executable, "-W", "error", "-c", "import gma_hf"]
    process = subprocess.run(command, capture_output=True, text=True)
    noise = "torchao|torch/utils/_pytree|_cleanup|_warnings|ResourceWarning"  # of libraries that are merely installed
    own = [line for line in process.stderr.splitlines() if not re.search(noise, line)]
    assert (process.returncode, process.stdout, own) == (0, "", [])
