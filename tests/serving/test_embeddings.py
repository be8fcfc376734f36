"""Encoders as embedding models in vLLM."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from gma_hf import GMAConfig, GMAModel


pytest.importorskip("vllm")
CARDS = Path(__file__).parents[2] / "model_cards"
SIZES = {"vocab_size": 257, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_components": 7}
STACKS = {
    "plain": {},
    "additions": {"conv_kernel_size": 3, "normalize_routing": True, "output_gate": True, "read_exponent": "learned"},
    "hybrid": {"layer_types": ["gma", "full_attention", "gma"]},
}


@pytest.fixture
def embed(open_in_vllm):
    """`embed(folder, texts)`: the embeddings of texts that vLLM gets all at once, `[texts, hidden]`."""

    def run(folder, texts: list[list[int]]) -> torch.Tensor:
        llm = open_in_vllm(folder, skip_tokenizer_init=False, max_num_batched_tokens=512)
        outputs = llm.embed([{"prompt_token_ids": text} for text in texts], use_tqdm=False)
        return torch.tensor([output.outputs.embedding for output in outputs])

    return run


@torch.no_grad()
def means(model, texts: list[list[int]]) -> torch.Tensor:
    """Return the mean of the last hidden states of each text, read alone, of norm 1."""
    found = [model(torch.tensor([text])).last_hidden_state[0].mean(0) for text in texts]
    return torch.nn.functional.normalize(torch.stack(found), dim=-1)


@pytest.mark.parametrize("stack", STACKS)
def test_texts_get_the_mean_of_their_hidden_states(make_model, embed, assert_close, tmp_path, stack):
    model = make_model(GMAModel, GMAConfig.bert_style(**SIZES, **STACKS[stack]))
    model.save_pretrained(tmp_path)
    for file in (CARDS / "gma-shakespeare").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    chance = random.Random(0)
    texts = [[chance.randint(1, 256) for _ in range(length)] for length in [1, 1, 2, 200, 64, 3, 130] * 3]
    assert_close(embed(tmp_path, texts), means(model, texts), 1e-5)


def test_the_shipped_encoder(embed, assert_close):
    folder = CARDS / "gma-minilm-l6"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = ["The cat sits outside.", "A man is playing guitar.", "The new movie is awesome, and so is the cat."]
    texts = tokenizer(sentences)["input_ids"]
    model = GMAModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert_close(embed(folder, texts), means(model, texts), 1e-5)
