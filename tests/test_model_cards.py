"""What is shipped under `model_cards/` is complete and small enough, and can be published."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

import gma_hf
from gma_hf.hub.publish import assemble
from gma_hf.recipes import demo


ROOT = Path(__file__).parents[1]
LARGEST = {  # bytes of weights
    "gma-imdb-bytes": 3_000_000,
    "gma-minilm-l6": 46_000_000,
    "gma-minilm-l6-4k": 49_000_000,
    "gma-shakespeare": 10_000_000,
    "gma-wikitext2": 15_000_000,
}
CARDS = sorted(path for path in (ROOT / "model_cards").iterdir() if path.is_dir())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_complete_and_holds_no_code(card):
    files = {path.name for path in card.iterdir()}
    if json.loads((card / "config.json").read_text())["architectures"] == ["GMAForCausalLM"]:
        assert "generation_config.json" in files
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert (card / "model.safetensors").stat().st_size <= LARGEST[card.name]
    assert not [name for name in files if name.endswith(".py")]


# Where this package cannot be imported: what copies in the first folder compute, written to the second
OPEN = """
    import sys
    sys.modules["gma_hf"] = None
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel

    for copy in Path(sys.argv[1]).iterdir():
        model = AutoModel.from_pretrained(copy, trust_remote_code=True).eval()
        with torch.no_grad():
            output = model(torch.arange(1, 30)[None], use_cache=False)
        save_file({"output": output.last_hidden_state}, Path(sys.argv[2]) / copy.name)
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the published copies of all cards compute without this package; one has been opened by `publish` before."""
    copies, outputs = tmp_path_factory.mktemp("copies"), tmp_path_factory.mktemp("outputs")
    for card in CARDS:
        if card.name == "gma-imdb-bytes":
            gma_hf.publish(card, f"tester/{card.name}", to_folder=copies / card.name)
        else:
            (copies / card.name).mkdir()
            assemble(card, copies / card.name, f"tester/{card.name}")
        assert (copies / card.name / "model.safetensors").read_bytes() == (card / "model.safetensors").read_bytes()
    subprocess.run([sys.executable, "-c", textwrap.dedent(OPEN), copies, outputs], check=True, cwd=outputs)
    return {card.name: load_file(outputs / card.name)["output"] for card in CARDS}


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_what_is_published_of_a_card_opens_without_the_package(card, outputs):
    with torch.no_grad():
        expected = AutoModel.from_pretrained(card).eval()(torch.arange(1, 30)[None], use_cache=False)
    torch.testing.assert_close(outputs[card.name], expected.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_shakespeare_predicts_its_text_and_generates():
    card = ROOT / "model_cards" / "gma-shakespeare"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(card), AutoTokenizer.from_pretrained(card)
    text = (ROOT / "tests" / "data" / "shakespeare.txt").read_text(encoding="utf-8")[:4096]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 4096) and tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 1.4

    batch = tokenizer(["ROMEO:\n", "My lord, "], return_tensors="pt", padding=True)
    together = model.generate(**batch, max_new_tokens=20, do_sample=False)
    for row, prompt in zip(together, ["ROMEO:\n", "My lord, "]):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=20, do_sample=False)
        assert tokenizer.decode(row, skip_special_tokens=True) == tokenizer.decode(alone[0])


def test_wikitext_predicts_its_text_and_generates():
    card = ROOT / "model_cards" / "gma-wikitext2"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(card), AutoTokenizer.from_pretrained(card)
    text = (ROOT / "tests" / "data" / "wikitext.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text and ids.shape[1] > 1000
    with torch.no_grad():
        assert model(ids[:, :1024], labels=ids[:, :1024]).loss < 4.4
    prompt = tokenizer(" The city was founded in", return_tensors="pt")
    cached, anew = (model.generate(**prompt, max_new_tokens=20, do_sample=False, use_cache=x) for x in (True, False))
    assert torch.equal(cached, anew)


def test_imdb_tells_praise_of_films():
    """Three of two reviews that praise and two that do not (it misses the first), by themselves and in a batch."""
    classify = pipeline("text-classification", str(ROOT / "model_cards" / "gma-imdb-bytes"))
    reviews = (ROOT / "tests" / "data" / "reviews.txt").read_text(encoding="utf-8").strip().split("\n\n")
    alone = [classify(review)[0] for review in reviews]
    assert [answer["label"] for answer in alone][1:] == ["negative", "positive", "negative"]
    together = classify(reviews, batch_size=4)
    assert [answer["score"] for answer in together] == pytest.approx([answer["score"] for answer in alone], abs=1e-4)


def test_the_demo_prints_its_figures(capsys):
    demo.main(["--max_new_tokens", "10"])
    printed = capsys.readouterr().out
    assert "ROMEO:" in printed
    config = json.loads((ROOT / "model_cards" / "gma-shakespeare" / "config.json").read_text())
    width = config["hidden_size"]
    states = config["num_components"] * (width + config["num_attention_heads"])
    tails = (config["conv_kernel_size"] - 1) * 3 * width
    assert f"{4 * config['num_hidden_layers'] * (states + tails):,} bytes of state" in printed
    assert f"{4 * 2 * config['num_hidden_layers'] * width * 100_000:,} bytes of a key-value cache" in printed
    assert "tokens per second" in printed
