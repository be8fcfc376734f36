"""A stack with layers that attend in a window: cutting and padding on one side change nothing, the rest is refused."""

import pytest
import torch
from transformers import DynamicCache

from gma_hf import GMAForCausalLM


@pytest.fixture
def model(make_config, make_model):
    layer_types = ["sliding_attention", "gma", "full_attention"]
    overrides = {"num_hidden_layers": 3, "layer_types": layer_types, "sliding_window": 4}
    return make_model(GMAForCausalLM, make_config("causal_additions", **overrides))


@torch.no_grad()
def test_a_window_is_as_wide_as_it_says(make_config, make_model, random_rows):
    overrides = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "sliding_window": 4}
    model = make_model(GMAForCausalLM, make_config("causal", **overrides))
    (ids,) = random_rows([20])
    changed = ids.clone()
    changed[5] = ids[5] % 60 + 1
    moved = (model(changed[None]).logits - model(ids[None]).logits)[0].abs().amax(dim=-1) > 1e-5
    assert moved.nonzero()[:, 0].tolist() == [5, 6, 7, 8]


@torch.no_grad()
def test_cutting_and_padding_change_nothing(model, random_rows, pad_rows, assert_close):
    rows = random_rows([3, 17, 9])
    for side in ("left", "right"):
        ids, mask = pad_rows(rows, side)
        batch = model(ids, attention_mask=mask).logits
        for index, row in enumerate(rows):
            assert_close(batch[index][mask[index].bool()], model(row[None]).logits[0], 1e-4, f"{side} {index}")
    ids, mask = pad_rows(rows, "left")
    cache, pieces = DynamicCache(config=model.config), []
    for start, end in [(0, 1), (1, 6), (6, 7), (7, 17)]:
        pieces.append(model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits)
    real = mask.bool()
    assert_close(torch.cat(pieces, dim=1)[real], model(ids, attention_mask=mask).logits[real], 1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generation_with_padding_on_the_left_equals_each_row_alone(model, random_rows, pad_rows, kind):
    rows = random_rows([3, 17, 9])
    ids, mask = pad_rows(rows, "left")
    choices = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
    together = model.generate(ids, attention_mask=mask, cache_implementation=kind, **choices)[:, -9:]
    alone = [model.generate(row[None], attention_mask=torch.ones(1, len(row)), **choices)[0, -9:] for row in rows]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_padding_between_tokens_is_refused(model, random_rows, pad_rows, kind):
    """A window counts tokens, padding included, and would see too few of them."""
    ids, mask = pad_rows(random_rows([9, 16]), "middle")
    with pytest.raises(ValueError, match="`attention_mask`.*sliding_attention"):
        model.generate(ids, attention_mask=mask, cache_implementation=kind, max_new_tokens=3, pad_token_id=0)
