"""Decoders: GPT-2, GPT-Neo and OPT."""

import math
from typing import Any

from transformers import PreTrainedConfig

from ...model.modeling_gma import GMAForCausalLM, GMAForSequenceClassification, GMAModel
from .tables import QUESTION_ANSWERING, TOKEN_CLASSIFIER, Family, Head, refuse


GPT_NETWORK = {
    "wte": "embeddings.word_embeddings",
    "wpe": "embeddings.position_embeddings",
    "ln_f": "final_norm",
}
GPT_BLOCK = {
    "h.{i}.ln_1": "attention_norm",
    "h.{i}.ln_2": "mlp_norm",
    "h.{i}.mlp.c_fc": "mlp.up_proj",
    "h.{i}.mlp.c_proj": "mlp.down_proj",
}
LANGUAGE_MODEL = Head(GMAForCausalLM, {"lm_head": "lm_head"})
SEQUENCE_CLASSIFIER = Head(GMAForSequenceClassification, {"score": "classifier.out_proj"})


def gpt2_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the GMAConfig arguments of a GPT2Config."""
    refuse(config, add_cross_attention=False)
    return {
        "intermediate_size": config.n_inner,
        "hidden_act": config.activation_function,
        "hidden_dropout_prob": config.resid_pdrop,
        "attention_probs_dropout_prob": config.attn_pdrop,
        "classifier_dropout": getattr(config, "classifier_dropout", None),
        "layer_norm_eps": config.layer_norm_epsilon,
        "max_position_embeddings": config.n_positions,
        "norm_position": "pre",
        "is_causal": True,
    }


def gpt2_query_factor(config: PreTrainedConfig, layer: int) -> float:
    """Return what a GPT-2 multiplies its scores by beside 1 / sqrt(head width), or in its place."""
    factor = 1.0 if config.scale_attn_weights else math.sqrt(config.hidden_size // config.num_attention_heads)
    return factor / (layer + 1) if config.scale_attn_by_inverse_layer_idx else factor


def gpt_neo_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the GMAConfig arguments of a GPTNeoConfig, whose local layers attend in a window."""
    kinds = {"global": "full_attention", "local": "sliding_attention"}
    return {
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.activation_function,
        "hidden_dropout_prob": config.resid_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.classifier_dropout,
        "layer_norm_eps": config.layer_norm_epsilon,
        "max_position_embeddings": config.max_position_embeddings,
        "norm_position": "pre",
        "is_causal": True,
        "layer_types": [kinds[kind] for kind in config.attention_layers],
        "sliding_window": config.window_size,
    }


def opt_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the GMAConfig arguments of an OPTConfig."""
    refuse(
        config,
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        word_embed_proj_dim=config.hidden_size,  # a narrower embedding has no place in a causal GMA model
    )
    return {
        "intermediate_size": config.ffn_dim,
        "hidden_act": config.activation_function,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": 1e-5,
        "initializer_range": config.init_std,
        "max_position_embeddings": config.max_position_embeddings,
        "norm_position": "pre",
        "is_causal": True,
    }


GPT2 = Family(
    name="GPT-2",
    prefix="transformer",
    to_gma_config=gpt2_config,
    query_factor=gpt2_query_factor,
    network=GPT_NETWORK,
    layer=GPT_BLOCK
    | {
        "h.{i}.attn.c_attn": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "h.{i}.attn.c_proj": "attention.o_proj",
    },
    heads={
        "GPT2Model": Head(GMAModel),
        "GPT2LMHeadModel": LANGUAGE_MODEL,
        "GPT2ForSequenceClassification": SEQUENCE_CLASSIFIER,
        "GPT2ForTokenClassification": TOKEN_CLASSIFIER,
        "GPT2ForQuestionAnswering": QUESTION_ANSWERING,
    },
)
GPT_NEO = Family(
    name="GPT-Neo",
    prefix="transformer",
    to_gma_config=gpt_neo_config,
    query_factor=lambda config, layer: math.sqrt(config.hidden_size // config.num_heads),  # its scores are not scaled
    network=GPT_NETWORK,
    layer=GPT_BLOCK
    | {
        "h.{i}.attn.attention.q_proj": "attention.q_proj",
        "h.{i}.attn.attention.k_proj": "attention.k_proj",
        "h.{i}.attn.attention.v_proj": "attention.v_proj",
        "h.{i}.attn.attention.out_proj": "attention.o_proj",
    },
    heads={
        "GPTNeoModel": Head(GMAModel),
        "GPTNeoForCausalLM": LANGUAGE_MODEL,
        "GPTNeoForSequenceClassification": SEQUENCE_CLASSIFIER,
        "GPTNeoForTokenClassification": TOKEN_CLASSIFIER,
        "GPTNeoForQuestionAnswering": QUESTION_ANSWERING,
    },
)
OPT = Family(
    name="OPT",
    prefix="model",
    to_gma_config=opt_config,
    unused_positions=lambda config: 2,
    network={
        "decoder.embed_tokens": "embeddings.word_embeddings",
        "decoder.embed_positions": "embeddings.position_embeddings",
        "decoder.final_layer_norm": "final_norm",
    },
    layer={
        "decoder.layers.{i}.self_attn_layer_norm": "attention_norm",
        "decoder.layers.{i}.self_attn.q_proj": "attention.q_proj",
        "decoder.layers.{i}.self_attn.k_proj": "attention.k_proj",
        "decoder.layers.{i}.self_attn.v_proj": "attention.v_proj",
        "decoder.layers.{i}.self_attn.out_proj": "attention.o_proj",
        "decoder.layers.{i}.final_layer_norm": "mlp_norm",
        "decoder.layers.{i}.fc1": "mlp.up_proj",
        "decoder.layers.{i}.fc2": "mlp.down_proj",
    },
    heads={
        "OPTModel": Head(GMAModel),
        "OPTForCausalLM": LANGUAGE_MODEL,
        "OPTForSequenceClassification": SEQUENCE_CLASSIFIER,
        "OPTForQuestionAnswering": QUESTION_ANSWERING,
    },
)
