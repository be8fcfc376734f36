"""The configuration: its defaults, its two styles, its round trip and what it refuses."""

import math

import pytest
import torch

from gma_hf import GMAConfig, GMAForCausalLM, GMAModel


SLIDING = ["gma", "sliding_attention"]
STYLES = [GMAConfig.gpt2_style, GMAConfig.bert_style]
REFUSED = [
    ("causal", {"hidden_size": 25}, ["`hidden_size`", "25", "`num_attention_heads`"]),
    *(("causal", {name: 0}, [f"`{name}`", "at least 1", "0"]) for name in ("num_components", "chunk_size")),
    *(("causal", {name: -1}, [f"`{name}`", "at least 1", "-1"]) for name in ("num_components", "routing_dim")),
    *(
        ("bidirectional", {name: 0}, [f"`{name}`", "at least 1", "0"])
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ),
    ("causal", {"chunk_size": 257}, ["`chunk_size`", "at most 256", "257"]),
    ("causal", {"max_position_embeddings": 0}, ["`max_position_embeddings`", "at least 1", "0"]),
    ("causal", {"read_epsilon": 0.0}, ["`read_epsilon`", "greater than 0", "0.0"]),
    ("causal", {"variance_floor": -1.0}, ["`variance_floor`", "greater than 0", "-1.0"]),
    ("causal", {"routing_temperature": float("nan")}, ["`routing_temperature`", "greater than 0", "nan"]),
    ("causal", {"mixture_rate": 0.0}, ["`mixture_rate`", "greater than 0", "0.0"]),
    ("causal", {"read_exponent": 1.5}, ["`read_exponent`", "0 to 1", "'learned'", "1.5"]),
    ("causal", {"read_exponent": "spread"}, ["`read_exponent`", "0 to 1", "'learned'", "'spread'"]),
    ("causal", {"type_vocab_size": -1}, ["`type_vocab_size`", "0", "-1"]),
    ("causal", {"conv_kernel_size": -1}, ["`conv_kernel_size`", "0", "-1"]),
    ("causal", {"layer_types": ["gma", "mamba"]}, ["`layer_types`", "'mamba'", "gma", "full_attention", "sliding"]),
    ("causal", {"layer_types": ["gma"] * 3}, ["`layer_types`", "3", "`num_hidden_layers`", "2"]),
    ("causal", {"layer_types": []}, ["`layer_types`", "0", "`num_hidden_layers`", "2"]),
    ("causal", {"layer_types": SLIDING}, ["`sliding_window`", "at least 1", "None"]),
    ("causal", {"layer_types": SLIDING, "sliding_window": 0}, ["`sliding_window`", "at least 1", "0"]),
    ("causal", {"norm_position": "middle"}, ["norm_position", "middle", "pre", "post"]),
    ("causal", {"position_embedding": "rotary"}, ["position_embedding", "rotary", "learned", "none"]),
    ("causal", {"embedding_size": 16}, ["`embedding_size`", "16", "`hidden_size`", "24", "causal"]),
    ("bidirectional", {"embedding_size": 0}, ["`embedding_size`", "at least 1", "0"]),
    ("causal", {"mixer_backend": "cuda"}, ["`mixer_backend`", "'cuda'", "auto", "torch", "triton"]),
    ("causal", {"hidden_act": "no_such_act"}, ["`hidden_act`", "no_such_act"]),
    ("causal", {"hidden_dropout_prob": 1.5}, ["`hidden_dropout_prob`", "1.5"]),
    ("causal", {"pad_token_id": 61}, ["`pad_token_id`", "61"]),
    ("bidirectional", {"layer_types": SLIDING, "sliding_window": 4}, ["`layer_types`", "sliding", "`is_causal`"]),
    ("bidirectional", {"forget_gate": True}, ["`forget_gate`", "True", "False", "`is_causal=False`"]),
    ("bidirectional", {"mixer_backend": "triton"}, ["`mixer_backend`", "'triton'", "auto", "`is_causal=False`"]),
    ("bidirectional", {"conv_kernel_size": 4}, ["`conv_kernel_size`", "4", "odd"]),
]


@pytest.mark.parametrize("style", [GMAConfig, *STYLES], ids=["default", "gpt2_style", "bert_style"])
def test_the_default_mixer_is_the_papers(style):
    config = style()
    assert config.layer_types == ["gma"] * 12
    assert config.num_components == 64
    assert config.routing_dim == config.head_dim == 64
    assert config.conv_kernel_size == 0 and config.forget_gate is False and config.normalize_routing is False
    assert config.output_gate is False and config.read_exponent == 0 and config.mixture_rate == 1
    assert config.intermediate_size == 3072


def test_the_default_is_gpt2_style():
    assert GMAConfig().to_dict() == GMAConfig.gpt2_style().to_dict()


def test_gpt2_style():
    config = GMAConfig.gpt2_style()
    assert config.is_causal and config.norm_position == "pre" and config.use_cache
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (50257, 1024, 0)


def test_bert_style():
    config = GMAConfig.bert_style()
    assert not config.is_causal and config.norm_position == "post" and not config.use_cache
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (30522, 512, 2)


def test_the_recommended_configuration_has_what_each_style_can():
    decoder, encoder = GMAConfig.recommended(), GMAConfig.recommended(is_causal=False, num_components=32)
    for config in (decoder, encoder):
        assert config.read_exponent == "learned" and config.normalize_routing and config.output_gate
    assert decoder.is_causal and decoder.forget_gate and decoder.position_limit is None
    assert not encoder.is_causal and not encoder.forget_gate and encoder.norm_position == "post"
    assert (decoder.num_components, encoder.num_components) == (64, 32)


@pytest.mark.parametrize("style", STYLES, ids=["gpt2_style", "bert_style"])
def test_arguments_win_over_a_style(style):
    config = style(vocab_size=7, hidden_act="relu", max_position_embeddings=9, hidden_size=12, num_attention_heads=3)
    assert (config.vocab_size, config.hidden_act, config.max_position_embeddings) == (7, "relu", 9)
    assert config.head_dim == config.routing_dim == 4 and config.intermediate_size == 48


@pytest.mark.parametrize(
    "name", ["causal", "causal_additions", "causal_hybrid", "bidirectional", "bidirectional_conv"]
)
def test_saving_and_loading_keeps_everything(make_config, tmp_path, name):
    config = make_config(name, num_labels=5, read_epsilon=1e-5, classifier_dropout=0.25)
    config.save_pretrained(tmp_path)
    loaded = GMAConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.num_labels == 5 and loaded.model_type == "gma"


@pytest.mark.parametrize(("name", "wrong", "said"), REFUSED, ids=[f"{case[0]} {case[1]}" for case in REFUSED])
def test_a_wrong_value_is_refused_in_one_sentence(make_config, name, wrong, said):
    with pytest.raises(ValueError) as error:
        make_config(name, **wrong)
    message = str(error.value)
    for words in said:
        assert words in message
    assert message.endswith(".") and "\n" not in message and ". " not in message


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_a_causal_convolution_may_be_even(make_config, kernel_size):
    assert make_config("causal", conv_kernel_size=kernel_size).conv_kernel_size == kernel_size


@pytest.mark.parametrize(("is_causal", "head"), [(True, "CausalLM"), (False, "MaskedLM")])
def test_the_auto_map_names_every_class_of_the_style(is_causal, head):
    config = GMAConfig(is_causal=is_causal)
    tasks = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"]
    expected = {"AutoConfig", "AutoModel", *(f"AutoModelFor{task}" for task in [head, *tasks])}
    assert set(config.auto_map) == expected


@pytest.mark.parametrize("choices", [{}, {"normalize_routing": True}], ids=["plain", "normalised"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@torch.no_grad()
def test_the_routing_starts_smooth_at_every_width(head_dim, choices):
    """Posterior entropy near log K, and every component used."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 4 * head_dim, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = GMAForCausalLM(GMAConfig.gpt2_style(**sizes, **choices)).eval()
    sides = model(torch.randint(0, 400, (4, 128)), output_responsibilities=True).responsibilities
    gamma = torch.stack([gamma for pair in sides for gamma in pair])
    assert torch.special.entr(gamma).sum(-1).mean() > 0.8 * math.log(64)
    assert (gamma.mean(dim=(1, 3)) * 64 > 0.1).all()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"hidden_size": 25}, "`hidden_size`"),
        ({"num_hidden_layers": 1}, "`layer_types`"),
        ({"is_causal": False}, "`forget_gate`"),
    ],
)
def test_a_value_given_when_loading_is_checked(make_config, make_model, tmp_path, override, said):
    make_model(GMAForCausalLM, make_config("causal_additions")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        GMAModel.from_pretrained(tmp_path, **override)


def test_the_style_given_when_loading_decides_the_auto_map(make_config, make_model, tmp_path):
    make_model(GMAForCausalLM, make_config("causal")).save_pretrained(tmp_path)
    config = GMAModel.from_pretrained(tmp_path, is_causal=False).config
    assert "AutoModelForMaskedLM" in config.auto_map and "AutoModelForCausalLM" not in config.auto_map


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("normalize_routing", [True, False])
def test_an_extreme_temperature_is_taken_or_refused(make_config, temperature, normalize_routing):
    choices = {"routing_temperature": temperature, "normalize_routing": normalize_routing}
    if temperature == 1e3 and not normalize_routing:
        with pytest.raises(ValueError, match="`variance_floor`"):
            make_config("causal", **choices)
        return
    config = make_config("causal", **choices)
    mixture = GMAModel(config).layers[0].attention.mixture
    torch.testing.assert_close(mixture.variances, torch.full_like(mixture.variances, config.initial_variance))
