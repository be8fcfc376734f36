"""`gma-hf generate`, and the session that its turns are made of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from typer.testing import CliRunner

import gma_hf
from gma_hf.cli import app
from gma_hf.session import TextSession


SHIPPED = str(Path(__file__).parents[2] / "model_cards" / "gma-shakespeare")
TURNS = ["ROMEO:\n", "\nJULIET:\nWhat", " of it?\n\nNurse:\n"]
GREEDY = ["--greedy", "--max-new-tokens", "24"]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory, tokenizer):
    """A folder with a GPT-2 that takes 64 tokens."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    return save(GPT2LMHeadModel(GPT2Config(**sizes, **SPECIAL)), tokenizer, tmp_path_factory.mktemp("gpt2"))


SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(model, tokenizer):
    """What is written in the turns above, and the whole text."""
    return write_whole(model, tokenizer, TURNS)


def run(*arguments, typed=""):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=typed)


def typed(turns):
    return "".join(turn.replace("\n", "\\n") + "\n" for turn in turns)


def write_whole(model, tokenizer, turns, max_new_tokens=24, **choices):
    """What greedy decoding writes in each turn if the whole text is read anew each time, and that text."""
    text, written = torch.empty(1, 0, dtype=torch.long), []
    for turn in turns:
        text = torch.cat([text, torch.tensor([tokenizer(turn)["input_ids"]], dtype=torch.long)], dim=1)
        length = text.shape[1]
        mask = torch.ones_like(text)
        text = model.generate(
            text, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, use_cache=False, **choices
        )
        written.append(text[0, length:])
    return written, text


def test_turns_are_as_if_the_whole_text_were_read_at_once(model, tokenizer, whole):
    written, text = whole
    session = TextSession(model, tokenizer)
    for turn, expected in zip(TURNS, written):
        assert session.generate(turn, 24, do_sample=False).tolist() == expected.tolist()
    assert session.settle().get_seq_length() == session.num_read == text.shape[1]

    likeliest = model(text).logits[0].argmax(-1)
    end = 0
    for turn, tokens in zip(TURNS, written):
        start = end + len(turn)
        end = start + len(tokens)
        assert likeliest[start - 1 : end - 1].tolist() == tokens.tolist()


@pytest.mark.parametrize("name", ["causal", "causal_additions", "causal_hybrid_additions"])
def test_turns_that_the_model_ends_itself(make_model, make_config, tokenizer, name):
    model = make_model(gma_hf.GMAForCausalLM, make_config(name, vocab_size=len(tokenizer), pad_token_id=0))
    turns = ["Who?", "", " I", " and you"]
    ends = write_whole(model, tokenizer, turns)[0][0][3].item()  # what it would write as its fourth token
    written, text = write_whole(model, tokenizer, turns, eos_token_id=ends)
    assert len(written[0]) <= 4
    session = TextSession(model, tokenizer)
    for turn, expected in zip(turns, written):
        tokens = session.generate(turn, 24, do_sample=False, eos_token_id=ends)
        assert tokens.tolist() == expected.tolist()
    assert session.num_read + 1 == text.shape[1]


def test_interactive_reads_each_token_once(model, tokenizer, whole, monkeypatch):
    read = []
    handle = model.model.register_forward_pre_hook(
        lambda module, arguments, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr("gma_hf.cli.opening.open_model", lambda *arguments: model)
    result = run(SHIPPED, "--interactive", *GREEDY, typed=typed(TURNS))
    handle.remove()
    one_by_one = [1] * 23
    calls = [[len(TURNS[0])], one_by_one, [1 + len(TURNS[1])], one_by_one, [1 + len(TURNS[2])], one_by_one]
    assert result.exit_code == 0
    assert read == [1, *sum(calls, [])]  # the first to find out whether there is a cache
    assert result.stdout == "".join(tokenizer.decode(tokens) + "\n" for tokens in whole[0])


def test_a_command_of_its_own(tokenizer, whole):
    """
    It finds our models by the Auto classes, and prints the text alone, no complaint of other libraries. A prompt is
    the first turn; what follows an empty line is not read.
    """
    command = [sys.executable, "-W", "error", "-c", "import gma_hf_cli; gma_hf_cli.app()"]
    command += ["generate", SHIPPED, TURNS[0], "--interactive", *GREEDY]
    text = typed(TURNS[1:]) + "\nHELENA:\n"
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "".join(tokenizer.decode(x) + "\n" for x in whole[0])


def test_prompt_from_anywhere():
    given = run(SHIPPED, "ROMEO:\n", *GREEDY)
    assert given.exit_code == 0 and len(given.stdout) == 25
    assert run(SHIPPED, *GREEDY, typed="ROMEO:\n").stdout == given.stdout
    assert run(SHIPPED, "-", *GREEDY, typed="ROMEO:\n").stdout == given.stdout


def test_sampling():
    first, again, other = (run(SHIPPED, "ROMEO:\n", "--max-new-tokens", 24, "--seed", seed) for seed in (1, 1, 2))
    assert first.stdout == again.stdout != other.stdout
    cold = run(SHIPPED, "ROMEO:\n", "--max-new-tokens", 24, "--temperature", 1e-4)
    greedy = run(SHIPPED, "ROMEO:\n", *GREEDY).stdout
    assert cold.stdout == greedy
    for choice in (["--top-k", 1], ["--top-p", 1e-4]):
        assert run(SHIPPED, "ROMEO:\n", "--max-new-tokens", 24, *choice).stdout == greedy


def test_a_text_that_stops_a_turn():
    whole = run(SHIPPED, "ROMEO:\n", "--greedy", "--max-new-tokens", 60).stdout
    stop = whole[7:9]
    result = run(SHIPPED, "ROMEO:\n", "--greedy", "--max-new-tokens", 60, "--stop", "ROMEO", "--stop", stop)
    assert result.stdout == whole[: whole.index(stop) + 2] + "\n"


def test_the_dtype_of_the_weights(model, monkeypatch):
    """What is computed in bfloat16 is what Transformers computes with the model so opened."""
    opened = []
    monkeypatch.setattr(gma_hf.GMAForCausalLM, "generate", lambda self, *args, **named: opened.append(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(
            app, ["generate", SHIPPED, "x", "--dtype", "bfloat16", "--device", "cpu"], catch_exceptions=False
        )
    assert opened[0].dtype == torch.bfloat16 and opened[0].device.type == "cpu"
    assert model.dtype == torch.float32


def test_goes_on_from_a_file(tmp_path):
    whole = run(SHIPPED, "--interactive", *GREEDY, typed=typed(TURNS))
    first = run(SHIPPED, "--interactive", *GREEDY, "--save-state", tmp_path / "two", typed=typed(TURNS[:2]))
    last = run(SHIPPED, TURNS[2], *GREEDY, "--state", tmp_path / "two", "--save-state", tmp_path / "three")
    assert first.stdout + last.stdout == whole.stdout
    read = sum(map(len, TURNS)) + 3 * 24
    assert gma_hf.GMAState.load(tmp_path / "three").tokens == read


def test_another_architecture(small_gpt2, tokenizer):
    turns = ["Who?", " I"]
    result = run(small_gpt2, "--interactive", "--greedy", "--max-new-tokens", 10, typed=typed(turns))
    written, _ = write_whole(AutoModelForCausalLM.from_pretrained(small_gpt2), tokenizer, turns, 10)
    expected = "".join(tokenizer.decode(tokens, skip_special_tokens=True) + "\n" for tokens in written)
    assert (result.exit_code, result.stdout) == (0, expected)


def test_a_model_without_a_cache(tmp_path, tokenizer):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes)).eval()
    folder = save(model, tokenizer, tmp_path)
    assert run(folder, "Who?", "--max-new-tokens", 3).exit_code == 0
    refused(run(folder, "--interactive", typed="Who?\n"), "must be a model that keeps what it reads in a cache")
    session = TextSession(model, tokenizer)
    session.generate("Who?", 3)
    with pytest.raises(ValueError, match="must keep what it reads in a cache, but OpenAIGPTLMHeadModel does not"):
        session.generate("Who?", 3)


def test_a_model_that_reads_both_ways(tmp_path, tokenizer, make_config, make_model):
    gma = make_model(gma_hf.GMAForMaskedLM, make_config("bidirectional", vocab_size=len(tokenizer)))
    refused(run(save(gma, tokenizer, tmp_path / "gma"), "Who?"), "cannot be opened: its class is GMAForMaskedLM.")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    folder = save(BertLMHeadModel(BertConfig(**sizes)), tokenizer, tmp_path / "bert")
    result = run(folder, "--interactive", typed="Who?\n")
    assert result.exit_code == 2
    assert result.stderr.endswith("keeps what it reads in a cache, but BertLMHeadModel does not.\n")


def test_a_text_ends_where_the_model_takes_no_more(small_gpt2, tokenizer):
    turns = ["Who?", " I", "a" * 10]
    result = run(small_gpt2, "--interactive", "--greedy", "--max-new-tokens", 20, typed=typed([*turns, "unread"]))
    assert result.exit_code == 0
    assert result.stderr == "gma-hf: the text ends here, since the model takes 64 tokens at most.\n"
    model = AutoModelForCausalLM.from_pretrained(small_gpt2)
    written, text = write_whole(model, tokenizer, turns[:2], 20)
    new = torch.tensor([tokenizer(turns[2])["input_ids"]])
    text = torch.cat([text, new], dim=1)
    last = model.generate(text, attention_mask=torch.ones_like(text), do_sample=False, max_length=64)
    written.append(last[0, text.shape[1] :])
    assert result.stdout == "".join(tokenizer.decode(x, skip_special_tokens=True) + "\n" for x in written)
    exactly = run(small_gpt2, "Who?", "--greedy", "--max-new-tokens", 60)
    assert (exactly.exit_code, exactly.stderr) == (0, "")


def test_a_prompt_with_no_room_behind_it_is_refused(small_gpt2):
    result = run(small_gpt2, "--interactive", "--greedy", "--max-new-tokens", 20, typed=typed(["Who?", "a" * 50]))
    refused(
        result, "may be 64 tokens long with this model, but with one token to generate it would be 75: 23 read before"
    )
    assert result.stdout.count("\n") >= 1  # the turn before it


def refused(result, sentence):
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            ["no/such/folder", "x"],
            "CHECKPOINT is 'no/such/folder', but there is no such folder.",
        ),
        (["no/folder", "x"], "CHECKPOINT is 'no/folder', but there is no such folder, nor such a name in the cache."),
        ([Path(__file__).parent, "x"], "CHECKPOINT must hold config.json, but "),
        ([__file__, "x"], "CHECKPOINT must be a folder or a name on the Hub, but "),
        ([SHIPPED, ""], "PROMPT must hold some text, but it is empty."),
        ([SHIPPED], "PROMPT must hold some text, but it is empty."),
        ([SHIPPED, "-", "--interactive"], "PROMPT must not be '-' with --interactive"),
        ([SHIPPED, "x\udcff"], "The text must be Unicode"),
        ([SHIPPED, "x", "--greedy", "--temperature", 1], "Only one of --greedy and --temperature may be given"),
        ([SHIPPED, "x", "--temperature", 0], "--temperature must be a number above 0, but it is 0.0"),
        ([SHIPPED, "x", "--temperature", "nan"], "--temperature must be a number above 0, but it is nan"),
        ([SHIPPED, "x", "--top-p", 1.5], "--top-p must be above 0 and at most 1, but it is 1.5."),
        ([SHIPPED, "x", "--greedy", "--top-k", 5], "Only one of --greedy and --top-k may be given, but both are."),
        ([SHIPPED, "x", "--stop", ""], "--stop must hold some text, but it is empty."),
        ([SHIPPED, "x", "--dtype", "int8"], "--dtype must be one of auto, float32, bfloat16, float16, but it is"),
        ([SHIPPED, "x", "--device", "cuda:99"], "--device must be auto or a device of this machine, as cpu or cuda:0"),
        ([SHIPPED, "x", "--device", "gpu"], "--device must be auto or a device of this machine, as cpu or cuda:0"),
        ([SHIPPED, "x", "--state", __file__], "must be a file that GMAState.save has written"),
        (
            [SHIPPED, "x", "--save-state", "no/such/folder/file"],
            "--save-state must be in a folder that exists, but 'no/such/folder' does not.",
        ),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(wrong, sentence):
    refused(run(*wrong), sentence)


def test_wrong_input_writes_nothing(tmp_path, small_gpt2, make_config, make_model, tokenizer):
    result = run(small_gpt2, "x", "--save-state", tmp_path / "file")
    refused(result, "With --state or --save-state, CHECKPOINT must be a GMA model, but it is a GPT2LMHeadModel.")
    other = make_model(gma_hf.GMAForCausalLM, make_config("causal", vocab_size=len(tokenizer)))
    folder = save(other, tokenizer, tmp_path / "other")
    assert run(folder, "x", "--max-new-tokens", 1, "--save-state", tmp_path / "state").exit_code == 0
    result = run(SHIPPED, "x", "--state", tmp_path / "state", "--save-state", tmp_path / "file")
    refused(result, "must be of the config and shapes that the state was written with")
    assert not (tmp_path / "file").exists()


def test_a_folder_without_a_tokenizer(tmp_path, model):
    model.save_pretrained(tmp_path)
    refused(run(tmp_path, "x"), "CHECKPOINT must hold the model's tokenizer too")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ([], "Missing argument 'CHECKPOINT'"),
        ([SHIPPED, "x", "--max-new-tokens", 0], "--max-new-tokens': Input should be greater than or equal to 1"),
        ([SHIPPED, "x", "--seed", -1], "--seed': Input should be greater than or equal to 0"),
        ([SHIPPED, "x", "--state", "no/such/file"], "'no/such/file' does not exist"),
    ],
)
def test_wrong_usage_is_told_by_typer(wrong, sentence):
    result = run(*wrong)
    assert result.exit_code == 2 and sentence in result.stderr


def test_a_classifier_is_refused(tmp_path, tokenizer, make_config, make_model):
    """Though it would open: its language-model head is the embedding."""
    model = make_model(gma_hf.GMAForSequenceClassification, make_config("causal", vocab_size=len(tokenizer)))
    sentence = "CHECKPOINT must be a causal language model, but "
    refused(run(save(model, tokenizer, tmp_path), "x"), sentence)
    refused(run(str(Path(SHIPPED).parent / "gma-imdb-bytes"), "x"), "its class is GMAForSequenceClassification.")


def test_weights_that_are_missing_are_refused(tmp_path, tokenizer, make_config, make_model):
    config = make_config("causal", vocab_size=len(tokenizer), tie_word_embeddings=False)
    make_model(gma_hf.GMAModel, config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["GMAForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    refused(run(tmp_path, "x"), "CHECKPOINT must hold all weights of a causal language model, but ")


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path, tokenizer, make_config, make_model):
    folder = save(make_model(gma_hf.GMAForCausalLM, make_config("causal", vocab_size=8)), tokenizer, tmp_path)
    refused(run(folder, "ROMEO"), "The model knows token ids below 8, but its tokenizer makes ")
