"""`gma-hf` as a program: what it imports and when, its exit statuses, and commands that pass arguments on."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tomllib
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import gma_hf
from gma_hf.cli import app
from gma_hf.errors import MissingExtra, extra, refusals


ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_cards" / "gma-shakespeare"
COMMANDS = ["generate", "serve", "train", "distill", "convert", "report", "export", "card", "publish"]
START = [sys.executable, "-W", "error", "-c", "from gma_hf_cli import app; app()"]

MODULE = [sys.executable, "-W", "error", "-m", "gma_hf"]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def refused(result, sentence):
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


def process(*arguments, **options):
    return subprocess.run([*START, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def test_help_version_and_completion_import_nothing_heavy():
    code = f"""
import contextlib, io, sys
from gma_hf_cli import app
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in {COMMANDS})]:
    sys.argv = ["gma-hf", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            app()
        except SystemExit as error:
            assert error.code == 0, arguments
    assert said.getvalue(), arguments
    print(said.getvalue() if len(arguments) == 1 else "")
assert not {{"torch", "transformers", "huggingface_hub"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"gma-hf {gma_hf.__version__}" in done.stdout and "--install-completion" in done.stdout
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    completion = os.environ | {"_GMA_HF_COMPLETE": "complete_bash", "COMP_WORDS": "gma-hf gen", "COMP_CWORD": "1"}
    assert process(env=completion).stdout.strip() == "generate"


def test_as_a_module_it_imports_no_more(tmp_path):
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["torch"] = None\n')
    without_torch = {"env": os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, "cwd": tmp_path}
    for argument, said in [("--help", "--install-completion"), ("--version", f"gma-hf {gma_hf.__version__}\n")]:
        done = subprocess.run([*MODULE, argument], capture_output=True, text=True, timeout=60, **without_torch)
        assert (done.returncode, done.stderr) == (0, "") and said in done.stdout


def test_as_a_module_it_runs_commands():
    command = [*MODULE, "generate", str(SHIPPED), "ROMEO:\n", "--max-new-tokens", "5", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    # Another program that is started so finds the whole package
    code = (
        "import sys; sys.argv[0] = '-m'; import gma_hf; from transformers import AutoConfig as c; c.for_model('gma')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize(
    ("program", "command"), [("gma-hf", [*MODULE, "card", "x"]), ("demo", [*MODULE[:-1], "gma_hf.recipes.demo"])]
)
def test_ctrl_c_while_torch_is_imported_ends_it_in_a_sentence(program, command, tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    path = {"env": os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, "cwd": tmp_path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **path)
    assert (done.returncode, done.stderr) == (130, f"{program}: interrupted.\n")


LEFT = "what reads the output has left before its end.\n"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("gma-hf", [*START, "generate", str(SHIPPED), "ROMEO:\n", "--max-new-tokens", "2000"]),
        ("stream", [sys.executable, "-m", "gma_hf.recipes.stream", "--max_new_tokens", "2000"]),
    ],
)
def test_a_reader_that_leaves_ends_it_in_a_sentence(program, command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout.read(1)
        running.stdout.close()
        assert running.stderr.read().endswith(f"{program}: {LEFT}")
        assert running.wait(timeout=60) == 2


def test_a_reader_that_leaves_with_both_outputs():
    command = [*START, "generate", str(SHIPPED), "ROMEO:\n", "--max-new-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout.read(1)
        running.stdout.close()
        assert running.wait(timeout=60) == 2


def test_ctrl_c_ends_it_in_a_sentence():
    with subprocess.Popen(
        [*START, "generate", str(SHIPPED), "ROMEO:\n", "--max-new-tokens", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        assert running.stderr.read() == "gma-hf: interrupted.\n"
        assert running.wait(timeout=60) == 130


def test_each_error_has_its_status(capsys):
    errors = {
        ValueError("a\nb"): "a",
        FileNotFoundError(2, "No such file", "x"): "'x' cannot be read or written: No such",
    }
    for error, said in errors.items():
        with pytest.raises(SystemExit) as ended, refusals("name"):
            raise error
        assert ended.value.code == 2 and capsys.readouterr().err.startswith(f"name: {said}")
    for error, status, said in [
        (KeyboardInterrupt(), 130, "gma-hf: interrupted.\n"),
        (BrokenPipeError(32, ""), 2, f"gma-hf: {LEFT}"),
    ]:
        with pytest.raises(SystemExit) as ended, refusals():
            raise error
        assert ended.value.code == status and capsys.readouterr().err == said
    with pytest.raises(RuntimeError), refusals():
        raise RuntimeError("a fault of ours")


def test_what_a_missing_library_needs():
    with pytest.raises(MissingExtra) as error, extra("analysis", "This"):
        import no_such_library  # noqa: F401
    assert str(error.value) == (
        'This needs `pip install "gma-hf[analysis]"` (in a checkout: `pip install -e ".[analysis]"`): '
        "No module named 'no_such_library'."
    )
    with pytest.raises(ModuleNotFoundError) as error, extra("analysis", "This"):
        import gma_hf.no_such_module  # noqa: F401
    assert not isinstance(error.value, MissingExtra)


@pytest.mark.parametrize(
    ("missing", "arguments", "name"),
    [
        ("pandas", ["report", SHIPPED, ROOT / "LICENSE", "-o", "OUT.html"], "analysis"),
        ("onnxscript", ["export", SHIPPED, "OUT.onnx"], "onnx"),
        ("datasets", ["train", "--task", "causal-lm"], "train"),
        ("datasets", ["distill"], "train"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(missing, arguments, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    for module in [key for key in sys.modules if key.startswith(("gma_hf.recipes", "gma_hf.analysis"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    refused(result, {"train": "A recipe needs", "analysis": "gma_hf.analysis needs", "onnx": "`gma-hf export`"}[name])
    assert f'pip install "gma-hf[{name}]"' in result.stderr and f'pip install -e ".[{name}]"' in result.stderr
    assert name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not list(tmp_path.iterdir())


def test_serve_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    refused(run("serve", SHIPPED), '`gma-hf serve` needs what `transformers serve` does: `pip install "transformers[')


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no/such/folder", "CHECKPOINT is 'no/such/folder', but there is no such folder."),
        (str(SHIPPED.parent / "gma-minilm-l6"), "CHECKPOINT must be a GMAForCausalLM, but"),
    ],
)
def test_nothing_else_is_served(name, sentence):
    refused(run("serve", name, "--port", "8000"), sentence)


@pytest.fixture
def recipes(monkeypatch):
    """The calls of recipes, which are not carried out."""
    called = []
    for name in ("train_clm", "train_mlm", "classify", "distill"):
        __import__(f"gma_hf.recipes.{name}")
        module = sys.modules[f"gma_hf.recipes.{name}"]
        monkeypatch.setattr(module, "main", lambda arguments, name=name: called.append((name, arguments)))
    return called


def test_train_picks_the_recipe_by_the_task_or_by_the_checkpoint(recipes, make_config, make_model, tmp_path):
    make_model(gma_hf.GMAForMaskedLM, make_config("bidirectional")).save_pretrained(tmp_path / "masked")
    others = ["--output_dir", "runs", "--max_steps", "3"]
    for arguments, recipe in [
        (["--task", "masked-lm"], "train_mlm"),
        (["--model_name_or_path", str(SHIPPED)], "train_clm"),
        ([f"--model_name_or_path={tmp_path / 'masked'}"], "train_mlm"),
        (["--model_name_or_path", str(SHIPPED.parent / "gma-imdb-bytes")], "classify"),
        (["--model_name_or_path", str(tmp_path / "masked"), "--task", "classification"], "classify"),
    ]:
        assert run("train", *arguments, *others).exit_code == 0
        passed = [x for i, x in enumerate(arguments) if x != "--task" and (i == 0 or arguments[i - 1] != "--task")]
        assert recipes.pop() == (recipe, [*passed, *others])
    assert run("distill", "--source", "x", *others).exit_code == 0
    assert recipes.pop() == ("distill", ["--source", "x", *others])
    assert run("train", "--task", "causal-lm", "--recipe-help").exit_code == 0
    assert recipes.pop() == ("train_clm", ["--help"])
    refused(
        run("train", *others), "--task must be given (causal-lm, masked-lm, classification) where no --model_name_or"
    )
    refused(run("train", "--task", "x"), "--task must be one of causal-lm, masked-lm, classification, but it is 'x'.")
    name = SHIPPED.parent / "gma-minilm-l6"
    refused(run("train", "--model_name_or_path", name), "none is for the class of ")
    assert not recipes


def test_train_trains(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 200)
    arguments = ["--train_file", tmp_path / "text.txt", "--output_dir", tmp_path / "run", "--max_steps", 2]
    arguments += ["--block_size", 32, "--use_cpu", "True", "--report_to", "none", "--per_device_train_batch_size", 2]
    result = run("train", "--model_name_or_path", SHIPPED, *arguments)
    assert result.exit_code == 0, result.stderr
    assert type(gma_hf.GMAForCausalLM.from_pretrained(tmp_path / "run")).__name__ == "GMAForCausalLM"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a GPT-2 to convert, with a tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_convert_says_what_comes_next(source, tmp_path):
    result = run("convert", source, tmp_path / "gma", "--num-components", 4)
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "gma-hf: without --calibration the components start at random places, much farther"
    )
    assert "`gma-hf distill`" in result.stderr
    exact = run("convert", source, tmp_path / "exact", "--layers", "none")
    assert (exact.exit_code, exact.stderr) == (0, "")
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n" * 20)
    fitted = run("convert", source, tmp_path / "fitted", "--num-components", 4, "--calibration", text)
    assert fitted.exit_code == 0 and "`gma-hf distill` comes next" in fitted.stderr
    assert "without --calibration" not in fitted.stderr


def test_convert_writes_the_dtype_that_is_asked_for(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n" * 20)
    options = [source, tmp_path / "gma", "--num-components", 4, "--calibration", text, "--device", "cpu"]
    assert run("convert", *options, "--dtype", "bfloat16").exit_code == 0
    model = gma_hf.GMAForCausalLM.from_pretrained(tmp_path / "gma")
    assert model.dtype == model.model.layers[0].attention.o_proj.weight.dtype == torch.bfloat16
    assert model.model.layers[0].attention.mixture.means.dtype == torch.float32
    assert run("convert", *options, "--force").exit_code == 0
    assert gma_hf.GMAForCausalLM.from_pretrained(tmp_path / "gma").dtype == torch.float32


def test_convert_replaces_a_folder_only_if_told(source, tmp_path):
    out = tmp_path / "gma"
    out.mkdir()
    (out / "old").write_text("")
    options = [source, out, "--layers", "none"]
    refused(run("convert", *options), "OUT must not exist without --force, but ")
    assert [path.name for path in out.iterdir()] == ["old"]
    assert run("convert", *options, "--force").exit_code == 0
    assert not (out / "old").exists() and (out / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["gma"]


def test_report_replaces_files_only_if_told(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "report.html"
    text.write_text("To be, or not to be.\n" * 20)
    out.write_text("by hand")
    options = [SHIPPED, text, "-o", out, "--max-tokens", 64, "--device", "cpu"]
    refused(run("report", *options), "-o must not exist without --force, but ")
    assert out.read_text() == "by hand"
    assert run("report", *options, "--force").exit_code == 0
    assert "<html" in out.read_text()


def test_report_of_a_model_with_few_positions(make_config, make_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    config = make_config("causal", vocab_size=len(tokenizer), max_position_embeddings=16)
    make_model(gma_hf.GMAForCausalLM, config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    text = ROOT / "tests" / "data" / "shakespeare.txt"
    result = run("report", tmp_path / "short", text, "-o", tmp_path / "report.html", "--max-tokens", 64)
    assert result.exit_code == 0, result.stderr


def test_report_says_nothing_of_weights_of_a_head(make_config, make_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    config = make_config("bidirectional", vocab_size=len(tokenizer))
    make_model(gma_hf.GMAForMaskedLM, config).save_pretrained(tmp_path / "masked")
    tokenizer.save_pretrained(tmp_path / "masked")
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 20)
    done = process("report", tmp_path / "masked", tmp_path / "text.txt", "-o", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    assert all("tokens/s]" in line for line in done.stderr.splitlines() if line)  # the progress alone


def test_export_writes_graphs(make_config, make_model, tmp_path):
    model = make_model(gma_hf.GMAForMaskedLM, make_config("bidirectional"))
    model.save_pretrained(tmp_path / "model")
    result = run("export", tmp_path / "model", tmp_path / "model.pt2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"GMAForMaskedLM written to {tmp_path / 'model.pt2'}, for torch.export.\n"
    ids = torch.arange(12).view(3, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {"token_type_ids": torch.zeros_like(ids)} if model.config.type_vocab_size else {}
    graph = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs=inputs)[0], model(**inputs).logits, rtol=1e-4, atol=1e-5)
    refused(run("export", tmp_path / "model", tmp_path / "model.pt2"), "OUT must not exist without --force, but ")
    half = [tmp_path / "model", tmp_path / "half.pt2", "--dtype", "bfloat16", "--device", "cpu"]
    assert run("export", *half).exit_code == 0
    graph = torch.export.load(tmp_path / "half.pt2").module()
    assert graph(inputs=inputs)[0].dtype == torch.bfloat16
    refused(run("export", tmp_path / "model", tmp_path / "model.pt"), "OUT must end in .onnx or .pt2, but it is ")


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs gma-hf[onnx]")
def test_export_writes_onnx(make_config, make_model, tmp_path):
    make_model(gma_hf.GMAForCausalLM, make_config("causal")).save_pretrained(tmp_path / "model")
    result = run("export", tmp_path / "model", tmp_path / "model.onnx")
    assert result.exit_code == 0, result.stderr
    import onnxruntime

    assert onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()[0].name == "input_ids"


def test_other_models_are_not_exported_or_reported(tmp_path, source):
    text = tmp_path / "text.txt"
    text.write_text("To be")
    refused(run("export", source, tmp_path / "x.pt2"), "CHECKPOINT must be a GMA model, but ")
    refused(run("report", source, text, "-o", tmp_path / "x.html"), "CHECKPOINT must be a GMA model, but ")


def test_a_folder_that_cannot_be_written_to(monkeypatch, source, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # who runs this may be root
    sentence = "must be in a folder that can be written to, but "
    refused(run("convert", source, tmp_path / "out"), f"OUT {sentence}")
    refused(run("export", source, tmp_path / "x.pt2"), f"OUT {sentence}")
    refused(run("generate", SHIPPED, "x", "--save-state", tmp_path / "state"), f"--save-state {sentence}")


def test_other_commands_of_transformers_see_no_stale_argument():
    """A model that is no GMA model still opens in `convert`'s refusal, not in a traceback."""
    refused(run("convert", SHIPPED, "OUT"), "`source` must be of type ")


def test_bert_without_its_head_is_no_language_model(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 257}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]
    refused(run("generate", tmp_path, "x"), "its class is BertModel.")


def test_a_mistyped_folder_is_said_to_be_missing_where_the_hub_cannot_be_reached():
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "gma_hf", "generate", "runs/shakespear", "Hello"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    nowhere = "there is no such folder, nor such a name in the cache, and the Hub cannot be reached."
    assert ended.stderr == f"gma-hf: CHECKPOINT is 'runs/shakespear', but {nowhere}\n" and ended.returncode == 2


@pytest.mark.parametrize(
    ("missing", "program", "needed"),
    [
        ("pandas", "import gma_hf.analysis", "gma-hf[analysis]"),
        ("onnxscript", "from gma_hf.export import export_onnx; export_onnx(None, 'x.onnx')", "gma-hf[onnx]"),
        ("onnxruntime", "import gma_hf.recipes.onnx_generate", "pip install onnxruntime"),
    ],
)
def test_what_needs_a_missing_extra_says_so(missing, program, needed):
    program = f"import sys; sys.modules[{missing!r}] = None; {program}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode != 0 and needed in ended.stderr.splitlines()[-1]
