"""What people report of other models, tried on ours: GPT-2 and BERT are the measure where they do it right."""

import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel
from transformers.models.auto import modeling_auto

import gma_hf
from gma_hf import GMAConfig, GMAForCausalLM, GMAModel
from gma_hf.model.compat_gma import CACHE_NAME


HEADS = (
    "CausalLM",
    "MaskedLM",
    "SequenceClassification",
    "TokenClassification",
    "QuestionAnswering",
    "MultipleChoice",
)
STYLES = dict.fromkeys(HEADS, "causal") | {"MaskedLM": "bidirectional"}


# A loss that is not that of the task


def test_transformers_tables_know_the_class_of_every_task():
    """Trainer shifts labels by them where it smooths, and pipelines tell by them what is supported."""
    assert modeling_auto.MODEL_MAPPING_NAMES["gma"] == "GMAModel"
    for head, table in (
        ("CausalLM", "CAUSAL_LM"),
        ("MaskedLM", "MASKED_LM"),
        ("SequenceClassification", "SEQUENCE_CLASSIFICATION"),
        ("TokenClassification", "TOKEN_CLASSIFICATION"),
        ("QuestionAnswering", "QUESTION_ANSWERING"),
        ("MultipleChoice", "MULTIPLE_CHOICE"),
    ):
        assert getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")["gma"] == f"GMAFor{head}"


# In a process where this package cannot be imported: Trainer's smoothed loss of a copy opened as custom code
SMOOTHED = """
    import sys
    sys.modules["gma_hf"] = None
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    arguments = TrainingArguments(sys.argv[2], label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    ids = torch.arange(1, 23)[None]
    with torch.no_grad():
        loss = Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": ids})
        logits = model(ids).logits[:, :-1].log_softmax(-1)
    right = -0.9 * logits.gather(-1, ids[:, 1:, None]).mean() - 0.1 * logits.mean()
    assert abs(loss - right) < 1e-4, (loss, right)
"""


def test_label_smoothing_shifts_the_labels_of_custom_code_too(make_config, make_model, tmp_path):
    pytest.importorskip("accelerate")
    make_model(GMAForCausalLM, make_config("causal")).save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", textwrap.dedent(SMOOTHED), tmp_path / "model", tmp_path / "runs"]
    done = subprocess.run([str(x) for x in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_subclass_of_a_head_has_its_loss(make_config, make_model, head):
    parent = getattr(gma_hf, f"GMAFor{head}")
    child = type("Encoder", (parent,), {})
    config = make_config(STYLES[head], num_labels=3, pad_token_id=0)
    shape = (2, 3, 7) if head == "MultipleChoice" else (2, 7)
    inputs = {"input_ids": torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(0))}
    if head == "QuestionAnswering":
        inputs |= {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    else:
        inputs["labels"] = torch.tensor([0, 2]) if head in ("SequenceClassification", "MultipleChoice") else None
        if inputs["labels"] is None:
            inputs["labels"] = inputs["input_ids"] % (3 if head == "TokenClassification" else 61)
    losses = [make_model(kind, config)(**inputs).loss for kind in (parent, child)]
    assert torch.equal(*losses) and losses[0].isfinite()


# Caches


def test_only_a_static_cache_is_compileable(make_config):
    assert not DynamicCache(config=make_config("causal")).is_compileable


def test_a_cache_under_gradient_checkpointing_is_refused(make_config, make_model):
    model = make_model(GMAForCausalLM, make_config("causal"))
    ids = torch.randint(1, 61, (1, 8))
    with torch.no_grad():
        past = {CACHE_NAME: model(ids, use_cache=True)[CACHE_NAME]}
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    model.train()
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` must be None while a model trains with gradient"):
        model(ids, **past)
    model.eval()
    assert model(ids, **past).logits.isfinite().all()


def test_both_names_of_the_cache_at_once_are_refused(make_config, make_model):
    model = make_model(GMAModel, make_config("causal"))
    caches = {name: DynamicCache(config=model.config) for name in ("cache", "past_key_values")}
    with pytest.raises(ValueError, match="Only one of `cache` and `past_key_values`"):
        model(torch.ones(1, 3, dtype=torch.long), **caches)


@torch.no_grad()
def test_a_state_with_new_ids_alone_says_what_to_pass(make_config, make_model):
    model = make_model(GMAForCausalLM, make_config("causal"))
    ids = torch.randint(1, 61, (1, 8))
    cache = model(ids, use_cache=True)[CACHE_NAME]
    with pytest.raises(ValueError, match="pass the `attention_mask` of all tokens, read before and now"):
        model.generate(ids[:, :2], **{CACHE_NAME: cache}, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("read", [8, 12])
@torch.no_grad()
def test_a_cache_of_the_whole_prompt_is_refused_in_words_about_the_cache(make_config, make_model, read):
    """Or of more than it: GPT-2 takes either in silence."""
    for name in ("causal", "causal_hybrid"):
        model = make_model(GMAForCausalLM, make_config(name))
        ids = torch.randint(1, 61, (1, 12))
        cache = model(ids[:, :read], use_cache=True)[CACHE_NAME]
        mask = torch.ones(1, 8, dtype=torch.long)
        with pytest.raises(ValueError, match=f"`{CACHE_NAME}` must have read fewer tokens than the prompt has, 8"):
            model.generate(ids[:, :8], attention_mask=mask, **{CACHE_NAME: cache}, max_new_tokens=2, pad_token_id=0)


# Dtypes, outputs, folders, fields


@pytest.mark.parametrize("name", ["causal_additions", "causal_hybrid_additions", "bidirectional_conv"])
def test_a_model_loaded_in_float64_computes_in_it(make_config, make_model, assert_close, tmp_path, name):
    model = make_model(GMAModel, make_config(name))
    model.save_pretrained(tmp_path)
    ids = torch.randint(1, 61, (2, 21))
    loaded, cast = GMAModel.from_pretrained(tmp_path, dtype=torch.float64), model.double()
    output = loaded(ids).last_hidden_state
    assert output.dtype == torch.float64
    assert_close(output, cast(ids).last_hidden_state, 1e-9)
    output.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in loaded.parameters() if x.grad is not None)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_config_may_ask_for_tuples(make_config, make_model, head):
    config = make_config(STYLES[head], return_dict=False, pad_token_id=0)
    model = make_model(getattr(gma_hf, f"GMAFor{head}"), config)
    ids = torch.randint(1, 61, (2, 3, 7) if head == "MultipleChoice" else (2, 7))
    output = model(ids)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], model(ids, return_dict=True).to_tuple()[0])
    if head == "CausalLM":
        assert model.generate(ids, max_new_tokens=3, pad_token_id=0).shape == (2, 10)


# Opens a checkpoint as custom code from each of some folders, without this package
FOLDERS = """
    import sys
    sys.modules["gma_hf"] = None
    import torch
    from transformers import AutoModelForCausalLM

    ids, expected = torch.arange(1, 23)[None], None
    for folder in sys.argv[1:]:
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()(ids).logits
        assert expected is None or torch.allclose(logits, expected, atol=1e-5), folder
        expected = logits
"""


def test_a_checkpoint_opens_from_a_folder_of_any_name(make_config, make_model, tmp_path):
    model = make_model(GMAForCausalLM, make_config("causal_additions"))
    folders = [tmp_path / name for name in ("plain", "with space", "lr=0.1", "a+b", "modèle", "gma=0.1 (é)")]
    for folder in folders:
        model.save_pretrained(folder)
    command = [sys.executable, "-c", textwrap.dedent(FOLDERS), *folders]
    done = subprocess.run([str(x) for x in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("num_component", "num_components"),
        ("hiden_size", "hidden_size"),
        ("is_causel", "is_causal"),
        ("num_label", "num_labels"),
    ],
)
def test_a_mistyped_field_is_refused_with_the_real_one(wrong, right):
    with pytest.raises(ValueError, match=f"`{wrong}` is no field of GMAConfig, which may be `{right}`"):
        GMAConfig(**{wrong: 1})
    assert GMAConfig(something_else=1).something_else == 1  # as in Transformers


def test_a_config_without_positions_names_no_limit(tmp_path):
    config = GMAConfig(position_embedding="none", max_position_embeddings=1024)
    assert not hasattr(config, "max_position_embeddings") and config.position_limit is None
    config.save_pretrained(tmp_path)
    assert not hasattr(GMAConfig.from_pretrained(tmp_path), "max_position_embeddings")
    assert GMAConfig().position_limit == 1024


def test_a_text_beyond_a_limit_that_is_not_there_warns_of_nothing(make_config, make_model, caplog):
    model = make_model(GMAForCausalLM, make_config("causal", position_embedding="none"))
    model.generate(torch.ones(1, 300, dtype=torch.long), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert "maximum length" not in caplog.text


def test_gpt2_is_the_measure_of_label_smoothing(make_config, make_model, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=24, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    for model in (gpt2.eval(), make_model(GMAForCausalLM, make_config("causal"))):
        ids = torch.arange(1, 23)[None]
        with torch.no_grad():
            loss = transformers.Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": ids})
            logits = model(ids).logits[:, :-1].log_softmax(-1)
        right = -0.9 * logits.gather(-1, ids[:, 1:, None]).mean() - 0.1 * logits.mean()
        torch.testing.assert_close(loss, right, rtol=1e-4, atol=1e-4)
