"""What a mix keeps for its backward, in bytes."""

import pytest
import torch

from gma_hf.model import torch_routing_gma
from gma_hf.model.equations_gma import Mixture, score_weights
from gma_hf.model.mixing_gma import mix_bidirectional, mix_causal


ROUTING, WIDTH, EPSILON = 4, 3, 1e-6


def saved_bytes(is_causal, components, length=2048):
    """
    Bytes that a mix keeps for its backward beyond its inputs, output and state, in storages that are not shared.

    The weights of the scores are an input of the mix, and so is the state, so neither counts, though both grow with K.
    """
    heads, float_bytes = 2, 4
    shape = (1, heads, length)
    arguments = [torch.randn(*shape, width, requires_grad=True) for width in (ROUTING, ROUTING, WIDTH)]
    shape = (heads, components, ROUTING)
    scores = score_weights(Mixture(torch.randn(shape), torch.ones(shape), torch.zeros(shape[:2])))
    state = torch.zeros(1, heads, components, WIDTH + 1)
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if is_causal:
            results = mix_causal(*arguments, scores, EPSILON, 64, state=state)
        else:
            results = mix_bidirectional(*arguments, scores, EPSILON, state=state)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*arguments, *scores, state, *results)}
    per_state, per_token = float_bytes * heads * components * (WIDTH + 1), float_bytes * heads * length
    return sum(size for place, size in storages.items() if place not in known), per_state, per_token


@pytest.mark.parametrize("components", [8, 32])
@pytest.mark.parametrize(("block_rows", "blocks"), [(2**20, 1), (2048, 4)], ids=["one block", "four blocks"])
def test_what_is_saved_does_not_grow_with_the_components(monkeypatch, components, block_rows, blocks):
    """
    Exactly the normaliser, one number per token and head, and a state per block: the only part with K in it, which
    is that of one state, however long the sequence, where a block holds it all.
    """
    monkeypatch.setattr(torch_routing_gma, "BLOCK_ROWS_CPU", block_rows)
    monkeypatch.setattr(torch_routing_gma, "KEPT_ROWS", 0)
    saved, per_state, per_token = saved_bytes(True, components)
    assert saved == per_token + blocks * per_state


def test_what_is_kept_has_a_bound(monkeypatch):
    """
    Responsibilities of queries and keys, a row of the affinity and a share of a state, of as many rows as said, and
    not of one more for a longer sequence.
    """
    monkeypatch.setattr(torch_routing_gma, "BLOCK_ROWS_CPU", 512)
    kept = []
    for length in (2048, 4096):
        saved = []
        for rows in (0, 512):
            monkeypatch.setattr(torch_routing_gma, "KEPT_ROWS", rows)
            saved.append(saved_bytes(True, 8, length)[0])
        kept.append(saved[1] - saved[0])
    per_row = 2 * 8 + 64 + 8 * (WIDTH + 1) / 64
    assert kept == [512 * per_row * 4] * 2


@pytest.mark.parametrize("components", [8, 32])
def test_the_bidirectional_form_saves_nothing_of_the_components(components):
    saved, _, per_token = saved_bytes(False, components)
    assert saved == per_token
