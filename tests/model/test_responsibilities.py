"""`output_responsibilities=True`, for every head and both styles."""

import pytest
import torch

from gma_hf import (
    GMAForCausalLM,
    GMAForMaskedLM,
    GMAForMultipleChoice,
    GMAForQuestionAnswering,
    GMAForSequenceClassification,
    GMAForTokenClassification,
    GMAModel,
)
from gma_hf.model.attention_gma import GaussianMixtureAttention
from gma_hf.model.compat_gma import CACHE_NAME
from gma_hf.model.documents_gma import Documents
from gma_hf.model.equations_gma import responsibilities


ANY = [GMAModel, GMAForSequenceClassification, GMAForTokenClassification, GMAForQuestionAnswering]
ANY += [GMAForMultipleChoice]
CASES = [(head, name) for head in (*ANY, GMAForCausalLM) for name in ("causal", "causal_hybrid_additions")]
CASES += [(head, name) for head in (*ANY, GMAForMaskedLM) for name in ("bidirectional", "bidirectional_hybrid")]


@pytest.mark.parametrize(("head", "name"), CASES)
@torch.no_grad()
def test_they_are_what_each_layer_computes(make_config, make_model, assert_close, head, name):
    model = make_model(head, make_config(name, pad_token_id=0))
    shape = (2, 3, 11) if head is GMAForMultipleChoice else (2, 11)
    tokens, mask = torch.randint(1, 61, shape), torch.ones(shape, dtype=torch.long)
    mask[0, ..., :4] = 0
    inputs = []
    mixers = [module for module in model.modules() if isinstance(module, GaussianMixtureAttention)]
    hooks = [mixer.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for mixer in mixers]
    output = model(tokens, attention_mask=mask, output_responsibilities=True)
    for hook in hooks:
        hook.remove()
    assert len(output.responsibilities) == len(mixers)
    flat = mask.view(-1, 11).bool()
    for mixer, hidden_states, (queries, keys) in zip(mixers, inputs, output["responsibilities"]):
        assert queries.shape == keys.shape == (len(flat), 2, 11, 7)
        heads, _ = mixer.project(hidden_states, Documents(flat), {})
        expected = responsibilities(heads.queries, heads.keys, mixer.mixture(), flat)
        assert_close(queries, expected[0], 1e-5)
        assert_close(keys, expected[1], 1e-5)
        assert torch.all(keys.transpose(1, 2)[~flat] == 0)
        assert torch.allclose(queries.sum(-1), torch.ones(()))
    plain = model(tokens, attention_mask=mask)
    assert "responsibilities" not in plain and len(plain) < len(output)
    assert torch.equal(plain[0], output[0])


@torch.no_grad()
def test_with_a_cache_they_are_those_of_the_new_tokens(make_config, make_model, assert_close):
    model = make_model(GMAForCausalLM, make_config("causal_additions"))
    tokens = torch.randint(61, (2, 12))
    whole = model(tokens, output_responsibilities=True).responsibilities
    first = model(tokens[:, :7], use_cache=True)
    rest = model(tokens[:, 7:], past_key_values=first[CACHE_NAME], output_responsibilities=True).responsibilities
    for expected, now in zip(whole, rest):
        for side in (0, 1):
            assert_close(now[side], expected[side][:, :, 7:], 1e-4)


def test_pieces_refuse_them(make_config, make_model):
    model = make_model(GMAModel, make_config("bidirectional", position_embedding="none"))
    with pytest.raises(ValueError, match="output_responsibilities"):
        model([torch.ones(1, 4, dtype=torch.long)], output_responsibilities=True)
