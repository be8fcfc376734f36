"""A masked language model as its user trains it, and evaluates it again."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling, pipeline

from gma_hf.recipes import evaluate_checkpoint, texts, tokenizing, train_mlm
from gma_hf.recipes.arguments import ModelArguments


TEXT = Path(__file__).parents[1] / "data" / "shakespeare.txt"
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "hidden_dropout_prob": 0.0}


def arguments(output, *more):
    common = ["--train_file", TEXT, "--train_tokenizer", 300, "--model_config", json.dumps(MODEL), "--seed", 0]
    common += ["--output_dir", output, "--block_size", 64, "--learning_rate", 1e-2, "--report_to", "none"]
    common += ["--use_cpu", True, "--save_strategy", "steps", "--save_steps", 15]
    return [str(argument) for argument in (*common, *more)]


@torch.no_grad()
def figures_by_hand(folder, validation):
    """Of a saved model, the mean loss of the masked tokens, and the share of them that it finds."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    tokens = torch.tensor([token for ids in tokenizer(list(validation["text"]))["input_ids"] for token in ids])
    blocks = tokens[: len(tokens) // 64 * 64].view(-1, 64)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)
    masked = collator([{"input_ids": block} for block in blocks.tolist()])
    asked = masked["labels"] != -100
    assert torch.equal(masked["labels"][asked], blocks[asked])
    logits = model(masked["input_ids"]).logits[asked]
    return cross_entropy(logits, blocks[asked]).item(), (logits.argmax(-1) == blocks[asked]).float().mean().item()


def test_learns_resumes_and_is_evaluated_alike(tmp_path):
    folder = tmp_path / "run"
    first = train_mlm.main(arguments(folder, "--max_steps", 15))
    metrics = train_mlm.main(arguments(folder, "--max_steps", 30))
    assert metrics["eval_loss"] < first["eval_loss"] < torch.log(torch.tensor(300.0))
    validation = texts.load_text(texts.DataArguments(train_file=[str(TEXT)]))["validation"]
    loss, accuracy = figures_by_hand(folder, validation)
    assert metrics["eval_accuracy"] == pytest.approx(accuracy, abs=1e-6) and accuracy > 0

    (tmp_path / "validation.txt").write_text("".join(validation["text"]))
    given = ["--checkpoint", folder, "--test_file", tmp_path / "validation.txt", "--block_size", 64, "--seed", 0]
    evaluated = evaluate_checkpoint.main([str(argument) for argument in given])
    assert evaluated["accuracy"] == pytest.approx(metrics["eval_accuracy"])
    assert evaluated["loss"] == pytest.approx(loss, rel=1e-4)
    # Trainer takes the mean over its batches, the recipe the one over the tokens
    assert evaluated["loss"] == pytest.approx(metrics["eval_loss"], rel=0.02)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = pipeline("fill-mask", str(folder), device="cpu")(f"First Citi{tokenizer.mask_token}")
    assert len(found) == 5


def test_validation_is_masked_once_and_training_anew(tmp_path):
    tokenizer = tokenizing.load_encoder_tokenizer(ModelArguments(train_tokenizer=260), [])
    blocks = train_mlm.Dataset.from_list([{"input_ids": list(range(10, 74))}] * 8)
    once, again = (train_mlm.masked_once(blocks, tokenizer, 0.3, seed) for seed in (0, 0))
    other = train_mlm.masked_once(blocks, tokenizer, 0.3, 1)
    assert once["input_ids"] == again["input_ids"] != other["input_ids"]
    labels = torch.tensor(once["labels"])
    assert (labels != -100).float().mean() == pytest.approx(0.3, abs=0.08)
    assert torch.equal(labels[labels != -100], torch.tensor(blocks["input_ids"])[labels != -100])
    collator = train_mlm.MaskingCollator(tokenizer, 0.3)
    first, second = (collator([{"input_ids": list(range(10, 74))}])["input_ids"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(collator([once[0]])["input_ids"][0], torch.tensor(once[0]["input_ids"]))
