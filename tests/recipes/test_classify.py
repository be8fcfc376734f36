"""The classifier as its user trains it: from scratch, resumed, fine-tuned, as bytes, on ListOps, evaluated again."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from gma_hf.recipes import classify, evaluate_checkpoint


MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "hidden_dropout_prob": 0.0}
SPEAKERS = Path(__file__).parents[1] / "data" / "shakespeare.txt"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Which lines are names of speakers, as tables with other columns beside."""
    folder = tmp_path_factory.mktemp("tables")
    lines = [line for line in SPEAKERS.read_text().splitlines() if line and '"' not in line][:900]
    for split, of in (("train", lines[:700]), ("valid", lines[700:800]), ("test", lines[800:])):
        rows = [f"{index}\t{line}\t{int(line.endswith(':'))}" for index, line in enumerate(of)]
        (folder / f"{split}.tsv").write_text("\n".join(["id\tsentence\tspeaker", *rows]) + "\n")
    return folder


def arguments(files, output, *more):
    common = ["--train_file", files / "train.tsv", "--validation_file", files / "valid.tsv", "--report_to", "none"]
    common += ["--test_file", files / "test.tsv", "--text_column", "sentence", "--label_column", "speaker"]
    common += ["--output_dir", output, "--use_cpu", True, "--learning_rate", 1e-2, "--seed", 0, "--max_length", 48]
    common += ["--save_strategy", "steps", "--save_steps", 20, "--per_device_train_batch_size", 16]
    return [str(argument) for argument in (*common, *more)]


SCRATCH = ["--train_tokenizer", 260, "--model_config", json.dumps(MODEL)]


def test_learns_resumes_and_is_evaluated_alike(files, tmp_path):
    folder = tmp_path / "run"
    classify.main(arguments(files, folder, *SCRATCH, "--max_steps", 20))
    metrics = classify.main(arguments(files, folder, *SCRATCH, "--max_steps", 60))
    assert json.loads((folder / "checkpoint-60" / "trainer_state.json").read_text())["global_step"] == 60
    assert metrics["eval_accuracy"] > 0.95
    assert json.loads((folder / "test_results.json").read_text())["eval_accuracy"] == metrics["eval_accuracy"]

    given = ["--checkpoint", folder, "--test_file", files / "test.tsv", "--max_length", 48]
    given += ["--text_column", "sentence", "--label_column", "speaker", "--output_file", tmp_path / "metrics.json"]
    evaluated = evaluate_checkpoint.main([str(argument) for argument in given])
    assert evaluated["accuracy"] == pytest.approx(metrics["eval_accuracy"])
    assert json.loads((tmp_path / "metrics.json").read_text()) == evaluated

    named = pipeline("text-classification", str(folder), device="cpu")
    assert [x["label"] for x in named(["MENENIUS:", "You are all resolved rather to die than to famish?"])] == [
        "LABEL_1",
        "LABEL_0",
    ]

    tuned = arguments(files, tmp_path / "tuned", "--model_name_or_path", folder, "--max_steps", 10)
    tuned += ["--model_config", '{"classifier_pooling": "mean"}']
    assert classify.main(tuned)["eval_accuracy"] > 0.95
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["classifier_pooling"] == "mean"


def test_classes_with_names(files, tmp_path):
    """Names in the label column are those that the pipeline gives, whatever the order of the rows."""
    for split in ("train", "valid", "test"):
        rows = [line.split("\t") for line in (files / f"{split}.tsv").read_text().splitlines()]
        renamed = [[*row[:2], {"0": "text", "1": "name"}.get(row[2], row[2])] for row in rows]
        (tmp_path / f"{split}.tsv").write_text("\n".join("\t".join(row) for row in renamed) + "\n")
    metrics = classify.main(arguments(tmp_path, tmp_path / "run", *SCRATCH, "--max_steps", 60))
    assert metrics["eval_accuracy"] > 0.9
    named = pipeline("text-classification", str(tmp_path / "run"), device="cpu")
    assert named("MENENIUS:")[0]["label"] == "name"

    given = ["--checkpoint", tmp_path / "run", "--test_file", tmp_path / "test.tsv", "--max_length", 48]
    given += ["--text_column", "sentence", "--label_column", "speaker"]
    evaluated = evaluate_checkpoint.main([str(argument) for argument in given])
    assert evaluated["accuracy"] == pytest.approx(metrics["eval_accuracy"])


def test_bytes_and_early_stopping(files, tmp_path, capsys):
    """A rate of zero cannot get better, so that it stops after the second evaluation; 260 entries are the bytes."""
    stopping = ["--early_stopping_patience", 1, "--load_best_model_at_end", True, "--eval_strategy", "steps"]
    stopping += ["--eval_steps", 2, "--save_steps", 2, "--learning_rate", 1e-30, "--max_steps", 20]
    classify.main(arguments(files, tmp_path / "run", *SCRATCH, *stopping))
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and not (tmp_path / "run" / "checkpoint-6").exists()
    classify.main(arguments(files, tmp_path / "run", *SCRATCH, *stopping))
    assert "is finished: 4 of the 20 steps of `max_steps`, stopped early" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoint-6").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    tokens = tokenizer("naïve")["input_ids"]
    assert len(tokens) == 1 + len("naïve".encode()) and tokens[0] == tokenizer.cls_token_id
    assert len(tokenizer) == 260


def test_listops_is_made_on_the_spot(tmp_path):
    made = ["--listops", 4, 20, "--train_examples", 50, "--validation_examples", 20, "--test_examples", 30]
    made += ["--model_config", json.dumps(MODEL), "--max_steps", 2, "--output_dir", tmp_path / "run"]
    made += ["--report_to", "none", "--use_cpu", True, "--max_length", 21]
    right = 30 * classify.main([str(argument) for argument in made])["eval_accuracy"]
    assert right == pytest.approx(round(right))  # of the 30 of the test split
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert model.config.num_labels == 10
    text = "[MAX 4 3 [MIN 2 3 ] ]"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["[CLS]", *text.split()]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            ["--label_column", "class"],
            "`label_column` must be one of ['id', 'sentence', 'speaker'], but it is 'class'",
        ),
        (["--train_tokenizer", 259], "`train_tokenizer` must be at least 260"),
        (["--test_file", "no/such/file"], "`test_file` must be files, but 'no/such/file' is not a file"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(files, tmp_path, wrong, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        classify.main(arguments(files, tmp_path / "run", *SCRATCH, "--max_steps", 1, *wrong))
    assert not (tmp_path / "run").exists()
