"""sentence-transformers: the shipped encoder with masked mean pooling, and a few steps of training."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from gma_hf import GMAModel


sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "A cat.",
    "The quick brown fox jumps over the lazy dog, and then it runs all the way home again.",
    "Where is the nearest railway station?",
]


@pytest.fixture(scope="module")
def encoder(minilm):
    return sentence_transformers.SentenceTransformer(str(minilm), device="cpu", model_kwargs={"dtype": "float32"})


def test_a_folder_without_its_files_gets_mean_pooling(encoder, minilm, assert_close):
    """Texts of unequal length in one batch, each as the mean of its own tokens, read alone."""
    assert isinstance(encoder[0].auto_model, GMAModel) and encoder[1].pooling_mode == "mean"
    embeddings = encoder.encode(TEXTS, batch_size=len(TEXTS), convert_to_tensor=True)
    model, tokenizer = (
        AutoModel.from_pretrained(minilm, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(minilm),
    )
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        with torch.no_grad():
            tokens = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert_close(embedding, tokens.mean(dim=0), 1e-5, text)


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
