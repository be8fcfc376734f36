"""A wheel, installed where no checkout is: what it holds is enough for what the commands do."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel


ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_cards" / "gma-shakespeare"
TEXT = ROOT / "tests" / "data" / "shakespeare.txt"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gma_hf_command(tmp_path_factory):
    """`gma_hf_command(*arguments)`: `gma-hf` of a wheel, run in a folder outside the checkout; it must end well."""
    folder = tmp_path_factory.mktemp("installed")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=300)
    # What the package needs is taken from this environment, but not its gma_hf: no .pth is followed from another
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    others = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (own / "others.pth").write_text("".join(f"{path}\n" for path in others))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments, command=(str(folder / "venv" / "bin" / "gma-hf"),)):
        command = [*command, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=elsewhere)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = run("-c", "import gma_hf; print(gma_hf.__file__)", command=(str(python),))
    assert Path(where.strip()).is_relative_to(own)
    run.folder = elsewhere
    return run


def test_it_helps_generates_and_trains(gma_hf_command):
    assert "--install-completion" in gma_hf_command("--help")
    assert "--recipe-help" in gma_hf_command("train", "--help")
    assert "--model_config" in gma_hf_command("train", "--task", "causal-lm", "--recipe-help")
    assert len(gma_hf_command("generate", SHIPPED, "ROMEO:\n", "--max-new-tokens", 20)) == 21
    training = ["--train_file", TEXT, "--train_tokenizer", 257, "--model_config", "gma-small", "--output_dir", "run"]
    training += ["--max_steps", 1, "--block_size", 32, "--per_device_train_batch_size", 1, "--report_to", "none"]
    gma_hf_command("train", "--task", "causal-lm", *training, "--use_cpu", True)
    assert (gma_hf_command.folder / "run" / "model.safetensors").is_file()


def test_it_converts_distils_reports_exports_and_publishes(gma_hf_command):
    folder = gma_hf_command.folder
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer)}
    tokens = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**sizes, **tokens)).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    gma_hf_command("convert", "gpt2", "converted", "--num-components", 4)
    steps = ["--stage1_steps", 10, "--max_steps", 10, "--per_device_train_batch_size", 2, "--num_components", 4]
    steps += ["--block_size", 32, "--report_to", "none", "--use_cpu", True]
    gma_hf_command("distill", "--source", "gpt2", "--train_file", TEXT, "--output_dir", "distilled", *steps)
    gma_hf_command("report", "distilled", TEXT, "-o", "report.html", "--max-tokens", 200)
    gma_hf_command("export", "distilled", "model.pt2")
    gma_hf_command("publish", "distilled", "me/distilled", "--to-folder", "published")
    for name in ("converted/model.safetensors", "report.html", "model.pt2", "published/modeling_gma.py"):
        assert (folder / name).is_file()
