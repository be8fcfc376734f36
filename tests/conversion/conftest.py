"""Small sources of every family, with no weight at zero, and tokens with padding on the right."""

import pytest
import torch
import transformers


ENCODER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
ROBERTA = ENCODER | {"max_position_embeddings": 42, "type_vocab_size": 1}
SIZES = {
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 40, "n_inner": 40},
    "gpt_neo": {"hidden_size": 24, "num_layers": 3, "num_heads": 2, "intermediate_size": 40}
    | {"max_position_embeddings": 40, "window_size": 5, "attention_types": [[["global", "local"], 1], [["local"], 1]]},
    "opt": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 40}
    | {"max_position_embeddings": 40, "word_embed_proj_dim": 24},
    "bert": ENCODER | {"max_position_embeddings": 40},
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": ENCODER | {"max_position_embeddings": 40, "embedding_size": 16},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 40, "max_position_embeddings": 40},
}
PADDING = {"gpt2": 60, "gpt_neo": 60, "bert": 0, "electra": 0, "distilbert": 0}  # others, which count real tokens: 1
ON_THE_RIGHT = torch.arange(17) < torch.tensor([[17], [9], [1]])


@pytest.fixture(scope="session")
def make_source():
    """`make_source(family, class_name, **config)`: a random model of Transformers, no parameter of which is zero."""

    def make(family: str, class_name: str, **overrides):
        torch.manual_seed(0)
        fields = {"vocab_size": 61, "pad_token_id": PADDING.get(family, 1), **SIZES[family], **overrides}
        config = transformers.AutoConfig.for_model(family, **fields)
        model = getattr(transformers, class_name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return make


@pytest.fixture(scope="session")
def make_inputs():
    """
    `make_inputs(family, side="right")`: three rows of 17 tokens, padded on that side, for any model of the family; on
    the left with `position_ids`, where without them the family would count columns.
    """

    def make(family: str, side: str = "right"):
        generator = torch.Generator().manual_seed(1)
        input_ids = torch.randint(5, 59, (3, 17), generator=generator)
        mask = ON_THE_RIGHT if side == "right" else ON_THE_RIGHT.flip(-1)
        inputs = {
            "input_ids": input_ids.masked_fill(~mask, PADDING.get(family, 1)),
            "attention_mask": mask.long(),
        }
        if side == "left" and family in PADDING:
            inputs["position_ids"] = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        return inputs

    return make
