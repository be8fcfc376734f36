"""Distillation as a library: a Trainer for each stage, long texts from windows, and both stages by one function."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from gma_hf import convert_checkpoint
from gma_hf.conversion import DistillationArguments, DistillationTrainer, distill
from gma_hf.conversion.teacher import Teacher


POSITIONS = 24
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS = {"embedding": BertModel, "masked": BertForMaskedLM, "classifier": BertForSequenceClassification}


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(95))])}
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", **special)


def make_source(kind):
    """A source with random weights, large enough for attention and outputs not to be flat."""
    set_seed(0)
    if kind == "causal":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=100, **sizes))
    else:
        model = KINDS[kind](BertConfig(vocab_size=100, max_position_embeddings=POSITIONS, **BERT))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(25 if "attn" in name or "attention" in name else 4)
    return model.eval()


def make_examples(kind, lengths, seed=0):
    draw = np.random.RandomState(seed)
    rows = [[2, *draw.randint(5, 100, size=length - 2).tolist(), 3] for length in lengths]
    return Dataset.from_dict({"input_ids": rows} | ({"labels": rows} if kind == "causal" else {}))


def arguments(folder, **choices):
    common = {"report_to": "none", "use_cpu": True, "max_steps": 8, "per_device_train_batch_size": 4, "seed": 0}
    common |= {"stage1_steps": 8, "stage1_learning_rate": 1e-2, "learning_rate": 2e-3, "source_weight": 1.0}
    return DistillationArguments(output_dir=str(folder), **common | choices)


def convert(source, longest=POSITIONS):
    texts = [torch.tensor([row]) for row in make_examples("embedding", [POSITIONS] * 8)["input_ids"]]
    return convert_checkpoint(source, num_components=8, calibration=texts, max_position_embeddings=longest)


NEARNESS = {"embedding": "cosine", "masked": "divergence", "causal": "divergence"}


@pytest.mark.parametrize("kind", NEARNESS)
def test_texts_longer_than_the_source_reads(tmp_path, tokenizer, kind):
    source = make_source(kind)
    model = convert(source, longest=64)
    lengths = [64] * 12 if kind == "causal" else [10, 30, 64, 50] * 3
    examples, others = (make_examples(kind, lengths, seed) for seed in (0, 1))
    eval_set = {"long": others} if kind == "embedding" else others
    found = distill(model, source, arguments(tmp_path), examples, eval_set, tokenizer)
    assert [row["model"] for row in found.rows] == ["source", "converted", "after stage 1", "after stage 2"]
    name = f"long_{NEARNESS[kind]}" if kind == "embedding" else NEARNESS[kind]
    values = [row[name] for row in found.rows]
    if kind == "embedding":
        assert values[0] == pytest.approx(1) and values[1] < values[3]
    else:
        assert values[0] == pytest.approx(0, abs=1e-5) and values[3] < values[1]
    before, after = found.layer_errors["converted"], found.layer_errors["after stage 1"]
    assert all(late < early for early, late in zip(before, after, strict=True))


def test_a_teacher_gives_what_the_source_gives_for_each_window(tokenizer):
    source = make_source("embedding")
    teacher = Teacher(source, tokenizer, window_size=12, window_overlap=4)
    row = make_examples("embedding", [32])["input_ids"][0]
    cls, body, sep = row[:1], row[1:-1], row[-1:]
    windows = torch.tensor([cls + body[start : start + 10] + sep for start in (0, 6, 12, 18, 20)])
    with torch.no_grad():
        states = source(windows).last_hidden_state
    expected = torch.nn.functional.normalize(states.mean(dim=1), dim=-1).mean(dim=0)
    inputs = {"input_ids": torch.tensor([row])}
    embedding, tokens = teacher.embeddings(inputs, "mean")
    firsts = torch.nn.functional.normalize(states[:, 0], dim=-1).mean(dim=0)
    of_first, _ = teacher.embeddings(inputs, "cls")
    torch.testing.assert_close(of_first[0], firsts / firsts.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding[0], expected / expected.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[0, 0], states[0, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[0, -1], states[4, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[0, 10], states[1, 4], rtol=1e-4, atol=1e-5)  # body token 9, in the second window
    read, given = teacher.attention(inputs, [1])[1]
    assert read.shape == given.shape == tokens.shape


def test_short_texts_are_taught_as_the_source_reads_them(tokenizer):
    source = make_source("masked")
    batch = tokenizer.pad({"input_ids": make_examples("masked", [20, 9])["input_ids"]}, return_tensors="pt")
    with torch.no_grad():
        expected = source(**batch).logits
    logits, mask = Teacher(source, tokenizer).logits(dict(batch)), batch["attention_mask"].bool()
    torch.testing.assert_close(logits[mask], expected[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["layers", "outputs"])
def test_gradient_checkpointing_changes_nothing(tmp_path, tokenizer, stage):
    weights = []
    for is_checkpointed in (False, True):
        source = make_source("causal")
        model = convert(source)
        if is_checkpointed:
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        choices = {"max_steps": 2, "save_strategy": "no"}
        examples = make_examples("causal", [POSITIONS] * 8)
        DistillationTrainer(model, source, arguments(tmp_path, **choices), None, examples, stage=stage).train()
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_trainer_evaluates_stops_early_and_loads_the_best(tmp_path, tokenizer):
    source = make_source("embedding")
    model = convert(source)
    choices = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    choices |= {"metric_for_best_model": "cosine", "learning_rate": 0.0, "max_steps": 20}
    examples = make_examples("embedding", [20] * 8)
    trainer = DistillationTrainer(
        model,
        source,
        arguments(tmp_path, **choices),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    cosines = [log["eval_cosine"] for log in trainer.state.log_history if "eval_cosine" in log]
    assert len(cosines) == 3  # at such a rate it never becomes better
    assert trainer.evaluate()["eval_cosine"] == pytest.approx(max(cosines), abs=1e-4)


def test_masked_tokens_are_the_same_in_each_evaluation(tmp_path, tokenizer):
    source = make_source("masked")
    examples = make_examples("masked", [20] * 8)
    trainer = DistillationTrainer(
        convert(source), source, arguments(tmp_path), eval_dataset=examples, processing_class=tokenizer
    )
    first, again = trainer.figures(), trainer.figures()
    assert first == again and set(first) == {"perplexity", "divergence", "agreement"}
    assert math.isfinite(first["perplexity"])


def test_the_first_stage_leaves_the_rest_as_it_was(tmp_path, tokenizer):
    source = make_source("embedding")
    model = convert(source)
    model.embeddings.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = DistillationTrainer(
        model,
        source,
        arguments(tmp_path, save_strategy="no"),
        train_dataset=make_examples("embedding", [20] * 8),
        processing_class=tokenizer,
        stage="layers",
    )
    trainer.train()
    for name, tensor in model.state_dict().items():
        is_mixer = ".attention." in name
        assert torch.equal(tensor, before[name]) != is_mixer, name
    trained = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert trained and all(name.startswith("embeddings.") for name in trained)
    assert {layer.dropout.p for layer in model.layers} == {0.1}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_wrong_input_is_refused(tmp_path, tokenizer):
    source = make_source("embedding")
    model = convert(source)
    with pytest.raises(ValueError, match="`stage` must be layers or outputs, but it is 'both'"):
        DistillationTrainer(model, source, arguments(tmp_path), stage="both")
    with pytest.raises(ValueError, match="`window_size` must be at least 8 and at most .* 24, but it is 25"):
        DistillationTrainer(model, source, arguments(tmp_path, window_size=25))
    with pytest.raises(ValueError, match="`window_overlap` must be from 0 to less than half .* tokens, but it is 12"):
        DistillationTrainer(model, source, arguments(tmp_path, window_overlap=12))
    with pytest.raises(ValueError, match="`pooling` must be mean or cls, but it is 'max'"):
        DistillationTrainer(model, source, arguments(tmp_path, pooling="max"))
    classifier = make_source("classifier")
    with pytest.raises(ValueError, match="`source` must be a language model.*GMAForSequenceClassification"):
        DistillationTrainer(convert(classifier), classifier, arguments(tmp_path))
    exact = convert_checkpoint(source, layers="none")
    with pytest.raises(ValueError, match="`model` must have at least one GMA layer"):
        DistillationTrainer(exact, source, arguments(tmp_path))
    examples = make_examples("embedding", [10] * 4).map(lambda row: {"position_ids": [0] * 10})
    trainer = DistillationTrainer(
        model,
        source,
        arguments(tmp_path),
        eval_dataset=examples,
        data_collator=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
    )
    with pytest.raises(ValueError, match="Examples may hold input_ids, .* but one holds 'position_ids'"):
        trainer.evaluate()
