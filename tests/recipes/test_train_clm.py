"""The recipe as its user runs it: a short training on the text sample, saved, resumed, fine-tuned and evaluated."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gma_hf.recipes import train_clm


ROOT = Path(__file__).parents[2]
TEXT = ROOT / "tests" / "data" / "shakespeare.txt"
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "forget_gate": True, "hidden_dropout_prob": 0.0}


def arguments(output, *more):
    common = ["--output_dir", output, "--block_size", 64, "--learning_rate", 1e-2, "--report_to", "none", "--seed", 0]
    common += ["--use_cpu", True, "--save_strategy", "steps", "--save_steps", 10]
    return [str(argument) for argument in (*common, *more)]


SCRATCH = ["--train_file", TEXT, "--train_tokenizer", 257, "--model_config", json.dumps(MODEL)]


def test_a_data_set_by_its_name(tmp_path):
    """Loaded as from the Hub, from a folder: its own validation split is what is evaluated."""
    text = TEXT.read_text(encoding="utf-8")
    losses = []
    for name, validation in (("verse", text[20_000:]), ("digits", "0123456789" * 1000)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.txt").write_text(text[:20_000], encoding="utf-8")
        (folder / "validation.txt").write_text(validation, encoding="utf-8")
        data = ["--dataset_name", folder, *SCRATCH[2:], "--max_steps", 5]
        losses.append(train_clm.main(arguments(tmp_path / f"{name} run", *data))["eval_loss"])
    assert losses[0] < losses[1]


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def transformers_log():
    """What Transformers logs as a warning, line by line."""
    lines, logger = [], logging.getLogger("transformers")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_trains_resumes_and_fine_tunes(tmp_path, capsys, transformers_log):
    first = train_clm.main(arguments(tmp_path / "run", *SCRATCH, "--max_steps", 10))
    resumed = train_clm.main(arguments(tmp_path / "run", *SCRATCH, "--max_steps", 20))
    state = json.loads((tmp_path / "run" / "checkpoint-20" / "trainer_state.json").read_text())
    assert state["global_step"] == 20
    assert f"Resuming from '{tmp_path}/run/checkpoint-10': 10 of the 20 steps" in capsys.readouterr().out
    assert not [line for line in transformers_log if "missing keys" in line]  # the head is tied to the embedding
    before = files_of(tmp_path / "run")
    assert train_clm.main(arguments(tmp_path / "run", *SCRATCH, "--max_steps", 20)) == resumed
    assert f"The run in '{tmp_path}/run' is finished: 20 of the 20 steps" in capsys.readouterr().out
    assert files_of(tmp_path / "run") == before
    assert not (tmp_path / "run" / "checkpoint-21").exists()
    assert resumed["eval_loss"] < first["eval_loss"] < torch.log(torch.tensor(257.0))
    assert resumed["perplexity"] == pytest.approx(torch.tensor(resumed["eval_loss"]).exp().item(), rel=1e-4)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    inputs = tokenizer("First Citizen:\n", return_tensors="pt")
    assert tokenizer.decode(inputs["input_ids"][0]) == "First Citizen:\n"
    assert model.generate(**inputs, max_new_tokens=5, min_new_tokens=5).shape[1] == len("First Citizen:\n") + 5

    tuning = ["--train_file", TEXT, "--model_name_or_path", tmp_path / "run", "--max_steps", 10]
    tuned = train_clm.main(arguments(tmp_path / "tuned", *tuning))
    assert tuned["eval_loss"] < first["eval_loss"]


def test_what_was_interrupted_is_taken_up(tmp_path, capsys):
    """While a checkpoint was saved, and between the last checkpoint and the end."""
    folder = tmp_path / "run"
    whole = train_clm.main(arguments(folder, *SCRATCH, "--max_steps", 4, "--save_steps", 2))
    weights = load_file(folder / "model.safetensors")
    for name in ("eval_results.json", "model.safetensors", "checkpoint-4/trainer_state.json"):
        (folder / name).unlink()
    again = train_clm.main(arguments(folder, *SCRATCH, "--max_steps", 4, "--save_steps", 2))
    assert "checkpoint-2': 2 of the 4 steps" in capsys.readouterr().out
    assert again["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)

    shutil.rmtree(folder / "checkpoint-2")
    (folder / "eval_results.json").unlink()
    last = train_clm.main(arguments(folder, *SCRATCH, "--max_steps", 4, "--save_steps", 2))
    assert "is finished: 4 of the 4 steps" in capsys.readouterr().out
    assert last["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name
    assert json.loads((folder / "config.json").read_text())["use_cache"]


def test_takes_another_architecture(tmp_path):
    gpt2 = json.dumps({"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64})
    files = ["--train_file", TEXT, "--validation_file", TEXT, "--train_tokenizer", 300]
    choices = ["--model_type", "gpt2", "--model_config", gpt2, "--max_steps", 2]
    train_clm.main(arguments(tmp_path / "gpt2", *files, *choices))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").config.model_type == "gpt2"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            ["--train_file", TEXT, "--train_tokenizer", 300, "--model_config", "{1"],
            "`model_config` must be JSON, but '{1'",
        ),
        (["--train_file", TEXT, "--train_tokenizer", 300, "--model_config", "no.json"], "a file of it, but 'no.json'"),
        (
            ["--train_file", TEXT, "--train_tokenizer", 300, "--model_config", '{"hiden_size": 8}'],
            "`model_config` must have fields of GMAConfig, but one is 'hiden_size'",
        ),
        (["--train_tokenizer", 300], "Exactly one of `dataset_name` and `train_file` must be given"),
        (["--train_file", "no/such/file", "--train_tokenizer", 300], "but 'no/such/file' is not a file"),
        (["--train_file", TEXT], "`tokenizer_name` or `train_tokenizer` must be given where no checkpoint is"),
        (["--train_file", TEXT, "--train_tokenizer", 10], "`train_tokenizer` must be at least 257"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(tmp_path, wrong, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train_clm.main(arguments(tmp_path / "run", *wrong))
    assert not (tmp_path / "run").exists()
