"""What is wrong with the input of a recipe ends it in one sentence, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from gma_hf.errors import MissingExtra
from gma_hf.recipes import classify, demo, distill, evaluate_checkpoint, stream, train_clm, train_mlm
from gma_hf.recipes.running import run, train_extra


ROOT = Path(__file__).parents[2]
TEXT = ROOT / "tests" / "data" / "shakespeare.txt"
SHIPPED = ROOT / "model_cards" / "gma-shakespeare"
MODEL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_components": 8}
SCRATCH = ["--train_tokenizer", 300, "--model_config", json.dumps(MODEL), "--report_to", "none", "--use_cpu", True]
READ = ["--train_file", TEXT, *SCRATCH]


@pytest.fixture
def folder(tmp_path):
    """Files that are wrong in one way each."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("naïve café\n".encode("latin-1") * 50)
    (tmp_path / "utf16.txt").write_text("naïve café\n" * 50, encoding="utf-16")
    (tmp_path / "short.txt").write_text("To be, or not to be.\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "table.csv").write_text("text,label,number\na,0,1\nb,1,2\n")
    (tmp_path / "tokens.jsonl").write_text('{"input_ids": [1, 999], "label": 0}\n' * 20)
    (tmp_path / "wrong.yaml").write_text("learning_rat: 1\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "no_checkpoint").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("main", "arguments", "sentence"),
    [
        (train_clm.main, ["--train_file", "empty.txt", *SCRATCH], "`train_file` must hold some text, but 'empty.txt'"),
        (train_clm.main, ["--train_file", "blank.txt", *SCRATCH], "`train_file` must hold some text, but 'blank.txt'"),
        (train_clm.main, ["--train_file", "latin.txt", *SCRATCH], "`train_file` must be a text in UTF-8, but 'latin"),
        (train_mlm.main, ["--train_file", "utf16.txt", *SCRATCH], "`train_file` must be a text in UTF-8, but 'utf16"),
        (train_clm.main, [*READ, "--validation_file", "latin.txt"], "`validation_file` must be a text in UTF-8"),
        (train_clm.main, ["--train_file", "none.txt", *SCRATCH], "`train_file` must be files, but 'none.txt' is not"),
        (
            train_clm.main,
            ["--train_file", "short.txt", *SCRATCH],
            "There must be two texts (lines, rows) at least, of which one is held out",
        ),
        (train_clm.main, [*READ, "--block_size", 0], "`block_size` must be at least 1, but it is 0"),
        (train_clm.main, ["--train_file", "broken.json", *SCRATCH], "Files must be readable as json, but broken.json"),
        (
            train_clm.main,
            ["--train_file", "broken.parquet", *SCRATCH],
            "Files must be readable as parquet, but broken",
        ),
        (
            train_clm.main,
            ["--train_file", "table.csv", "--text_column", "number", *SCRATCH],
            "`text_column` must hold",
        ),
        (
            train_clm.main,
            ["--train_file", "tokens.jsonl", "--text_column", "input_ids", *SCRATCH],
            "`text_column` must hold text, but 'input_ids' holds List(Value('int64')).",
        ),
        (
            evaluate_checkpoint.main,
            ["--checkpoint", SHIPPED, "--test_file", "tokens.jsonl", "--text_column", "input_ids"],
            "`text_column` must hold text, but 'input_ids' holds List(Value('int64')).",
        ),
        (train_clm.main, ["--dataset_name", "no/such", *SCRATCH], "`dataset_name` must be a data set of the Hub or a"),
        (train_clm.main, SCRATCH, "Exactly one of `dataset_name` and `train_file` must be given, but neither are"),
        (train_clm.main, [*READ, "--config", "wrong.yaml"], "`config` must hold arguments of this recipe, but"),
        (train_clm.main, [*READ, "--config", "broken.yaml"], "`config` must be a YAML file, but 'broken.yaml' is not"),
        (train_clm.main, [*READ, "--config", "wikitext3"], "or one of imdb-bytes, imdb-bytes-lm, wikitext2, but"),
        (train_clm.main, [*READ, "--model_config", "no.json"], "`model_config` must be JSON or a file of it, but"),
        (train_clm.main, [*READ, "--model_config", "[1]"], "`model_config` must be JSON or a file of it, but '[1]'"),
        (train_clm.main, [*READ, "--max_steps", "many"], "invalid int value: 'many'"),
        (train_clm.main, [*READ, "--max_stepz", 3], "but one is '--max_stepz': did you mean --max_steps."),
        (
            train_clm.main,
            [*READ, "--model_name_or_path", "no_such"],
            "`model_name_or_path` is 'no_such', but there is",
        ),
        (
            train_clm.main,
            [*READ, "--model_name_or_path", "no_checkpoint"],
            "`model_name_or_path` must hold config.json",
        ),
        (
            train_clm.main,
            ["--train_file", TEXT, "--tokenizer_name", "no_checkpoint"],
            "`tokenizer_name` must hold a to",
        ),
        (
            train_clm.main,
            [*READ, "--resume_from_checkpoint", "no_checkpoint"],
            "`resume_from_checkpoint` must be a ch",
        ),
        (train_clm.main, [*READ, "--output_dir", "short.txt/run"], "`output_dir` must be a folder to write to, but"),
        (
            classify.main,
            ["--train_file", "table.csv", "--validation_file", "table.csv", "--label_column", "clas", *SCRATCH],
            "`label_column` must be one",
        ),
        (
            distill.main,
            ["--source", "no/such", "--train_file", TEXT],
            "`source` is 'no/such', but there is no such fol",
        ),
        (distill.main, ["--train_file", TEXT], "the following arguments are required: --source"),
        (
            evaluate_checkpoint.main,
            ["--checkpoint", "no/such"],
            "`checkpoint` is 'no/such', but there is no such folde",
        ),
        (
            evaluate_checkpoint.main,
            ["--checkpoint", SHIPPED, "--test_file", "latin.txt"],
            "`test_file` must be a text",
        ),
        (evaluate_checkpoint.main, ["--checkpoint", SHIPPED, "--test_file", "none"], "`test_file` must be files, but"),
        (demo.main, ["--checkpoint", "no_such"], "`checkpoint` is 'no_such', but there is no such folder"),
        (
            stream.main,
            ["--checkpoint", "no_checkpoint"],
            "`checkpoint` must hold config.json, but 'no_checkpoint' does",
        ),
    ],
)
def test_wrong_input_ends_in_a_sentence(folder, monkeypatch, capsys, main, arguments, sentence):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["/somewhere/recipe.py"])
    if main not in (evaluate_checkpoint.main, demo.main, stream.main) and "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", "run"]
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([str(argument) for argument in arguments]))
    printed = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert sentence in printed[-1] and printed[-1].startswith("recipe: ")
    assert not [line for line in printed if "Traceback" in line]
    assert {path.name for path in folder.iterdir()} == before


def test_what_is_a_fault_of_the_recipe_keeps_its_traceback():
    def main():
        raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        run(main)


def test_a_missing_extra_says_what_installs_it(tmp_path):
    needed = r'A recipe needs `pip install "gma-hf\[train\]"`.*no_such_library'
    with pytest.raises(MissingExtra, match=needed), train_extra():
        import no_such_library  # noqa: F401
    # As a command, in an environment without datasets
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["datasets"] = None\n')
    command = [sys.executable, "-m", "gma_hf.recipes.train_clm", "--help"]
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, env=path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith('train_clm: A recipe needs `pip install "gma-hf[train]"`')
    assert "Traceback" not in ended.stderr


def test_what_libraries_say_that_are_merely_installed_is_not_shown():
    command = [sys.executable, "-m", "gma_hf.recipes.demo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and "--max_new_tokens" in done.stdout


def test_an_interrupted_training_ends_with_130(tmp_path):
    steps = ["--max_steps", 1_000_000, "--logging_steps", 1, "--save_strategy", "no", "--disable_tqdm", True]
    arguments = [*READ, "--block_size", 32, *steps, "--output_dir", tmp_path / "run"]
    command = [sys.executable, "-u", "-m", "gma_hf.recipes.train_clm", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        start = time.monotonic()
        while "'loss'" not in (line := process.stdout.readline()):
            assert line and time.monotonic() < start + 120
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        printed = process.stderr.read()
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "train_clm: interrupted." and "Traceback" not in printed


def test_a_process_leaves_its_group():
    """Or its threads may abort the process as it ends."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    run(lambda: None)
    assert not dist.is_initialized()
