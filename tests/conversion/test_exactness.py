"""With every layer softmax, the converted model computes what its source computes: all but the mixer is right."""

import pytest
import torch
import transformers
from transformers import AutoModel, GenerationConfig

from gma_hf import GMAModel, convert_checkpoint
from gma_hf.conversion.families import FAMILIES


HEADS = [(family, name) for family, tables in FAMILIES.items() for name in tables.heads]
OUTPUTS = ("logits", "prediction_logits", "start_logits", "end_logits", "last_hidden_state")
OF_SEQUENCES = ("SequenceClassification", "NextSentence", "MultipleChoice")


def outputs(model, inputs):
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: torch.stack([x, x.flip(0)], dim=1) for name, x in inputs.items()}
    with torch.no_grad():
        given = model(**inputs)
    return [given[name] for name in OUTPUTS if name in given]


def largest_difference(source, converted, inputs):
    if isinstance(converted, GMAModel):  # whatever head the source had
        source = source.base_model
    differences = []
    for theirs, ours in zip(outputs(source, inputs), outputs(converted, inputs), strict=True):
        if theirs.shape[:2] == inputs["input_ids"].shape:  # an output per token: those of padding mean nothing
            theirs, ours = (x[inputs["attention_mask"].bool()] for x in (theirs, ours))
        assert theirs.shape == ours.shape
        assert theirs.abs().max() > 0.01
        differences.append((theirs - ours).abs().max().item())
    return max(differences)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family, name", HEADS, ids=[name for _, name in HEADS])
def test_every_head_gives_what_its_source_gives(family, name, attention, make_source, make_inputs):
    if attention == "sdpa" and not getattr(transformers, name)._supports_sdpa:
        pytest.skip("the source has no such attention")
    source = make_source(
        family,
        name,
        num_labels=2 if "Question" in name or "NextSentence" in name else 5,
        attn_implementation=attention,
    )
    converted = convert_checkpoint(source, layers="none")
    assert not converted.training
    assert converted.config._attn_implementation == attention
    assert largest_difference(source, converted, make_inputs(family)) < 1e-5
    if converted.config.is_causal or not any(kind in name for kind in OF_SEQUENCES):
        # Of a sequence that is padded on the left, an encoder of Transformers reads the first column, which is padding
        assert largest_difference(source, converted, make_inputs(family, "left")) < 1e-5


@pytest.mark.parametrize(
    "family, name, config",
    [
        ("gpt2", "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
        ("gpt_neo", "GPTNeoForCausalLM", {"attention_types": [[["global"], 3]]}),
        ("opt", "OPTForCausalLM", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
        ("electra", "ElectraForMaskedLM", {"embedding_size": 24}),
        ("electra", "ElectraForMaskedLM", {"embedding_size": 32}),
        ("camembert", "CamembertForMaskedLM", {"pad_token_id": 3, "type_vocab_size": 2}),
    ],
)
def test_variants_of_a_family(family, name, config, make_source, make_inputs, tmp_path):
    source = make_source(family, name, **config)
    before = {key: weight.clone() for key, weight in source.state_dict().items()}
    converted = convert_checkpoint(source, layers="none")
    assert largest_difference(source, converted, make_inputs(family)) < 1e-5
    assert all(torch.equal(weight, before[key]) for key, weight in source.state_dict().items())
    converted.save_pretrained(tmp_path)
    again = type(converted).from_pretrained(tmp_path)
    assert largest_difference(source, again, make_inputs(family)) < 1e-5


@pytest.mark.parametrize("family, name", [(f, name) for f, name in HEADS if "MaskedLM" in name or "LMHead" in name])
def test_a_head_of_its_own_is_carried_over(family, name, make_source, make_inputs):
    source = make_source(family, name, tie_word_embeddings=False)
    converted = convert_checkpoint(source, layers="none")
    assert not torch.equal(converted.get_input_embeddings().weight, converted.get_output_embeddings().weight)
    assert largest_difference(source, converted, make_inputs(family)) < 1e-5


def test_weights_count_not_what_the_config_says_of_them(make_source, make_inputs, tmp_path):
    """A checkpoint with a head of its own, whose config says that it shares the embedding."""
    source = make_source("gpt2", "GPT2LMHeadModel", tie_word_embeddings=False)
    source.config.tie_word_embeddings = True
    converted = convert_checkpoint(source, layers="none")
    assert largest_difference(source, converted, make_inputs("gpt2")) < 1e-5
    converted.save_pretrained(tmp_path)
    assert largest_difference(source, type(converted).from_pretrained(tmp_path), make_inputs("gpt2")) < 1e-5
    half = convert_checkpoint(source, layers=[1], num_components=4)
    assert torch.equal(half.lm_head.weight, source.lm_head.weight)


@pytest.mark.parametrize("family, name", [("bert", "BertForMaskedLM"), ("gpt2", "GPT2ForSequenceClassification")])
def test_a_folder_gives_what_the_model_gives(family, name, make_source, make_inputs, tmp_path):
    source = make_source(family, name)
    source.save_pretrained(tmp_path / "source")
    converted = convert_checkpoint(tmp_path / "source", layers="none")
    assert largest_difference(source, converted, make_inputs(family)) < 1e-5
    converted.save_pretrained(tmp_path / "gma")
    again = type(converted).from_pretrained(tmp_path / "gma")
    assert largest_difference(source, again, make_inputs(family)) < 1e-5


def test_what_belongs_to_the_head_carries_over(make_source):
    labels = {0: "bad", 1: "good", 2: "ugly"}
    source = make_source("bert", "BertForSequenceClassification", id2label=labels, problem_type="regression")
    config = convert_checkpoint(source, layers="none").config
    assert (config.id2label, config.num_labels, config.problem_type) == (labels, 3, "regression")

    source = make_source("gpt2", "GPT2LMHeadModel")
    source.generation_config = GenerationConfig(top_k=7, eos_token_id=3)
    converted = convert_checkpoint(source)
    assert (converted.generation_config.top_k, converted.generation_config.eos_token_id) == (7, 3)
    inputs = torch.tensor([[5, 6, 7]])
    exact = convert_checkpoint(source, layers="none")
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(source.generate(inputs, **greedy), exact.generate(inputs, **greedy))


def test_the_network_of_a_causal_source_opens_as_the_auto_classes_say(make_source, tmp_path):
    convert_checkpoint(make_source("gpt2", "GPT2LMHeadModel")).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.layer_types == ["gma"] * 3


def test_half_precision_stays(make_source):
    source = make_source("bert", "BertModel").to(torch.bfloat16)
    converted = convert_checkpoint(source, num_components=4)
    assert converted.dtype == torch.bfloat16
    assert converted.layers[0].attention.mixture.means.dtype == torch.float32


def test_what_has_no_place_is_named(make_source, caplog):
    from transformers.utils import logging

    logger = logging.get_logger("gma_hf")
    logger.addHandler(caplog.handler)
    try:
        convert_checkpoint(make_source("bert", "BertModel"), layers="none")
    finally:
        logger.removeHandler(caplog.handler)
    assert "pooler.dense.weight" in caplog.text
