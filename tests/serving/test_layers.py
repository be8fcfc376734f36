"""The parts of the plug-in alone: how prompts become rows, and how weights are shared out to ranks."""

import pytest
import torch
from torch import nn

from gma_hf import GMAModel
from gma_hf.model.attention_gma import GaussianMixtureAttention
from gma_hf.serving import register


pytest.importorskip("vllm")
register()  # as vLLM does when it starts


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], [1, 1000, 2, 500, 499, 64, 1], list(range(1, 40))])
def test_every_token_of_every_prompt_stands_in_a_row_once(lengths):
    from gma_hf.serving.batches import rows_of_prompts

    packed = torch.cat([torch.arange(length) + 10_000 * prompt for prompt, length in enumerate(lengths)])
    batches, places = rows_of_prompts(torch.tensor(lengths))
    flat = []
    for prompts, tokens, mask in batches:
        rows = packed[tokens]
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        for prompt, row, real in zip(prompts.tolist(), rows, mask):
            assert row[real].tolist() == [token + 10_000 * prompt for token in range(lengths[prompt])]
            assert not real[lengths[prompt] :].any()
        assert 2 * mask.sum() >= mask.numel()
        flat.append(rows.flatten())
    assert torch.equal(torch.cat(flat)[places], packed)


@pytest.mark.parametrize("name", ["causal", "causal_additions", "bidirectional_conv"])
def test_the_outputs_of_two_ranks_add_up(make_config, make_model, assert_close, name):
    """With plain linear maps in the place of vLLM's, whose products are cut along the same lines."""
    from gma_hf.serving.layers import config_of_rank, load_share

    config = make_config(name)
    whole = make_model(GMAModel, config).layers[0].attention
    hidden_states = torch.randn(2, 9, config.hidden_size)
    found = 0
    for rank in range(2):
        part = GaussianMixtureAttention(config_of_rank(config, 2), 0)
        for child, module in list(part.named_children()):
            if isinstance(module, nn.Linear):
                widths = (config.hidden_size, module.out_features)
                if child == "o_proj":
                    widths = (module.in_features, config.hidden_size)
                setattr(part, child, nn.Linear(*widths))
        for key, parameter in part.named_parameters():
            load_share(parameter, whole.state_dict()[key], whole.qkv_widths, rank, 2)
        with torch.no_grad():
            if rank > 0:
                part.o_proj.bias.zero_()
            found = found + part(hidden_states).hidden_states
    assert_close(found, whole(hidden_states).hidden_states, 1e-5)


def test_heads_that_cannot_be_shared_are_refused(make_config):
    from gma_hf.serving.layers import config_of_rank

    with pytest.raises(ValueError, match="`tensor_parallel_size` must divide `num_attention_heads`, 2, .* it is 3"):
        config_of_rank(make_config("causal"), 3)
