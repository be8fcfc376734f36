"""Small sources of every family, with no weight at zero, and tokens with padding on the right."""

import pytest
import torch
import transformers


SIZES = {
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 40, "n_inner": 40},
    "bert": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40},
    "roberta": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 40},
}
SIZES["bert"] |= {"max_position_embeddings": 40}
SIZES["roberta"] |= {"max_position_embeddings": 42, "type_vocab_size": 1}
SIZES["distilbert"] |= {"max_position_embeddings": 40}
PADDING = {"gpt2": 60, "bert": 0, "roberta": 1, "distilbert": 0}


@pytest.fixture(scope="session")
def make_source():
    """`make_source(family, class_name, **config)`: a random model of Transformers, no parameter of which is zero."""

    def make(family: str, class_name: str, **overrides):
        torch.manual_seed(0)
        fields = {"vocab_size": 61, "pad_token_id": PADDING[family], **SIZES[family], **overrides}
        config = transformers.AutoConfig.for_model(family, **fields)
        model = getattr(transformers, class_name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return make


@pytest.fixture(scope="session")
def make_inputs():
    """`make_inputs(family)`: three rows of 17 tokens, padded on the right, for any model of the family."""

    def make(family: str):
        generator = torch.Generator().manual_seed(1)
        input_ids = torch.randint(5, 59, (3, 17), generator=generator)
        mask = torch.arange(17) < torch.tensor([[17], [9], [1]])
        return {"input_ids": input_ids.masked_fill(~mask, PADDING[family]), "attention_mask": mask.long()}

    return make
