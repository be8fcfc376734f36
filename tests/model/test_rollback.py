"""A cache that goes back: exactly to where it was, and assisted decoding, which stands on that."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache

from gma_hf import GMAForCausalLM
from gma_hf.model.cache_gma import is_gma, record_past
from gma_hf.model.compat_gma import CACHE_NAME


NAMES = ["causal", "causal_additions", "causal_hybrid", "causal_hybrid_additions"]
ROOT = Path(__file__).parents[2]


def recording(model):
    cache = DynamicCache(config=model.config)
    record_past(cache, model.config)
    return cache


def take_back(cache, tokens):
    """`cache.crop(-tokens)`; of 0, the softmax layers of some releases of Transformers would keep nothing."""
    for layer in cache.layers:
        if tokens or is_gma(layer):
            layer.crop(-tokens)


def assert_goes_on_as(assert_close, model, cache, ids, mask=None):
    """What the cache gives for the last three tokens of `ids`, against one call without a cache."""
    new = slice(cache.get_seq_length(), None)
    actual = model(ids[:, new], attention_mask=mask, past_key_values=cache).logits
    assert_close(actual, model(ids, attention_mask=mask, use_cache=False).logits[:, new], 1e-4)


@pytest.mark.parametrize("removed", [1, 4, 9, 20])
@pytest.mark.parametrize("calls", [[20], [11, 9], [11, 1, 1, 1, 1, 1, 1, 1, 1, 1]], ids=["one", "two", "one by one"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_cache_goes_back_exactly(make_config, make_model, random_rows, pad_rows, assert_close, name, calls, removed):
    """Over several calls, and with rows of different lengths."""
    model = make_model(GMAForCausalLM, make_config(name))
    ids, mask = pad_rows(random_rows([20, 13]), "left")
    cache, seen = recording(model), 0
    for tokens in calls:
        model(ids[:, seen : seen + tokens], attention_mask=mask[:, : seen + tokens], past_key_values=cache)
        seen += tokens
    cache.crop(-removed)
    assert cache.get_seq_length() == 20 - removed
    other = torch.cat([ids[:, : 20 - removed], torch.randint(1, 61, (2, 3))], dim=1)
    mask = torch.cat([mask[:, : 20 - removed], torch.ones(2, 3, dtype=torch.long)], dim=1)
    new = slice(20 - removed, None)
    actual = model(other[:, new], attention_mask=mask, past_key_values=cache).logits
    for row in range(2):
        expected = model(other[row : row + 1, mask[row].bool()], use_cache=False).logits[:, -3:]
        assert_close(actual[row : row + 1], expected, 1e-4)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 7)), min_size=1, max_size=6), seed=st.integers(0, 99)
)
@pytest.mark.parametrize("name", ["causal_additions", "causal_hybrid"])
@torch.no_grad()
def test_any_reading_and_going_back(make_config, make_model, assert_close, name, steps, seed):
    """Reads some tokens, takes some of them back, and so on: as if the others had never been there."""
    model, generator = make_model(GMAForCausalLM, make_config(name)), torch.Generator().manual_seed(seed)
    cache, kept = recording(model), torch.randint(1, 61, (1, 2), generator=generator)
    model(kept, past_key_values=cache)
    for tokens, removed in steps:
        new = torch.randint(1, 61, (1, tokens), generator=generator)
        model(new, past_key_values=cache)
        removed = min(removed, tokens)
        take_back(cache, removed)
        kept = torch.cat([kept, new[:, : tokens - removed]], dim=1)
    last = torch.randint(1, 61, (1, 2), generator=generator)
    actual = model(last, past_key_values=cache).logits
    assert_close(actual, model(torch.cat([kept, last], dim=1), use_cache=False).logits[:, -2:], 1e-4)


@torch.no_grad()
def test_what_cannot_be_taken_back_is_refused(make_config, make_model, random_rows):
    model = make_model(GMAForCausalLM, make_config("causal"))
    ids = torch.stack(random_rows([9]))
    cache = recording(model)
    model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="`crop` may remove at most 9 tokens, .* it is to remove 10"):
        cache.layers[0].crop(-10)
    not_recorded = model(ids, use_cache=True)[CACHE_NAME]
    static = StaticCache(config=model.config, max_cache_len=20)
    record_past(static, model.config)
    model(ids, past_key_values=static)
    for cache in (not_recorded, static):
        with pytest.raises(ValueError, match="`activate_past_recording`"):
            cache.layers[0].crop(-1)
    assert not static.layers[0].is_croppable


@torch.no_grad()
def test_another_order_of_rows_cannot_be_taken_back(make_config, make_model, random_rows):
    model = make_model(GMAForCausalLM, make_config("causal"))
    cache = recording(model)
    model(torch.stack(random_rows([9, 9])), past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="at most 0 tokens"):
        cache.crop(-1)


@torch.no_grad()
def test_a_crop_that_one_layer_refuses_cannot_be_gone_on_from(make_config, make_model, random_rows):
    """Transformers crops layer by layer, and a softmax layer needs no record of its past."""
    model = make_model(GMAForCausalLM, make_config("causal_hybrid_additions"))
    cache = DynamicCache(config=model.config)
    ids = random_rows([9])[0][None]
    model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="at most 0 tokens"):
        cache.crop(-2)
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` must have read the same tokens in all layers.*7, 9"):
        model(ids[:, -2:], past_key_values=cache)


ASSISTANTS = {
    "prompt lookup": lambda model, other: {"prompt_lookup_num_tokens": 4},
    "itself": lambda model, other: {"assistant_model": model},
    "another": lambda model, other: {"assistant_model": other},
}


def assert_greedy(model, prompt, choices, assistance):
    """With an assistant a model generates what it does without; some releases of Transformers add one token."""
    greedy = model.generate(prompt, **choices)
    assert torch.equal(model.generate(prompt, **choices, **assistance)[:, : greedy.shape[1]], greedy)


@pytest.mark.parametrize("assistant", ASSISTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_assisted_decoding_is_greedy_decoding(make_config, make_model, random_rows, name, assistant):
    model = make_model(GMAForCausalLM, make_config(name))
    other = make_model(GMAForCausalLM, make_config("causal_additions"), seed=1)
    prompt = random_rows([7])[0].repeat(2)[None]
    settings_ = {"do_sample": False, "max_new_tokens": 25, "pad_token_id": 0, "eos_token_id": 0}
    assert_greedy(model, prompt, settings_, ASSISTANTS[assistant](model, other))


@pytest.mark.parametrize("assistant", ASSISTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_assisted_decoding_with_padding(make_config, make_model, random_rows, pad_rows, name, assistant):
    """In front and between the tokens; on the right it is refused, where Transformers would take another token."""
    model = make_model(GMAForCausalLM, make_config(name))
    other = make_model(GMAForCausalLM, make_config("causal_additions"), seed=1)
    choices = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 0}
    for side in ("left", "middle", "right"):
        ids, mask = (x[:1] for x in pad_rows(random_rows([8, 11]), "right" if side == "middle" else side))
        if side == "middle":
            ids, mask = (x.roll(5, dims=1) for x in (ids, mask))
        settings_, assistance = {"attention_mask": mask, **choices}, ASSISTANTS[assistant](model, other)
        if side == "right":
            with pytest.raises(ValueError, match="`attention_mask`.*on the left in assisted"):
                model.generate(ids, **settings_, **assistance)
        else:
            assert_greedy(model, ids, settings_, assistance)


@pytest.mark.parametrize("assistant", ASSISTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_assisted_decoding_with_a_filled_cache_is_refused(make_config, make_model, random_rows, name, assistant):
    """Transformers reads the whole prompt again after it, from which GPT-2 gets wrong tokens in some releases."""
    model = make_model(GMAForCausalLM, make_config(name))
    other = make_model(GMAForCausalLM, make_config("causal_additions"), seed=1)
    prompt = random_rows([9])[0][None]
    filled = {CACHE_NAME: model(prompt[:, :5], use_cache=True)[CACHE_NAME]}
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` must be empty in assisted .* it has read 5 tokens"):
        model.generate(prompt, **filled, max_new_tokens=4, do_sample=False, **ASSISTANTS[assistant](model, other))


def test_assisted_decoding_of_the_shipped_checkpoint():
    folder = ROOT / "model_cards" / "gma-shakespeare"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = (ROOT / "tests" / "data" / "shakespeare.txt").read_text()
    for start in range(0, 20_000, 1_000):
        inputs = tokenizer(text[start : start + 60], return_tensors="pt")
        choices = {"attention_mask": inputs["attention_mask"], "do_sample": False, "max_new_tokens": 30}
        choices |= {"eos_token_id": 0, "pad_token_id": 0}
        assert_greedy(model, inputs["input_ids"], choices, {"prompt_lookup_num_tokens": 5})
