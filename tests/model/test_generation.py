"""Generation: whatever the strategy, the cache and the padding, each row gets the logits that it would get alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from gma_hf import GMAForCausalLM
from gma_hf.model.cache_gma import adopt, is_gma
from gma_hf.model.compat_gma import CACHE_NAME


NAMES = ["causal", "causal_additions", "causal_hybrid", "causal_hybrid_additions"]
PADDINGS = ["none", "left", "right"]
NEW = 9
STRATEGIES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "sampling several": {"do_sample": True, "num_return_sequences": 3},
    "prefill in chunks": {"do_sample": False, "prefill_chunk_size": 4},
    "no cache": {"do_sample": False, "use_cache": False},
}
DETAILS = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": NEW, "pad_token_id": 0}


@pytest.fixture
def model(make_config, make_model, request):
    return make_model(GMAForCausalLM, make_config(request.param))


@pytest.fixture
def prompt(random_rows, pad_rows):
    """`prompt(padding)`: the rows of a batch, and the batch as `input_ids` and `attention_mask`."""

    def make(padding):
        rows = random_rows([13, 13, 13] if padding == "none" else [3, 13, 8])
        if padding == "none":
            return rows, {"input_ids": torch.stack(rows)}
        ids, mask = pad_rows(rows, padding)
        return rows, {"input_ids": ids, "attention_mask": mask}

    return make


def assert_rows_are_as_alone(assert_close, model, rows, generated, repeats=1):
    """The logits of each step against one call, without a cache, on the real tokens of that row alone."""
    logits = torch.stack(generated.logits, dim=1)
    new_tokens = generated.sequences[:, -logits.shape[1] :]
    assert logits.shape[:2] == (len(rows) * repeats, NEW)
    for index, new in enumerate(new_tokens):
        row = torch.cat([rows[index // repeats], new])
        with torch.no_grad():
            alone = model(row[None], use_cache=False).logits[0, -NEW - 1 : -1]
        assert_close(logits[index], alone, 1e-4, f"logits of row {index}")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_every_row_is_generated_as_alone(assert_close, model, prompt, padding, strategy):
    rows, inputs = prompt(padding)
    torch.manual_seed(0)
    is_pure = set(model.config.layer_types) == {"gma"}
    if (strategy, padding) == ("prefill in chunks", "right") and not is_pure:  # keys cannot be moved
        with pytest.raises(ValueError, match="`attention_mask`.*on the left.*`prefill_chunk_size`"):
            model.generate(**inputs, **DETAILS, **STRATEGIES[strategy])
        return
    generated = model.generate(**inputs, **DETAILS, **STRATEGIES[strategy])
    assert torch.equal(generated.sequences[:: len(generated.sequences) // 3, :13], inputs["input_ids"])
    repeats = STRATEGIES[strategy].get("num_return_sequences", 1)
    assert_rows_are_as_alone(assert_close, model, rows, generated, repeats)
    if not STRATEGIES[strategy]["do_sample"]:
        assert torch.equal(generated.sequences[:, -NEW:], torch.stack(generated.logits, dim=1).argmax(-1))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("model", ["causal", "causal_hybrid_additions"], indirect=True)
def test_the_seed_decides_a_sample(model, prompt, padding):
    _, inputs = prompt(padding)
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(model.generate(**inputs, **DETAILS, do_sample=True).sequences)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_beams_are_as_alone(assert_close, model, prompt, padding, use_cache):
    rows, inputs = prompt(padding)
    choices = {**DETAILS, "num_beams": 4, "num_return_sequences": 2, "output_scores": True, "do_sample": False}
    together = model.generate(**inputs, **choices, use_cache=use_cache)
    alone = [model.generate(row[None], **choices, use_cache=False) for row in rows]
    assert torch.equal(together.sequences[:, -NEW:], torch.cat([x.sequences[:, -NEW:] for x in alone]))
    assert_close(together.sequences_scores, torch.cat([x.sequences_scores for x in alone]), 1e-4)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right", "middle"]),
    beams=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("name", ["causal_additions", "causal_hybrid"])
def test_any_padding_and_any_beams(
    make_config, make_model, random_rows, pad_rows, assert_close, name, lengths, side, beams, seed
):
    """Rows of any lengths, padded anywhere: the scores of each row's beams are those of the row alone."""
    model, rows = make_model(GMAForCausalLM, make_config(name)), random_rows(lengths, seed)
    ids, mask = pad_rows(rows, side, seed)
    choices = {"max_new_tokens": 5, "pad_token_id": 0, "do_sample": False, "return_dict_in_generate": True}
    choices |= {"num_beams": beams, "output_scores": True}
    together = model.generate(ids, attention_mask=mask, **choices)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], **choices)
        if beams > 1:
            assert_close(together.sequences_scores[index], alone.sequences_scores[0], 1e-4)
        beams_of_row = slice(index * beams, (index + 1) * beams)
        actual, expected = torch.stack(together.scores)[:, beams_of_row], torch.stack(alone.scores)
        # Later beams of the first step start from the same prompt, at a score that means never
        possible = expected > -1e8
        assert torch.equal(actual > -1e8, possible)
        assert_close(torch.where(possible, actual, 0), torch.where(possible, expected, 0), 1e-4)


@pytest.mark.parametrize("with_all_tokens", [True, False], ids=["all tokens", "new tokens"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_a_returned_cache_continues(assert_close, model, prompt, padding, with_all_tokens):
    rows, inputs = prompt(padding)
    first = model.generate(**inputs, **DETAILS, do_sample=False)
    read = first[CACHE_NAME].get_seq_length()
    assert read == 13 + NEW - 1
    turn = torch.tensor([[5, 6, 7]]).expand(3, -1)
    ids = torch.cat([first.sequences, turn], dim=1)
    mask = torch.cat(
        [inputs.get("attention_mask", torch.ones(3, 13, dtype=torch.long)), torch.ones(3, NEW + 3)], dim=1
    )
    second = model.generate(
        ids if with_all_tokens else ids[:, read:],
        attention_mask=mask,
        **{CACHE_NAME: first[CACHE_NAME]},
        do_sample=False,
        **DETAILS,
    )
    rows = [torch.cat([row, ids[index, 13:]]) for index, row in enumerate(rows)]
    assert_rows_are_as_alone(assert_close, model, rows, second)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_a_static_cache_is_as_a_dynamic_one(assert_close, model, prompt, padding, beams):
    rows, inputs = prompt(padding)
    choices = {**DETAILS, "do_sample": False, "num_beams": beams, "disable_compile": True}
    static, dynamic = (
        model.generate(**inputs, **choices, cache_implementation=kind) for kind in ("static", "dynamic")
    )
    assert isinstance(static[CACHE_NAME], StaticCache)
    assert isinstance(dynamic[CACHE_NAME], DynamicCache)
    assert torch.equal(static.sequences, dynamic.sequences)
    assert_close(torch.stack(static.logits), torch.stack(dynamic.logits), 1e-4)
    if beams == 1:
        assert_rows_are_as_alone(assert_close, model, rows, static)


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_a_static_cache_reads_a_prompt_in_pieces(assert_close, model, prompt):
    _, inputs = prompt("none")
    choices = {**DETAILS, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    whole, pieces = (model.generate(**inputs, **choices, prefill_chunk_size=size) for size in (None, 5))
    assert torch.equal(whole.sequences, pieces.sequences)
    assert_close(torch.stack(pieces.logits), torch.stack(whole.logits), 1e-4)


@pytest.mark.parametrize("model", ["causal", "causal_hybrid_additions"], indirect=True)
def test_prompts_may_be_embeddings(assert_close, model, prompt):
    rows, inputs = prompt("left")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    generated = model.generate(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], do_sample=False, **DETAILS
    )
    assert_rows_are_as_alone(assert_close, model, rows, generated)


def make_cache(kind, config):
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=40)


CACHES = pytest.mark.parametrize("kind", ["dynamic", "static"])


@CACHES
@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_a_cache_holds_a_gma_layer_for_each_gma_layer(model, kind):
    cache = adopt(make_cache(kind, model.config), model.config)
    assert [is_gma(layer) for layer in cache.layers] == [
        layer_type == "gma" for layer_type in model.config.layer_types
    ]
    assert int(cache.get_seq_length()) == 0


# Softmax layers of a static cache can only be reordered
@pytest.mark.parametrize(
    ("model", "kind", "operation"),
    [
        *((name, "dynamic", operation) for name in NAMES for operation in ("repeat", "select", "reorder")),
        *((name, "static", operation) for name in NAMES[:2] for operation in ("repeat", "select")),
        *((name, "static", "reorder") for name in NAMES),
    ],
    indirect=["model"],
)
@torch.no_grad()
def test_rows_of_a_cache_can_be_moved(assert_close, random_rows, model, operation, kind):
    """After moving rows of the cache, the next logits are those of the moved rows."""
    ids = torch.stack(random_rows([14] * 3))
    cache = make_cache(kind, model.config)
    model(ids[:, :10], past_key_values=cache)
    if operation == "repeat":
        rows = torch.tensor([0, 0, 1, 1, 2, 2])
        cache.batch_repeat_interleave(2)
    elif operation == "select":
        rows = torch.tensor([2, 0])
        cache.batch_select_indices(rows)
    else:
        rows = torch.tensor([2, 2, 0])
        cache.reorder_cache(rows)
    logits = [model(ids[rows, i : i + 1], past_key_values=cache).logits for i in range(10, 14)]
    assert_close(torch.cat(logits, dim=1), model(ids[rows]).logits[:, 10:], 1e-4)


@CACHES
@pytest.mark.parametrize("model", ["causal", "causal_additions"], indirect=True)
@torch.no_grad()
def test_a_reset_cache_is_as_new(random_rows, model, kind):
    first, second = torch.stack(random_rows([12] * 2)).split(1)
    cache = make_cache(kind, model.config)
    model(first, past_key_values=cache)
    cache.reset()
    assert int(cache.get_seq_length()) == 0
    again = [model(part, past_key_values=cache).logits for part in second.split([9, 1, 2], dim=1)]
    fresh_cache = make_cache(kind, model.config)
    fresh = [model(part, past_key_values=fresh_cache).logits for part in second.split([9, 1, 2], dim=1)]
    assert torch.equal(torch.cat(again, dim=1), torch.cat(fresh, dim=1))
    assert int(cache.get_seq_length()) == 12


@torch.no_grad()
@pytest.mark.parametrize("model", ["causal_additions"], indirect=True)
def test_a_static_cache_keeps_its_addresses(random_rows, model):
    ids = torch.stack(random_rows([12]))
    cache = StaticCache(config=model.config, max_cache_len=40)
    addresses = []
    for part in ids.split([9, 1, 2], dim=1):
        model(part, past_key_values=cache)
        addresses.append([x.data_ptr() for layer in cache.layers for x in layer.tensors.values()])
    cache.reset()
    model(ids, past_key_values=cache)
    addresses.append([x.data_ptr() for layer in cache.layers for x in layer.tensors.values()])
    assert all(x == addresses[0] for x in addresses)


@torch.no_grad()
def test_a_prompt_of_262144_tokens_is_read_in_pieces(make_config, make_model, assert_close):
    """By itself, none of them longer than 8,192 tokens, with the logits of one call."""
    config = make_config("causal_additions", num_hidden_layers=1, position_embedding="none", chunk_size=64)
    model = make_model(GMAForCausalLM, config)
    prompt, pieces = torch.randint(1, 61, (1, 2**18), generator=torch.Generator().manual_seed(0)), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: pieces.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    generated = model.generate(prompt, do_sample=False, **{**DETAILS, "max_new_tokens": 2})
    hook.remove()
    assert pieces == [8192] * 32 + [1]
    expected = model(torch.cat([prompt, generated.sequences[:, -2:-1]], dim=1), use_cache=False, logits_to_keep=2)
    assert_close(torch.stack(generated.logits, dim=1), expected.logits, 1e-4)


@torch.no_grad()
def test_a_prompt_beyond_the_learned_positions_is_refused(make_config, make_model):
    model = make_model(GMAForCausalLM, make_config("causal"))
    with pytest.raises(ValueError, match="`max_position_embeddings` is 256"):
        model.generate(torch.ones(1, 9000, dtype=torch.long), max_new_tokens=1, pad_token_id=0)


CHANGES = {
    "in place": lambda mixture: mixture.means.mul_(1.5),
    "another tensor": lambda mixture: setattr(mixture, "means", torch.nn.Parameter(1.5 * mixture.means)),
    "loaded": lambda mixture: mixture.load_state_dict({k: 1.5 * x for k, x in mixture.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_what_a_cache_has_prepared_follows_the_weights(make_config, make_model, random_rows, change):
    model, ids = make_model(GMAForCausalLM, make_config("causal_additions")), torch.stack(random_rows([8, 8]))
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for cache in caches:
        model(ids[:, :6], past_key_values=cache)
    prepared = [layer.prepared for layer in caches[0].layers]
    model(ids[:, 6:7], past_key_values=caches[0])
    assert all(layer.prepared is x for layer, x in zip(caches[0].layers, prepared))
    model(ids[:, 6:7], past_key_values=caches[1])
    for layer in model.model.layers:
        change(layer.attention.mixture)
    for layer in caches[1].layers:
        layer.prepared = None
    logits = [model(ids[:, 7:], past_key_values=cache).logits for cache in caches]
    assert torch.equal(*logits)


def test_the_gradient_passes_through_what_a_cache_has_prepared(make_config, make_model, random_rows):
    model, ids = make_model(GMAForCausalLM, make_config("causal")), torch.stack(random_rows([8]))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :7], past_key_values=cache)
    model(ids[:, 7:], past_key_values=cache).logits.square().sum().backward()
    assert all(layer.attention.mixture.means.grad.any() for layer in model.model.layers)
