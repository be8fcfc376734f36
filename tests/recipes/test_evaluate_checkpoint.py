"""A checkpoint that is evaluated: the loss is the model's own, by token."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gma_hf.recipes import evaluate_checkpoint


ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_cards" / "gma-shakespeare"
TEXT = ROOT / "tests" / "data" / "shakespeare.txt"


def test_the_loss_is_the_mean_over_all_tokens():
    given = ["--checkpoint", SHIPPED, "--test_file", TEXT, "--block_size", 100, "--max_examples", 9]
    metrics = evaluate_checkpoint.main([str(argument) for argument in (*given, "--batch_size", 4)])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    tokens = tokenizer(TEXT.read_text(), return_tensors="pt")["input_ids"][0, :900].view(9, 100)
    with torch.no_grad():
        output = model(tokens, labels=tokens)
    assert metrics["tokens"] == 9 * 99
    assert metrics["loss"] == pytest.approx(output.loss.item(), rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    right = output.logits[:, :-1].argmax(-1) == tokens[:, 1:]
    assert metrics["accuracy"] == pytest.approx(right.float().mean().item(), abs=2 / 891)


def test_an_architecture_of_transformers(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=16, n_layer=1, n_head=1, n_positions=32)).eval()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(tmp_path)
    given = ["--checkpoint", tmp_path, "--test_file", TEXT, "--block_size", 32, "--max_examples", 2]
    metrics = evaluate_checkpoint.main([str(argument) for argument in given])
    assert metrics["tokens"] == 2 * 31 and metrics["loss"] == pytest.approx(math.log(257), abs=0.3)


def test_a_file_is_replaced_only_if_told(tmp_path):
    out = tmp_path / "metrics.json"
    out.write_text("by hand")
    given = ["--checkpoint", SHIPPED, "--test_file", TEXT, "--max_examples", 2, "--output_file", out]
    with pytest.raises(ValueError, match="`output_file` must not exist without --force, but "):
        evaluate_checkpoint.main([str(argument) for argument in given])
    assert out.read_text() == "by hand"
    metrics = evaluate_checkpoint.main([str(argument) for argument in (*given, "--force")])
    assert json.loads(out.read_text()) == metrics


def test_what_is_no_task_is_refused(tmp_path):
    folder = ROOT / "model_cards" / "gma-minilm-l6"
    with pytest.raises(ValueError, match="`checkpoint` must be a causal language model, .* but .* is GMAModel"):
        evaluate_checkpoint.main(["--checkpoint", str(folder), "--test_file", str(TEXT)])
    with pytest.raises(ValueError, match="Exactly one of `dataset_name` and `test_file` must be given, but neither"):
        evaluate_checkpoint.main(["--checkpoint", str(SHIPPED)])
