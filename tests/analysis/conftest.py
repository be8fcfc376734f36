"""A model whose components are set by hand: digits, punctuation and letters go to one each."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gma_hf import GMAConfig, GMAForCausalLM


CHARACTERS = "abcdefgh" + "0123456789" + ".,;:!?"
KINDS = ["letters"] * 8 + ["digits"] * 10 + ["punctuation"] * 6


@pytest.fixture(scope="session")
def character_tokenizer():
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def planted():
    """Two equal heads; letters go to component 0, digits to 1, punctuation to 2, and nothing to 3."""
    config = GMAConfig(
        vocab_size=len(CHARACTERS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_components=4
    )
    torch.manual_seed(0)
    model = GMAForCausalLM(config).eval()
    mixer, kinds = model.model.layers[0].attention, ["letters", "digits", "punctuation"]
    with torch.no_grad():
        model.model.embeddings.position_embeddings.weight.zero_()
        for index, kind in enumerate(KINDS):
            row = torch.zeros(8)
            row[kinds.index(kind)] = 1.0
            model.model.embeddings.word_embeddings.weight[index] = row
        mixer.qkv_proj.weight.zero_()
        mixer.qkv_proj.bias.zero_()
        for start in (0, 4, 8, 12):  # of the two heads' queries, and keys
            mixer.qkv_proj.weight[start : start + 4, :4] = 10 * torch.eye(4)
        # The layer norm keeps which of the first three is the largest
        seen = model.model.layers[0].attention_norm(model.model.embeddings.word_embeddings.weight[[0, 8, 18]])
        means = torch.cat([10 * seen[:, :4], torch.full((1, 4), 100.0)])
        mixer.mixture.means.copy_(means.expand(2, -1, -1))
        mixer.mixture.raw_variances.fill_(1.0)
        mixer.mixture.prior_logits.zero_()
    return model


@pytest.fixture(scope="session")
def planted_text():
    generator = torch.Generator().manual_seed(0)
    return "".join(CHARACTERS[index] for index in torch.randint(len(CHARACTERS), (3000,), generator=generator))
