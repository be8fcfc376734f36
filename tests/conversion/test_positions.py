"""More positions than the source has: what it can read is read as before, and what is longer is read too."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from gma_hf import GMAConfig, GMAModel, convert_checkpoint
from gma_hf.cli import app
from gma_hf.conversion.families import FAMILIES
from gma_hf.conversion.positions import extend_positions
from gma_hf.conversion.source import open_tokenizer


POSITIONS = 40  # of all small sources, as tokens
SHAKESPEARE = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"


def bare(family):
    return next(iter(FAMILIES[family].heads))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_short_texts_are_read_as_before_and_long_ones_too(family, make_source, make_inputs):
    source = make_source(family, bare(family))
    longer = convert_checkpoint(source, layers="none", max_position_embeddings=100)
    assert longer.config.max_position_embeddings == longer.config.position_limit == 100
    real = make_inputs(family)["attention_mask"].bool()
    expected, actual = (model(**make_inputs(family)).last_hidden_state[real] for model in (source, longer))
    assert (actual - expected).abs().max() < 1e-5

    whole = torch.randint(5, 59, (1, POSITIONS), generator=torch.Generator().manual_seed(0))
    expected, actual = (model(whole).last_hidden_state for model in (source, longer))
    assert (actual - expected).abs().max() < 1e-5
    assert longer(whole.repeat(1, 2)).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match="reach position 119"):
        longer(whole.repeat(1, 3))


def test_the_positions_of_the_source_come_round(make_source):
    source = make_source("roberta", "RobertaModel")
    positions = convert_checkpoint(source, max_position_embeddings=100).embeddings.position_embeddings.weight
    theirs = source.embeddings.position_embeddings.weight[2:]
    assert torch.equal(positions, theirs.repeat(3, 1)[:100])
    assert positions.requires_grad


def test_gma_layers_are_fitted_as_without(make_source):
    tokens = [torch.randint(5, 59, (4, 60), generator=torch.Generator().manual_seed(0))]
    plain, longer = (
        convert_checkpoint(
            make_source("bert", "BertModel"), num_components=8, calibration=tokens, max_position_embeddings=positions
        )
        for positions in (None, 64)
    )
    for (name, one), other in zip(plain.named_parameters(), longer.parameters(), strict=True):
        assert torch.equal(one, other[: len(one)]), name


@pytest.mark.parametrize("positions", [39, 0, -1, 64.0, "64", True])
def test_fewer_positions_or_no_number_are_refused(positions, make_source):
    with pytest.raises(ValueError, match="`max_position_embeddings` must be .* the 40 positions of the source"):
        convert_checkpoint(make_source("roberta", "RobertaModel"), max_position_embeddings=positions)


def test_a_model_without_positions_needs_no_more():
    sizes = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="`max_position_embeddings` must be left out .* it is 100"):
        extend_positions(GMAModel(GMAConfig.bert_style(position_embedding="none", **sizes)), 100)


def test_the_tokenizer_follows(make_source, tmp_path):
    make_source("gpt2", "GPT2LMHeadModel", vocab_size=300).save_pretrained(tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(SHAKESPEARE, model_max_length=POSITIONS)
    tokenizer.backend_tokenizer.enable_truncation(30)  # as sentence-transformers leaves it
    tokenizer.save_pretrained(tmp_path / "source")
    assert open_tokenizer(tmp_path / "source").model_max_length == POSITIONS
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "out"), "--num-components", "4"]
    done = CliRunner().invoke(app, [*command, "--max-positions", "100"])
    assert done.exit_code == 0, done.stderr
    assert AutoModel.from_pretrained(tmp_path / "out").config.max_position_embeddings == 100
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 100
    assert len(tokenizer("a long text " * 100, truncation=True)["input_ids"]) == 100
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["truncation"]["max_length"] == 100
    refused = CliRunner().invoke(app, [*command, "--force", "--max-positions", "39"])
    assert refused.exit_code == 2 and "`max_position_embeddings` must be" in refused.stderr
