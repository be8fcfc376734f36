"""Distillation as its user runs it: convert, both stages, measure, write the card, resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from gma_hf.recipes import distill


ROOT = Path(__file__).parents[2]
TEXT = ROOT / "tests" / "data" / "shakespeare.txt"
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert_tokenizer():
    trained = BertWordPieceTokenizer()
    trained.train([str(TEXT)], vocab_size=300, show_progress=False)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, mask_token="[MASK]", **special)


def make_source(kind, folder):
    """A source with random weights, large enough for attention and outputs not to be flat, and its tokenizer."""
    set_seed(0)
    if kind == "causal":
        trained = ByteLevelBPETokenizer()
        trained.train([str(TEXT)], vocab_size=257, special_tokens=["<|endoftext|>"], show_progress=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
        model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    else:
        tokenizer = bert_tokenizer()
        classes = {"masked": BertForMaskedLM, "embedding": BertModel, "classifier": BertForSequenceClassification}
        model = classes[kind](BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **BERT))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(25 if "attn" in name or "attention" in name else 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arguments(source, output, *more):
    common = ["--source", source, "--output_dir", output, "--train_file", TEXT, "--block_size", 32, "--seed", 0]
    common += ["--num_components", 8, "--calibration_texts", 20, "--stage1_steps", 12, "--max_steps", 12]
    common += ["--learning_rate", 1e-3, "--stage1_learning_rate", 1e-2, "--report_to", "none", "--use_cpu", True]
    common += ["--source_weight", 1]  # a random source has nothing to say about the text
    return [str(argument) for argument in (*common, "--save_steps", 6, *more)]


AUTO = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "embedding": AutoModel}
KINDS_OF_TEXT = ("sentences", "documents")
NEARNESS = {"causal": "divergence", "masked": "divergence", "embedding": "cosine"}


@pytest.mark.parametrize("kind", AUTO)
def test_each_stage_brings_the_model_nearer(tmp_path, kind):
    source = make_source(kind, tmp_path / "source")
    rows = distill.main(arguments(source, tmp_path / "out"))
    assert [row["model"] for row in rows] == ["source", "converted", "after stage 1", "after stage 2"]
    values = [row[NEARNESS[kind]] for row in rows]
    if kind == "embedding":
        assert values[0] == pytest.approx(1) and rows[0]["spearman"] == pytest.approx(1)
        assert values[1] < values[3]
    else:
        assert abs(values[0]) < 1e-4 < values[3] < values[1]

    saved = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert saved["rows"] == rows
    before, after = saved["layer_errors"]["converted"], saved["layer_errors"]["after stage 1"]
    assert len(before) == 2 and all(late < early for early, late in zip(before, after))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| after stage 2 |" in card and "![" in card and "base_model: source" in card
    assert (tmp_path / "out" / "distillation.png").stat().st_size > 5_000

    model = AUTO[kind].from_pretrained(tmp_path / "out")
    assert model.config.layer_types == ["gma", "gma"]
    assert model.config.hidden_dropout_prob == 0.1  # the source's
    AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_stages_resume_and_ended_ones_are_kept(tmp_path):
    source = make_source("causal", tmp_path / "source")
    whole = distill.main(arguments(source, tmp_path / "whole"))
    cut = tmp_path / "cut"
    distill.main(arguments(source, cut))
    (cut / "stage2" / "train_results.json").unlink()  # as if it had been interrupted after step 6
    shutil.rmtree(cut / "stage2" / "checkpoint-12")
    first_stage = (cut / "stage1" / "model.safetensors").stat().st_mtime_ns
    for resumed, expected in zip(distill.main(arguments(source, cut)), whole, strict=True):
        assert resumed["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-3)
    assert (cut / "stage1" / "model.safetensors").stat().st_mtime_ns == first_stage


@pytest.mark.slow
def test_two_processes_as_one(run_python, tmp_path):
    """The same examples per step, shared by two processes: the same figures, and one set of files."""
    source = make_source("causal", tmp_path / "source")
    steps = ["--stage1_steps", 3, "--max_steps", 3]
    one = distill.main(arguments(source, tmp_path / "one", *steps, "--per_device_train_batch_size", 4))
    two = arguments(source, tmp_path / "two", *steps, "--per_device_train_batch_size", 2)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_python(*launch, "-m", "gma_hf.recipes.distill", *two)
    rows = json.loads((tmp_path / "two" / "distillation.json").read_text())["rows"]
    for together, alone in zip(rows, one, strict=True):
        assert together["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-3)
    assert (tmp_path / "two" / "README.md").exists()


def test_another_run_is_not_gone_on_with(tmp_path):
    source = make_source("causal", tmp_path / "source")
    distill.main(arguments(source, tmp_path / "out", "--stage1_steps", 1, "--max_steps", 1))
    with pytest.raises(ValueError, match="`max_steps` must be as it was when the run in .* began, 1, but it is 2"):
        distill.main(arguments(source, tmp_path / "out", "--stage1_steps", 1, "--max_steps", 2))


def test_half_precision_is_measured_too(tmp_path):
    source = make_source("embedding", tmp_path / "source")
    rows = distill.main(arguments(source, tmp_path / "out", "--half", True))
    assert rows[-1]["model"] == "weights in half precision"
    assert rows[-1]["cosine"] == pytest.approx(rows[-2]["cosine"], abs=1e-2)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16
    assert model.layers[0].attention.mixture.means.dtype == torch.float32
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert all(torch.equal(tensor.float(), saved[name].float()) for name, tensor in model.state_dict().items())


def test_what_is_frozen_stays_as_it_was(tmp_path):
    source = make_source("causal", tmp_path / "source")
    distill.main(arguments(source, tmp_path / "out", "--layers", "1", "--max_steps", 1))
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "stage1").state_dict()
    exact = distill.convert_checkpoint(source, layers="none").state_dict()
    for name, tensor in exact.items():
        if not name.startswith("model.layers.1.attention."):
            assert torch.equal(tensor, trained[name]), name
    name = "model.layers.1.attention.o_proj.weight"
    assert not torch.equal(exact[name], trained[name])


def test_wrong_input_is_refused(tmp_path):
    source = make_source("classifier", tmp_path / "source")
    with pytest.raises(ValueError, match="`source` must be a language model.*GMAForSequenceClassification"):
        distill.main(arguments(source, tmp_path / "out"))
    source = make_source("causal", tmp_path / "other")
    with pytest.raises(ValueError, match="`source_weight` must be from 0 to 1, but it is 2.0"):
        distill.main(arguments(source, tmp_path / "out", "--source_weight", 2))
    with pytest.raises(ValueError, match="`block_size` must be at most the source's number of positions, 64"):
        distill.main(arguments(source, tmp_path / "out", "--block_size", 65))
    with pytest.raises(ValueError, match="`train_file`"):
        distill.main(arguments(source, tmp_path / "out", "--train_file", tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="`layers` must"):
        distill.main(arguments(source, tmp_path / "out", "--layers", "none"))
    with pytest.raises(ValueError, match="`start_from` is 'no/such', but there is no such folder"):
        distill.main(arguments(source, tmp_path / "out", "--start_from", "no/such"))
    with pytest.raises(ValueError, match="`max_train_samples` must be at least 1, but it is 0"):
        distill.main(arguments(source, tmp_path / "out", "--max_train_samples", 0))
    assert not (tmp_path / "out").exists()


def test_documents_longer_than_the_source_reads(tmp_path):
    """From what was distilled on sentences on, with Trainer's own evaluations."""
    source = make_source("embedding", tmp_path / "source")
    distill.main(arguments(source, tmp_path / "short", "--stage1_steps", 1, "--max_steps", 1))
    longer = ["--start_from", tmp_path / "short", "--max_position_embeddings", 200, "--stage1_steps", 0]
    longer += ["--max_sentences", 60, "--max_documents", 20, "--max_validation_documents", 4, "--max_steps", 8]
    longer += ["--validation_fraction", 0.2, "--eval_strategy", "steps", "--eval_steps", 4, "--learning_rate", 3e-3]
    articles = tmp_path / "articles.json"
    paragraphs = TEXT.read_text().split("\n\n")
    articles.write_text("\n".join(json.dumps({"text": "\n".join(paragraphs[i : i + 4])}) for i in range(0, 100, 4)))
    rows = distill.main(arguments(source, tmp_path / "out", "--train_file", articles, *longer))
    assert [row["model"] for row in rows] == ["source", "converted", "after stage 2"]
    assert set(rows[0]) == {"model"} | {f"{kind}_{name}" for kind in KINDS_OF_TEXT for name in ("spearman", "cosine")}
    assert rows[0]["documents_cosine"] == pytest.approx(1)
    assert rows[1]["documents_cosine"] < rows[2]["documents_cosine"]
    history = json.loads((tmp_path / "out" / "stage2" / "checkpoint-6" / "trainer_state.json").read_text())
    assert any("eval_documents_cosine" in log for log in history["log_history"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "distilled again" in card and "from `short` on" in card and "at most 200 tokens" in card
    assert AutoModel.from_pretrained(tmp_path / "out").config.max_position_embeddings == 200
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 200
