"""`gma-hf card`: a model card of what Trainer has written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from typer.testing import CliRunner

import gma_hf
from gma_hf.cli import app


SHIPPED = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"
ROWS = [{"input_ids": [1 + (5 * i + j) % 60 for j in range(12)]} for i in range(8)]
ROWS = [{**row, "labels": row["input_ids"]} for row in ROWS]


@pytest.fixture(scope="module")
def trained(make_config, make_model, tmp_path_factory):
    """The `output_dir` of a training of four steps, evaluated at each second."""
    folder = tmp_path_factory.mktemp("runs") / "gma-test"
    model = make_model(gma_hf.GMAForCausalLM, make_config("causal_additions", vocab_size=257, pad_token_id=0))
    arguments = TrainingArguments(
        folder,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=4,
        per_device_train_batch_size=2,
        learning_rate=3e-3,
        weight_decay=0.25,
        seed=7,
        report_to="none",
        use_cpu=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    trainer = Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, processing_class=tokenizer)
    result = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_metrics("eval", {**trainer.evaluate(), "perplexity": 12.5})
    return folder


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / trained.name)


def run(*arguments):
    return CliRunner().invoke(app, ["card", *map(str, arguments)])


def refused(result, sentence):
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


def tables(card):
    """The rows of all tables of a card, by their first column."""
    rows = [line.strip("| ").split(" | ") for line in card.content.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in rows}


def test_the_card_of_a_training(run_folder, monkeypatch):
    options = ["--license", "apache-2.0", "--language", "en", "--dataset", "me/texts", "--base-model", "me/base"]
    result = run(run_folder, *options)
    assert (result.exit_code, result.stdout) == (0, f"Written: {run_folder / 'README.md'}\n")
    card = ModelCard.load(run_folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0" and data["language"] == "en" and data["base_model"] == "me/base"
    assert data["datasets"] == ["me/texts"] and {"gma", "custom_code"} <= set(data["tags"])
    metrics = json.loads((run_folder / "all_results.json").read_text())
    assert {entry.metric_type: entry.metric_value for entry in card.data.eval_results} == {
        "eval_loss": metrics["eval_loss"],
        "perplexity": 12.5,
    }

    rows = tables(card)
    assert rows["eval_loss"] == [f"{metrics['eval_loss']:.4g}"] and rows["perplexity"] == ["12.5"]
    assert rows["train_loss"] == [f"{metrics['train_loss']:.4g}"]
    state = json.loads((run_folder / "checkpoint-4" / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert losses.keys() == {2, 4}
    assert all(rows[str(step)][1] == f"{loss:.4g}" for step, loss in losses.items())
    assert rows["learning_rate"] == ["0.003"] and rows["weight_decay"] == ["0.25"] and rows["max_steps"] == ["4"]
    assert rows["per_device_train_batch_size"] == ["2"] and rows["seed"] == ["7"]
    assert rows["lr_scheduler_type"] == ["linear"] and "num_train_epochs" not in rows

    monkeypatch.chdir(run_folder.parent)
    names = {}
    exec(card.content.split("```python")[1].split("```")[0], names)
    assert type(names["model"]).__name__ == "GMAForCausalLM"
    assert f"{names['model'].num_parameters():,} parameters" in card.content
    assert names["tokenizer"].decode(names["tokenizer"]("ROMEO:")["input_ids"]) == "ROMEO:"


def test_the_card_of_a_checkpoint(run_folder):
    """It has no metrics of its own but those on record, and no data set is claimed."""
    folder = run_folder / "checkpoint-4"
    assert run(folder, "--name", "me/gma-test").exit_code == 0
    card = ModelCard.load(folder / "README.md")
    state = json.loads((folder / "trainer_state.json").read_text())
    assert tables(card)["eval_loss"] == [f"{state['log_history'][-1]['eval_loss']:.4g}"]
    assert 'from_pretrained("me/gma-test", trust_remote_code=True)' in card.content
    assert card.data.eval_results is None and "datasets" not in card.data.to_dict()


def test_a_card_that_is_there_is_kept_unless_told(run_folder):
    path = run_folder / "README.md"
    path.write_text("by hand")
    refused(run(run_folder), "FOLDER must have no README.md without --force, but ")
    assert path.read_text() == "by hand"
    assert run(run_folder, "--overwrite").exit_code == 0
    assert "# gma-test" in path.read_text()


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def gpt2(folder):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "options", "sentence"),
    [
        (shutil.rmtree, [], "FOLDER must be a folder that Trainer has written, but "),
        (remove("config.json"), [], "FOLDER must hold config.json, in JSON, but "),
        (write("config.json", "{"), [], "FOLDER must hold config.json, in JSON, but "),
        (gpt2, [], "FOLDER must hold a GMA model, but the `model_type` in "),
        (remove("model.safetensors"), [], "FOLDER must hold weights, model.safetensors, but "),
        (write("model.safetensors", "x"), [], "model.safetensors must be a file of safetensors, but "),
        (remove("training_args.bin"), [], "FOLDER must hold training_args.bin, as Trainer writes it, but "),
        (
            write("training_args.bin", "x"),
            [],
            "training_args.bin must hold transformers.TrainingArguments alone, but ",
        ),
        (write("eval_results.json", "[]"), [], "eval_results.json must hold numbers by name, but "),
        (write("trainer_state.json", "{}"), [], "trainer_state.json must hold a `log_history`, but "),
        (None, ["--name", "a/b/c"], "--name must be a name on the Hub, as user/name, but it is 'a/b/c'."),
        (None, ["--base-model", "a b"], "--base-model must be a name on the Hub, as user/name, but it is 'a b'."),
        (None, ["--dataset", "-a"], "--dataset must be a name on the Hub, as user/name, but it is '-a'."),
        (
            None,
            ["--license", "my own"],
            "--license must be an identifier of the Hub, as apache-2.0, but it is 'my own'",
        ),
        (None, ["--language", "en, de"], "--language must be an identifier of the Hub, as en, but it is 'en, de'."),
    ],
)
def test_wrong_input_is_refused_in_a_sentence_and_writes_nothing(run_folder, spoil, options, sentence):
    if spoil is not None:
        spoil(run_folder)
    there = sorted(run_folder.rglob("*"))
    refused(run(run_folder, *options), sentence)
    assert sorted(run_folder.rglob("*")) == there


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_training_arguments_that_would_run_code_do_not(run_folder, tmp_path):
    torch.save(Trap(tmp_path / "ran"), run_folder / "training_args.bin")
    refused(run(run_folder), "training_args.bin must hold transformers.TrainingArguments alone, but ")
    assert not (tmp_path / "ran").exists()
