"""Arguments from the command line and from a YAML file."""

import re

import pytest
from transformers import EarlyStoppingCallback, TrainingArguments

from gma_hf.recipes import arguments


def kinds():
    return arguments.ModelArguments, arguments.RunArguments, TrainingArguments


def test_a_file_is_read_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output_dir: {tmp_path}/out\nlearning_rate: 2e-3\nmax_steps: 7\nuse_cpu: true\nmodel_name_or_path: null\n"
        "train_tokenizer: 300\nmodel_config:\n  hidden_size: 32\n  layer_types: [gma, full_attention]\n"
        "label_names: [a, b]\n"
    )
    model, run, training = arguments.parse(kinds(), ["--config", str(path), "--max_steps", "9"])
    assert (training.learning_rate, training.max_steps, training.use_cpu) == (2e-3, 9, True)
    assert training.output_dir == f"{tmp_path}/out" and training.label_names == ["a", "b"]
    assert model.train_tokenizer == 300 and model.model_name_or_path is None
    assert model.choices() == {"hidden_size": 32, "layer_types": ["gma", "full_attention"]}
    assert run.config == str(path)
    _, _, training = arguments.parse(kinds(), [f"--config={path}"])
    assert training.max_steps == 7


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no_such_name: 1\n", "run.yaml' has 'no_such_name'"),
        ("learning_rat: 1\n", "run.yaml' has 'learning_rat'"),
        ("- 1\n", "`config` must hold arguments by name"),
        (None, "`config` must be a YAML file or one of imdb-bytes, imdb-bytes-lm, wikitext2, but"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, sentence):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        arguments.parse(kinds(), ["--config", str(path)])


def test_a_shortened_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'--learning_rat'"):
        arguments.parse(kinds(), ["--output_dir", str(tmp_path), "--learning_rat", "1"])


def test_patience_needs_the_best_checkpoint(tmp_path):
    common = {"output_dir": str(tmp_path), "eval_strategy": "steps", "use_cpu": True}
    run = arguments.RunArguments(early_stopping_patience=3)
    with pytest.raises(ValueError, match="`load_best_model_at_end` must be True .*, but it is False"):
        run.callbacks(TrainingArguments(**common))
    callbacks = run.callbacks(TrainingArguments(**common, load_best_model_at_end=True, save_strategy="steps"))
    assert isinstance(callbacks[0], EarlyStoppingCallback) and callbacks[0].early_stopping_patience == 3
    with pytest.raises(ValueError, match="`early_stopping_patience` must be at least 1, but it is 0"):
        arguments.RunArguments(early_stopping_patience=0).callbacks(TrainingArguments(**common))
