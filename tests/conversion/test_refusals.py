"""Wrong input ends in one sentence that names the argument, and nothing is left on disk."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gma_hf import convert_checkpoint
from gma_hf.cli import app


TOKENS = [torch.arange(5, 45).view(2, 20)]


def refused(sentence, *args, **kwargs):
    with pytest.raises(ValueError, match=sentence) as caught:
        convert_checkpoint(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_architectures_that_are_not_supported(make_source, tmp_path):
    config = transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=20, d_kv=4)
    model = transformers.T5ForConditionalGeneration(config)
    refused("`source` must be of type gpt2, .* but it is a T5For.*: its decoder attends to an encoder", model)
    model.save_pretrained(tmp_path)
    refused("`source` must be of type gpt2, .* but .* is a T5ForConditionalGeneration of type 't5'", tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    for name, reason in [("MPNet", "relative positions"), ("GPTNeoX", "rotates"), ("Bloom", "'bloom'\\.")]:
        config = getattr(transformers, f"{name}Config")(**sizes, vocab_size=20)
        refused(f"`source` must be of type .*{reason}", getattr(transformers, f"{name}Model")(config))
    double = transformers.GPT2DoubleHeadsModel(make_source("gpt2", "GPT2Model").config)
    refused("`source` must be one of GPT2Model, .* but it is a GPT2DoubleHeadsModel", double)


@pytest.mark.parametrize(
    "family, name, config, sentence",
    [
        ("gpt2", "GPT2LMHeadModel", {"add_cross_attention": True}, "`add_cross_attention=False`"),
        ("bert", "BertForMaskedLM", {"is_decoder": True}, "`is_decoder=False`"),
        ("electra", "ElectraForMaskedLM", {"hidden_act": "relu"}, "`hidden_act='gelu'`"),
        ("electra", "ElectraForMultipleChoice", {"summary_type": "last"}, "`summary_type='first'`"),
        ("opt", "OPTModel", {"word_embed_proj_dim": 16}, "`word_embed_proj_dim=24`"),
        ("opt", "OPTModel", {"do_layer_norm_before": False}, "`do_layer_norm_before=True`"),
    ],
)
def test_variants_that_are_not_supported(family, name, config, sentence, make_source):
    refused(f"`source` must have {sentence} in its config", make_source(family, name, **config))


def test_sources_that_cannot_be_opened(tmp_path, make_source):
    refused("`source` is '.*nothing', but there is no such folder", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused("`source` must hold config.json, but .* does not", tmp_path / "empty")
    make_source("bert", "BertForMaskedLM").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    key = next(key for key in tensors if "layer.1.output.dense.weight" in key)
    save_file({name: x for name, x in tensors.items() if name != key}, weights, metadata={"format": "pt"})
    refused(f"`source` must hold all weights of its class, but .* has none for '{key}'", tmp_path)
    save_file({**tensors, key: tensors[key][:5].contiguous()}, weights, metadata={"format": "pt"})
    refused("`source` must hold the weights of its model", tmp_path)
    weights.write_bytes(weights.read_bytes()[:500])
    refused("`source` must hold the weights of its model", tmp_path)
    weights.unlink()
    refused("`source` must hold the weights of its model", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForNothing"]}))
    refused("must be one of BertModel, .* is a BertForNothing", tmp_path)


def test_live_models_with_other_weights_than_their_class(make_source):
    source = make_source("gpt2", "GPT2Model")
    source.extra = torch.nn.Linear(2, 2)
    refused("but it has 'extra.bias' too", source)
    source = make_source("bert", "BertModel")
    source.encoder.layer[1].output.dense = torch.nn.Linear(40, 23)
    refused("must have \\[24, 40\\] as 'encoder.layer.1.output.dense.weight'", source)
    source = make_source("bert", "BertModel")
    source.encoder.layer[2].intermediate.dense = torch.nn.Identity()
    refused("has none for 'layers.2.mlp.up_proj.weight'", source)


@pytest.mark.parametrize("layers", ["some", "every:0", "every:9", "every:", [3], [-1], [0.5], ["1"], 1, None, "0,,1"])
def test_layers(layers, make_source):
    refused("`layers` must", make_source("gpt2", "GPT2Model"), layers=layers)


def test_calibration(make_source):
    source = make_source("gpt2", "GPT2Model")
    refused("`calibration` must be token batches where", source, calibration=["a text"])
    refused("`calibration` must hold texts, or token ids", source, calibration=[3])
    refused("`calibration` must hold texts, or token ids", source, calibration=[torch.zeros(2, 3)])
    refused("`calibration` must hold at least 50 tokens", source, calibration=TOKENS, num_components=100)
    refused("`calibration` must hold token ids below 61", source, calibration=[torch.full((1, 30), 61)])
    refused("`calibration` must hold some tokens", source, calibration=[torch.zeros(1, 0, dtype=torch.long)])
    refused(
        "`calibration` must hold at least 2 tokens", source, calibration=[torch.ones(1, 1).long()], num_components=1
    )


def test_fields_of_the_mixer(make_source):
    source = make_source("gpt2", "GPT2Model")
    for layers in ("all", "none"):
        refused("`num_components` must be at least 1", source, layers=layers, num_components=0)
        refused("Fields of the mixer may be .* but one is 'num_component'", source, layers=layers, num_component=8)
        refused("Fields of the mixer may be .* but one is 'routing_dim'", source, layers=layers, routing_dim=8)


def test_a_tokenizer_is_there_and_whole_or_not_there(make_source, tmp_path):
    make_source("bert", "BertModel").save_pretrained(tmp_path / "source")
    assert convert(tmp_path / "source", tmp_path / "without").exit_code == 0
    assert not list((tmp_path / "without").glob("tokenizer*"))
    text = tmp_path / "texts.txt"
    text.write_text("a text\n")
    refused_by_cli = convert(tmp_path / "source", tmp_path / "out", "--calibration", text)
    assert refused_by_cli.exit_code == 2 and "`source` has no tokenizer" in refused_by_cli.stderr
    text.write_bytes(b"caf\xe9\n")
    assert "UTF-8" in convert(tmp_path / "source", tmp_path / "out", "--calibration", text).stderr
    (tmp_path / "source" / "tokenizer.json").write_text("{")
    broken = convert(tmp_path / "source", tmp_path / "out")
    assert broken.exit_code == 2 and "`source` must hold a tokenizer that can be opened" in broken.stderr
    assert not (tmp_path / "out").exists()


def convert(*args):
    return CliRunner().invoke(app, ["convert", *map(str, args)])


def test_nothing_half_written_is_left(make_source, tmp_path, monkeypatch):
    make_source("bert", "BertModel").save_pretrained(tmp_path / "source")
    out = tmp_path / "out"
    done = convert(tmp_path / "source", out, "--layers", "0,2", "--num-components", 4)
    assert done.exit_code == 0
    assert transformers.AutoModel.from_pretrained(out).config.layer_types == ["gma", "full_attention", "gma"]
    before = sorted(path.name for path in tmp_path.iterdir())

    again = convert(tmp_path / "source", out)
    assert again.exit_code == 2
    assert "OUT must not exist without --force" in again.stderr
    assert convert(tmp_path / "source", tmp_path / "no" / "out").exit_code == 2
    assert convert(tmp_path / "nothing", tmp_path / "other").exit_code == 2
    assert convert(tmp_path / "source", tmp_path / "other", "--layers", "9").exit_code == 2

    def fail(*args, **kwargs):
        (tmp_path / "tried").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(transformers.configuration_utils.PreTrainedConfig, "to_json_file", fail)
    assert convert(tmp_path / "source", tmp_path / "other").exit_code != 0
    (tmp_path / "tried").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
