"""Several documents in one row: each as alone, its gradients too, however they are told apart and read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening, DynamicCache

from gma_hf import GMAForCausalLM, GMAForMaskedLM


CAUSAL = ["causal", "causal_additions", "causal_hybrid", "causal_hybrid_additions"]
BIDIRECTIONAL = ["bidirectional", "bidirectional_conv", "bidirectional_hybrid"]
LENGTHS = [5, 1, 1, 19, 8, 7]


def packed(rows):
    """The row, its position ids and its borders."""
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    borders = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return torch.cat(rows)[None], {"position_ids": positions}, {"cu_seq_lens_q": borders}


def head(name):
    return GMAForCausalLM if name in CAUSAL else GMAForMaskedLM


def alone(model, rows):
    return torch.cat([model(row[None]).logits for row in rows], dim=1)


@pytest.mark.parametrize("told_by", [1, 2], ids=["position_ids", "cu_seq_lens_q"])
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
def test_documents_in_a_row_are_as_alone(make_config, make_model, random_rows, assert_close, name, told_by):
    model, rows = make_model(head(name), make_config(name)), random_rows(LENGTHS)
    inputs = packed(rows)
    actual, expected = model(inputs[0], **inputs[told_by]).logits, alone(model, rows)
    assert_close(actual, expected, 1e-4)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    gradients = [torch.autograd.grad((x * weight).sum(), parameters.values()) for x in (actual, expected)]
    for parameter, *pair in zip(parameters, *gradients):
        # A bias on all keys cancels in a softmax: its gradient is zero, and what is there is rounding
        at_least = 1e-1 if parameter.endswith("k_proj.bias") else 1e-2
        assert_close(*pair, 1e-3, parameter, at_least=at_least)


@pytest.mark.parametrize("name", CAUSAL)
def test_what_the_collator_of_transformers_gives(make_config, make_model, random_rows, assert_close, name):
    """The loss of a flattened batch is that of its documents, each token counted once."""
    model, rows = make_model(GMAForCausalLM, make_config(name)), random_rows([9, 4, 12])
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": row.tolist()} for row in rows])
    losses = [model(row[None], labels=row[None]).loss * (len(row) - 1) for row in rows]
    expected = sum(losses) / sum(len(row) - 1 for row in rows)
    batch = {key: value for key, value in batch.items() if not key.startswith(("cu_seq_lens_k", "max_length"))}
    assert_close(model(**batch).loss, expected, 1e-5)
    collator = DataCollatorWithFlattening(return_position_ids=False, return_seq_idx=True)
    assert_close(model(**collator([{"input_ids": row.tolist()} for row in rows])).loss, expected, 1e-5)


@pytest.mark.parametrize(
    "cuts", [range(1, 41), [3, 9, 30], [5], [6, 7]], ids=["one by one", "pieces", "border", "one"]
)
@pytest.mark.parametrize("name", ["causal", "causal_additions"])
@torch.no_grad()
def test_a_document_may_begin_in_any_call(make_config, make_model, random_rows, assert_close, name, cuts):
    model, rows = make_model(GMAForCausalLM, make_config(name)), random_rows(LENGTHS)
    ids, positions, _ = packed(rows)
    cache, pieces = DynamicCache(config=model.config), []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]]):
        piece = {"position_ids": positions["position_ids"][:, start:end], "past_key_values": cache}
        pieces.append(model(ids[:, start:end], **piece).logits)
    assert_close(torch.cat(pieces, dim=1), alone(model, rows), 1e-4)


@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
@torch.no_grad()
def test_packing_and_padding_together(make_config, make_model, random_rows, assert_close, name):
    """Two rows of two documents each, of different lengths, with padding between tokens."""
    model, documents = make_model(head(name), make_config(name)), random_rows([7, 5, 3, 6])
    ids, mask = torch.randint(1, 61, (2, 20)), torch.zeros(2, 20, dtype=torch.long)
    positions, places = torch.zeros(2, 20, dtype=torch.long), []
    for row in range(2):
        start = 2
        for document in documents[2 * row : 2 * row + 2]:
            place = start + torch.arange(len(document)) + (torch.arange(len(document)) > 1).long()  # one pad inside
            ids[row, place], mask[row, place], positions[row, place] = document, 1, torch.arange(len(document))
            places.append((row, place))
            start = int(place[-1]) + 2
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    for document, (row, place) in zip(documents, places):
        assert_close(logits[row, place], model(document[None]).logits[0], 1e-4)


@pytest.mark.parametrize("name", ["causal_additions", "bidirectional_conv"])
@torch.no_grad()
def test_the_affinity_stays_inside_a_document(make_config, make_model, random_rows, name):
    model, rows = make_model(head(name), make_config(name)), random_rows([4, 6])
    ids, positions, _ = packed(rows)
    for weights in model(ids, **positions, output_attentions=True).attentions:
        assert (weights[..., 4:, :4] == 0).all() and (weights[..., :4, 4:] == 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), cut=st.integers(0, 60), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", ["causal", "causal_additions"])
@torch.no_grad()
def test_any_packing_with_any_cut(make_config, make_model, random_rows, assert_close, name, lengths, cut, seed):
    model, rows = make_model(GMAForCausalLM, make_config(name)), random_rows(lengths, seed)
    ids, positions, _ = packed(rows)
    cut = min(cut, ids.shape[1] - 1)
    cache = DynamicCache(config=model.config)
    pieces = [
        model(ids[:, part], position_ids=positions["position_ids"][:, part], past_key_values=cache).logits
        for part in (slice(0, cut), slice(cut, None))[cut == 0 :]
    ]
    assert_close(torch.cat(pieces, dim=1), alone(model, rows), 1e-4)
