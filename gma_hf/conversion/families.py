"""
Which module of a source becomes which module of a GMA network, architecture by architecture.

Module names are those of Transformers 5 and of this package; `{i}` is the index of a layer. A module that becomes
several is cut along its outputs (GPT-2's queries, keys and values).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ..model.modeling_gma import (
    GMAForCausalLM,
    GMAForMaskedLM,
    GMAForMultipleChoice,
    GMAForQuestionAnswering,
    GMAForSequenceClassification,
    GMAForTokenClassification,
    GMAModel,
    GMAPreTrainedModel,
)


QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


@dataclass(frozen=True)
class Head:
    """What a source's class becomes: the GMA class, and its modules beside the bare network."""

    gma_class: type[GMAPreTrainedModel]
    modules: dict[str, str]
    # Modules that the GMA class has no place for; they are named in a warning.
    dropped: tuple[str, ...] = ()
    # A weight that the source's forward does not use, unless it is tied to one that it does.
    unused: str | None = None
    # Fields of the source's config that must have one value.
    requires: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """An architecture of Transformers: how its config, its network and its heads become those of GMA."""

    prefix: str  # of the bare network in a model with a head
    network: dict[str, str]
    layer: dict[str, str | tuple[str, ...]]
    heads: dict[str, Head]
    to_gma_config: Callable[[PreTrainedConfig], dict[str, Any]]
    is_transposed: bool = False  # linear maps keep their weights as [inputs, outputs]
    unused_positions: Callable[[PreTrainedConfig], int] = lambda config: 0  # rows before the first token's position


def gpt2_config(config: PreTrainedConfig) -> dict[str, Any]:
    """GMAConfig arguments of a GPT2Config."""
    refuse(config, add_cross_attention=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
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


def bert_config(config: PreTrainedConfig) -> dict[str, Any]:
    """GMAConfig arguments of a BertConfig."""
    refuse(config, add_cross_attention=False, is_decoder=False, position_embedding_type="absolute")
    return {
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "classifier_dropout": config.classifier_dropout,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "norm_position": "post",
        "is_causal": False,
        "use_cache": False,
    }


def roberta_config(config: PreTrainedConfig) -> dict[str, Any]:
    """GMAConfig arguments of a RobertaConfig; the first token's position is the one after the padding token's."""
    return bert_config(config) | {
        "max_position_embeddings": config.max_position_embeddings - roberta_unused_positions(config)
    }


def roberta_unused_positions(config: PreTrainedConfig) -> int:
    """RoBERTa counts positions from `pad_token_id + 1`."""
    if config.pad_token_id is None:
        raise ValueError("`source` must have a `pad_token_id` in its config to be converted, but there it is None.")
    return config.pad_token_id + 1


def distilbert_config(config: PreTrainedConfig) -> dict[str, Any]:
    """GMAConfig arguments of a DistilBertConfig."""
    return {
        "intermediate_size": config.hidden_dim,
        "hidden_act": config.activation,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.seq_classif_dropout,
        "classifier_act": "relu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": config.max_position_embeddings,
        "norm_position": "post",
        "is_causal": False,
        "use_cache": False,
    }


def refuse(config: PreTrainedConfig, **allowed: Any) -> None:
    """Refuses a source whose config has another value than the one allowed."""
    for name, value in allowed.items():
        if (actual := getattr(config, name, value)) != value:
            raise ValueError(
                f"`source` must have `{name}={value!r}` in its config to be converted, but there it is {actual!r}."
            )


BERT_NETWORK = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.LayerNorm": "embeddings.norm",
}
BERT_LAYER = {
    "encoder.layer.{i}.attention.self.query": "attention.q_proj",
    "encoder.layer.{i}.attention.self.key": "attention.k_proj",
    "encoder.layer.{i}.attention.self.value": "attention.v_proj",
    "encoder.layer.{i}.attention.output.dense": "attention.o_proj",
    "encoder.layer.{i}.attention.output.LayerNorm": "attention_norm",
    "encoder.layer.{i}.intermediate.dense": "mlp.up_proj",
    "encoder.layer.{i}.output.dense": "mlp.down_proj",
    "encoder.layer.{i}.output.LayerNorm": "mlp_norm",
}
BERT_MASKED_LM = {
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "decoder",
}
BERT_POOLED = {"bert.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"}

FAMILIES = {
    "gpt2": Family(
        prefix="transformer",
        is_transposed=True,
        to_gma_config=gpt2_config,
        network={
            "wte": "embeddings.word_embeddings",
            "wpe": "embeddings.position_embeddings",
            "ln_f": "final_norm",
        },
        layer={
            "h.{i}.ln_1": "attention_norm",
            "h.{i}.attn.c_attn": QKV,
            "h.{i}.attn.c_proj": "attention.o_proj",
            "h.{i}.ln_2": "mlp_norm",
            "h.{i}.mlp.c_fc": "mlp.up_proj",
            "h.{i}.mlp.c_proj": "mlp.down_proj",
        },
        heads={
            "GPT2Model": Head(GMAModel, {}),
            "GPT2LMHeadModel": Head(GMAForCausalLM, {"lm_head": "lm_head"}),
            "GPT2ForSequenceClassification": Head(GMAForSequenceClassification, {"score": "classifier.out_proj"}),
            "GPT2ForTokenClassification": Head(GMAForTokenClassification, {"classifier": "classifier"}),
            "GPT2ForQuestionAnswering": Head(GMAForQuestionAnswering, {"qa_outputs": "qa_outputs"}),
        },
    ),
    "bert": Family(
        prefix="bert",
        to_gma_config=bert_config,
        network=BERT_NETWORK,
        layer=BERT_LAYER,
        heads={
            "BertModel": Head(GMAModel, {}, dropped=("pooler.dense",)),
            "BertForMaskedLM": Head(GMAForMaskedLM, BERT_MASKED_LM, unused="cls.predictions.bias"),
            "BertForPreTraining": Head(
                GMAForMaskedLM,
                BERT_MASKED_LM,
                dropped=("bert.pooler.dense", "cls.seq_relationship"),
                unused="cls.predictions.bias",
            ),
            "BertForNextSentencePrediction": Head(
                GMAForSequenceClassification,
                {"bert.pooler.dense": "classifier.dense", "cls.seq_relationship": "classifier.out_proj"},
            ),
            "BertForSequenceClassification": Head(GMAForSequenceClassification, BERT_POOLED),
            "BertForMultipleChoice": Head(GMAForMultipleChoice, BERT_POOLED),
            "BertForTokenClassification": Head(GMAForTokenClassification, {"classifier": "classifier"}),
            "BertForQuestionAnswering": Head(GMAForQuestionAnswering, {"qa_outputs": "qa_outputs"}),
        },
    ),
    "roberta": Family(
        prefix="roberta",
        to_gma_config=roberta_config,
        unused_positions=roberta_unused_positions,
        network=BERT_NETWORK,
        layer=BERT_LAYER,
        heads={
            "RobertaModel": Head(GMAModel, {}, dropped=("pooler.dense",)),
            "RobertaForMaskedLM": Head(
                GMAForMaskedLM,
                {"lm_head.dense": "head.dense", "lm_head.layer_norm": "head.norm", "lm_head.decoder": "decoder"},
                unused="lm_head.bias",
                requires={"hidden_act": "gelu"},  # which this head has, whatever the network has
            ),
            "RobertaForSequenceClassification": Head(
                GMAForSequenceClassification,
                {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"},
            ),
            "RobertaForMultipleChoice": Head(
                GMAForMultipleChoice,
                {"roberta.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
            ),
            "RobertaForTokenClassification": Head(GMAForTokenClassification, {"classifier": "classifier"}),
            "RobertaForQuestionAnswering": Head(GMAForQuestionAnswering, {"qa_outputs": "qa_outputs"}),
        },
    ),
    "distilbert": Family(
        prefix="distilbert",
        to_gma_config=distilbert_config,
        network={name: target for name, target in BERT_NETWORK.items() if "token_type" not in name},
        layer={
            "transformer.layer.{i}.attention.q_lin": "attention.q_proj",
            "transformer.layer.{i}.attention.k_lin": "attention.k_proj",
            "transformer.layer.{i}.attention.v_lin": "attention.v_proj",
            "transformer.layer.{i}.attention.out_lin": "attention.o_proj",
            "transformer.layer.{i}.sa_layer_norm": "attention_norm",
            "transformer.layer.{i}.ffn.lin1": "mlp.up_proj",
            "transformer.layer.{i}.ffn.lin2": "mlp.down_proj",
            "transformer.layer.{i}.output_layer_norm": "mlp_norm",
        },
        heads={
            "DistilBertModel": Head(GMAModel, {}),
            "DistilBertForMaskedLM": Head(
                GMAForMaskedLM,
                {"vocab_transform": "head.dense", "vocab_layer_norm": "head.norm", "vocab_projector": "decoder"},
            ),
            "DistilBertForSequenceClassification": Head(
                GMAForSequenceClassification,
                {"pre_classifier": "classifier.dense", "classifier": "classifier.out_proj"},
            ),
            "DistilBertForMultipleChoice": Head(
                GMAForMultipleChoice,
                {"pre_classifier": "classifier.dense", "classifier": "classifier.out_proj"},
            ),
            "DistilBertForTokenClassification": Head(GMAForTokenClassification, {"classifier": "classifier"}),
            "DistilBertForQuestionAnswering": Head(GMAForQuestionAnswering, {"qa_outputs": "qa_outputs"}),
        },
    ),
}
