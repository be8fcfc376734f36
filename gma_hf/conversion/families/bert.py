"""Encoders: BERT, RoBERTa and what shares its network, ELECTRA, DistilBERT."""

from typing import Any

from transformers import PreTrainedConfig

from ...model.modeling_gma import (
    GMAForMaskedLM,
    GMAForMultipleChoice,
    GMAForSequenceClassification,
    GMAModel,
)
from .tables import QUESTION_ANSWERING, TOKEN_CLASSIFIER, Family, Head, refuse


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
DISTILBERT_POOLED = {"pre_classifier": "classifier.dense", "classifier": "classifier.out_proj"}
TWO_LAYERS = {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"}


def bert_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the GMAConfig arguments of a BertConfig."""
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
    """Return the GMAConfig arguments of a RobertaConfig, some of whose positions no token can have."""
    return bert_config(config) | {
        "max_position_embeddings": config.max_position_embeddings - roberta_unused_positions(config)
    }


def roberta_unused_positions(config: PreTrainedConfig) -> int:
    """Return `pad_token_id + 1`, the first position that RoBERTa gives to a token."""
    if config.pad_token_id is None:
        raise ValueError("`source` must have a `pad_token_id` in its config to be converted, but there it is None.")
    return config.pad_token_id + 1


def electra_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the GMAConfig arguments of an ElectraConfig."""
    return bert_config(config) | {"embedding_size": config.embedding_size, "classifier_act": "gelu"}


def distilbert_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the GMAConfig arguments of a DistilBertConfig."""
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


def roberta(name: str, prefix: str, classes: str) -> Family:
    """Return the table of RoBERTa or of a family that is RoBERTa by another name, whose classes begin with it."""
    masked_lm = {"lm_head.dense": "head.dense", "lm_head.layer_norm": "head.norm", "lm_head.decoder": "decoder"}
    pooled = {f"{prefix}.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"}
    heads = {
        "Model": Head(GMAModel, dropped=("pooler.dense",)),
        "ForMaskedLM": Head(
            GMAForMaskedLM,
            masked_lm,
            unused="lm_head.bias",
            requires={"hidden_act": "gelu"},  # which this head has, whatever the network has
        ),
        "ForSequenceClassification": Head(GMAForSequenceClassification, TWO_LAYERS),
        "ForMultipleChoice": Head(GMAForMultipleChoice, pooled),
        "ForTokenClassification": TOKEN_CLASSIFIER,
        "ForQuestionAnswering": QUESTION_ANSWERING,
    }
    return Family(
        name=name,
        prefix=prefix,
        to_gma_config=roberta_config,
        unused_positions=roberta_unused_positions,
        network=BERT_NETWORK,
        layer=BERT_LAYER,
        heads={f"{classes}{task}": head for task, head in heads.items()},
    )


BERT = Family(
    name="BERT",
    prefix="bert",
    to_gma_config=bert_config,
    network=BERT_NETWORK,
    layer=BERT_LAYER,
    heads={
        "BertModel": Head(GMAModel, dropped=("pooler.dense",)),
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
        "BertForTokenClassification": TOKEN_CLASSIFIER,
        "BertForQuestionAnswering": QUESTION_ANSWERING,
    },
)
ROBERTA = roberta("RoBERTa", "roberta", "Roberta")
XLM_ROBERTA = roberta("XLM-RoBERTa", "roberta", "XLMRoberta")
CAMEMBERT = roberta("CamemBERT", "roberta", "Camembert")
ELECTRA = Family(
    name="ELECTRA",
    prefix="electra",
    to_gma_config=electra_config,
    network=BERT_NETWORK | {"embeddings_project": "embeddings.projection"},
    layer=BERT_LAYER,
    heads={
        "ElectraModel": Head(GMAModel),
        # Which tokens were replaced, no GMA model says: what is left is the network
        "ElectraForPreTraining": Head(
            GMAModel, dropped=("discriminator_predictions.dense", "discriminator_predictions.dense_prediction")
        ),
        "ElectraForMaskedLM": Head(
            GMAForMaskedLM,
            {
                "generator_predictions.dense": "head.dense",
                "generator_predictions.LayerNorm": "head.norm",
                "generator_lm_head": "decoder",
            },
            requires={"hidden_act": "gelu"},  # which this head has, whatever the network has
        ),
        "ElectraForSequenceClassification": Head(GMAForSequenceClassification, TWO_LAYERS),
        "ElectraForMultipleChoice": Head(
            GMAForMultipleChoice,
            {"sequence_summary.summary": "classifier.dense", "classifier": "classifier.out_proj"},
            requires={"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        ),
        "ElectraForTokenClassification": TOKEN_CLASSIFIER,
        "ElectraForQuestionAnswering": QUESTION_ANSWERING,
    },
)
DISTILBERT = Family(
    name="DistilBERT",
    prefix="distilbert",
    to_gma_config=distilbert_config,
    network=BERT_NETWORK,
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
        "DistilBertModel": Head(GMAModel),
        "DistilBertForMaskedLM": Head(
            GMAForMaskedLM,
            {"vocab_transform": "head.dense", "vocab_layer_norm": "head.norm", "vocab_projector": "decoder"},
        ),
        "DistilBertForSequenceClassification": Head(GMAForSequenceClassification, DISTILBERT_POOLED),
        "DistilBertForMultipleChoice": Head(GMAForMultipleChoice, DISTILBERT_POOLED),
        "DistilBertForTokenClassification": TOKEN_CLASSIFIER,
        "DistilBertForQuestionAnswering": QUESTION_ANSWERING,
    },
)
