"""
Wrong inputs to commands, recipes and Python, and the sentence that each gets: `docs/refusals.md`, which is made here.

`WRITE_PAGES=1 python -m pytest tests/test_refusals.py` writes the page anew.
"""

import os
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import gma_hf
from gma_hf.cli import app
from gma_hf.errors import refusals


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "refusals.md"
CARDS = {"shakespeare": "gma-shakespeare", "classifier": "gma-imdb-bytes", "encoder": "gma-minilm-l6"}
INPUTS = {
    "Commands": [
        "gma-hf generate no/such/folder Hello",
        "gma-hf generate no/folder Hello",
        "gma-hf generate text.txt Hello",
        "gma-hf generate training Hello",
        "gma-hf generate classifier Hello",
        "gma-hf generate encoder Hello",
        "gma-hf generate untold Hello",
        "gma-hf generate narrow Hello",
        "gma-hf generate shakespeare ''",
        "gma-hf generate shakespeare Hello --greedy --top-k 5",
        "gma-hf generate shakespeare Hello --temperature 0",
        "gma-hf generate shakespeare Hello --top-p 1.5",
        "gma-hf generate shakespeare Hello --stop ''",
        "gma-hf generate shakespeare Hello --dtype int8",
        "gma-hf generate shakespeare Hello --device gpu",
        "gma-hf generate shakespeare Hello --state text.txt",
        "gma-hf generate shakespeare Hello --save-state no/such/folder/state",
        "gma-hf generate gpt2 Hello --save-state state",
        "gma-hf generate gpt2 'Now is the winter of our discontent'",
        "gma-hf convert no/folder out",
        "gma-hf convert shakespeare out",
        "gma-hf convert gpt2 training",
        "gma-hf convert gpt2 no/such/folder",
        "gma-hf convert gpt2 out --layers 0,7",
        "gma-hf convert gpt2 out --max-positions 16",
        "gma-hf convert gpt2 out --device gpu",
        "gma-hf convert gpt2 out --dtype int8",
        "gma-hf convert gpt2 out --calibration empty.txt",
        "gma-hf convert gpt2 out --calibration latin1.txt",
        "gma-hf convert gpt2 out --calibration utf16.txt",
        "gma-hf report shakespeare text.txt -o text.txt",
        "gma-hf report shakespeare empty.txt",
        "gma-hf report gpt2 text.txt",
        "gma-hf export shakespeare graph.bin",
        "gma-hf export gpt2 graph.pt2",
        "gma-hf export shakespeare graph.pt2 --device meta",
        "gma-hf card shakespeare",
        "gma-hf card training",
        "gma-hf publish gpt2 me/gpt2 --to-folder out",
        "gma-hf publish shakespeare me/models/shakespeare",
        "gma-hf publish shakespeare me/shakespeare --to-folder training",
        "HF_HUB_OFFLINE=1 gma-hf publish shakespeare me/shakespeare",
        "gma-hf serve classifier",
        "gma-hf train --train_file text.txt --output_dir runs",
        "gma-hf train --task translation",
        "gma-hf train --model_name_or_path encoder",
    ],
    "Recipes, as `python -m gma_hf.recipes.NAME`": [
        "train_clm --train_file none.txt --output_dir runs",
        "train_clm --train_file utf16.txt --output_dir runs",
        "train_clm --train_file text.txt --dataset_name wikitext --output_dir runs",
        "train_clm --train_file text.txt --output_dir runs",
        "train_clm --train_file text.txt --output_dir runs --train_tokenizer 100",
        "train_clm --train_file text.txt --output_dir runs --train_tokenizer 300 --model_config '{\"num_heads\": 2}'",
        "train_clm --train_file text.txt --output_dir runs --train_tokenizer 300 --block_size 100000",
        "train_clm --train_file text.txt --output_dir runs --early_stopping_patience 2",
        "train_clm --train_file text.txt --output_dir runs --max_stepz 2",
        "train_clm --train_file text.txt --output_dir runs --model_name_or_path narrow",
        "stream --checkpoint classifier",
        "stream --prompt ''",
        "stream --device gpu",
        "stream --dtype int8",
        "evaluate_checkpoint --checkpoint narrow --test_file text.txt",
        "evaluate_checkpoint --checkpoint shakespeare --test_file text.txt --output_file text.txt",
        "evaluate_checkpoint --checkpoint shakespeare --test_file text.txt --output_file no/such/folder/metrics.json",
        "distill --source gpt2 --train_file text.txt --output_dir runs --layers none --block_size 8",
        "distill --source gpt2 --train_file text.txt --output_dir runs --block_size 64",
    ],
    "Python": [
        "GMAConfig(num_component=8)",
        "GMAConfig(hidden_size=10, num_attention_heads=3)",
        "GMAConfig(chunk_size=512)",
        "GMAConfig(is_causal=False, forget_gate=True)",
        "GMAForMaskedLM(GMAConfig())",
        "model(torch.ones(1, 300, dtype=torch.long))",
        "model(torch.ones(1, 8, dtype=torch.long), attention_mask=torch.ones(1, 5))",
        'GMAState.load("text.txt")',
        'convert_checkpoint("gpt2", routing_dim=8)',
        'convert_checkpoint("gpt2", layers="every:0")',
        'publish("no/such/folder", "me/model", to_folder="out")',
    ],
}
BEGINNING = """# Wrong input, and the sentence it gets

Commands and recipes print it behind their name and end with status 2, Python raises it as a `ValueError`. The files
that are named here exist, unless their name says otherwise; `shakespeare`, `classifier` and `encoder` are GMA models,
`training` holds `checkpoint-8` of a training, `untold` has no tokenizer, and the vocabulary of `narrow` is smaller
than its tokenizer's. This page is written by `WRITE_PAGES=1 python -m pytest tests/test_refusals.py`.
"""


@pytest.fixture(scope="module")
def folder(make_config, make_model, tmp_path_factory):
    """The files that the inputs name."""
    folder = tmp_path_factory.mktemp("files")
    for name, card in CARDS.items():
        (folder / name).symlink_to(ROOT / "model_cards" / card)
    (folder / "text.txt").write_text("To be, or not to be: that is the question.\n" * 40)
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin1.txt").write_bytes("Où est-il né ?\n".encode("latin-1"))
    (folder / "utf16.txt").write_text("To be, or not to be.\n", encoding="utf-16")
    tokenizer = AutoTokenizer.from_pretrained(folder / "shakespeare")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder / "gpt2")
    for name, vocab_size in {"untold": len(tokenizer), "training/checkpoint-8": 8, "narrow": 8}.items():
        model = make_model(gma_hf.GMAForCausalLM, make_config("causal", vocab_size=vocab_size))
        model.save_pretrained(folder / name)
    for name in ("gpt2", "training/checkpoint-8", "narrow"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    """The folder as the working directory, in which nothing is written."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def said(in_folder, make_config, make_model, capsys):
    """`said(input)`: the sentence that an input gets."""

    def say(text: str) -> str:
        if "gma-hf " in text:
            arguments = shlex.split(text.partition("gma-hf ")[2])
            result = CliRunner().invoke(app, arguments)
            status, program, printed = result.exit_code, "gma-hf", result.stderr
        elif text.startswith(("train_clm", "distill", "evaluate_checkpoint", "stream")):
            program, *arguments = shlex.split(text)
            with pytest.raises(SystemExit) as ended, refusals(program):
                import_module(f"gma_hf.recipes.{program}").main(arguments)
            status, printed = ended.value.code, capsys.readouterr().err
        else:
            model = make_model(gma_hf.GMAForCausalLM, make_config("causal"))
            with pytest.raises(ValueError) as error:
                eval(text, vars(gma_hf) | {"model": model, "torch": torch})
            return str(error.value)
        *before, last = printed.strip().splitlines()
        assert status == 2 and last.startswith(f"{program}: "), printed
        assert "Traceback" not in printed and not any(line.startswith(f"{program}: ") for line in before)
        return last.removeprefix(f"{program}: ")

    return say


def rows(page: str) -> dict[str, str]:
    """Return the sentence of each input on the page."""
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {first[1:-1]: sentence.replace("\\|", "|") for first, sentence in cells}


ALL = [text for inputs in INPUTS.values() for text in inputs]
WRITES = os.environ.get("WRITE_PAGES") == "1"


@pytest.fixture(scope="module")
def page():
    """The sentence of each input on the page, which is written from them at the end if the environment says so."""
    sentences = {} if WRITES else rows(PAGE.read_text(encoding="utf-8"))
    yield sentences
    if WRITES and len(sentences) == len(ALL):
        written = BEGINNING
        for title, inputs in INPUTS.items():
            written += f"\n## {title}\n\n| input | sentence |\n|---|---|\n"
            written += "".join("| `{}` | {} |\n".format(text, sentences[text].replace("|", "\\|")) for text in inputs)
        PAGE.write_text(written, encoding="utf-8")


@pytest.mark.parametrize("text", ALL)
def test_wrong_input_gets_its_sentence(text, said, page):
    sentence = said(text)
    assert "\n" not in sentence and sentence.endswith(".") and " | " not in sentence
    if WRITES:
        page[text] = sentence
    assert page[text] == sentence, "the page is stale; see the top of this file"


def test_the_page_holds_these_inputs_alone(page):
    assert len(ALL) >= 40 and list(page) == ALL
