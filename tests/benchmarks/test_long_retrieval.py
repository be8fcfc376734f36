"""Long retrieval: which articles are taken, how their halves are read, and what is written."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from benchmarks import long_retrieval


MINILM = Path(__file__).parents[2] / "model_cards" / "gma-minilm-l6"
TOPICS = ["cats and kittens", "trains and stations", "rivers and bridges", "kings and queens", "bread and butter"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Articles of 70 to 80 tokens, one too short, and more of them at the end of another file."""
    folder = tmp_path_factory.mktemp("articles")
    texts = [" ".join(f"Here, part {i} tells about {topic}." for i in range(8)) for topic in TOPICS]
    Dataset.from_dict({"text": [texts[0], "Short.", texts[1]]}).to_parquet(folder / "test.parquet")
    Dataset.from_dict({"text": [texts[2], texts[3], "Short.", texts[4]]}).to_parquet(folder / "train.parquet")
    return [str(folder / "test.parquet")], str(folder / "train.parquet"), texts


@pytest.fixture(scope="module")
def encoder():
    return SentenceTransformer(str(MINILM), device="cpu")


def data(files, **choices):
    choices = {"shortest": 50, "longest": 100, "end_rows": 3, "window": 24, "overlap": 8} | choices
    return long_retrieval.DataArguments(files=files[0], end_of=files[1], **choices)


def test_articles_come_from_the_held_out_end(files, encoder):
    *_, texts = files
    chosen = long_retrieval.choose_articles(data(files, articles=4), encoder.tokenizer)
    assert chosen == [texts[0], texts[1], texts[3], texts[4]]
    assert long_retrieval.choose_articles(data(files, articles=3), encoder.tokenizer) == [*texts[:2], texts[4]]
    with pytest.raises(ValueError, match="must hold 5 articles of 50 to 100 tokens, but they hold 4"):
        long_retrieval.choose_articles(data(files, articles=5), encoder.tokenizer)


def test_halves_are_the_whole_text():
    assert long_retrieval.halves("one two three four") == ("one two three", "four")
    assert long_retrieval.halves("abcdef") == ("abc", "def")


def test_windows_are_read_as_texts_of_their_own(files, encoder):
    text = files[2][0]
    windows = long_retrieval.embed_windows(encoder, [text, "Short."], 24, 8, 2)
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    parts = [[ends[0], *ids[i : i + 22], ends[1]] for i in range(0, len(ids) - 8, 14)]
    assert [len(x) for x in windows] == [len(parts), 1]
    for embedding, part in zip(windows[0], parts):
        tokens = torch.tensor([part])
        with torch.no_grad():
            alone = encoder({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})["sentence_embedding"][0]
        torch.testing.assert_close(embedding, alone, rtol=1e-4, atol=1e-4)
    first = long_retrieval.embed_windows(encoder, [text], 24, None, 2)
    torch.testing.assert_close(first[0], windows[0][:1], rtol=1e-4, atol=1e-4)


def test_ranks_and_their_means():
    queries = torch.eye(3)
    candidates = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.8, 0.6, 0.1]])
    ranks = long_retrieval.rank_of_own(queries, candidates)
    assert ranks.tolist() == [1, 2, 1]
    figures = long_retrieval.figures_of(ranks)
    assert figures["recall at 1"] == pytest.approx(2 / 3) and figures["mean reciprocal rank"] == pytest.approx(5 / 6)
    assert figures["recall at 1, standard error"] == pytest.approx(1 / 3)


def test_each_checkpoint_has_a_file_and_the_table_has_all(files, tmp_path, capsys):
    common = f"--files {files[0][0]} --end_of {files[1]} --end_rows 4 --articles 5 --shortest 50 --longest 100"
    common += f" --window 24 --overlap 8 --output_dir {tmp_path}"
    long_retrieval.main([*common.split(), "--checkpoints", f"one={MINILM}", "--ways", "first", "windows"])
    long_retrieval.main(
        [*common.split(), "--checkpoints", str(MINILM), "--ways", "whole", "--against", "one, windows"]
    )
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split("  ")[0] for line in lines[1:]] == ["gma-minilm-l6, whole", "one, first", "one, windows"]
    assert lines[3].endswith("0 / 0")
    report = json.loads((tmp_path / "gma-minilm-l6_cpu.json").read_text())
    figures = report["results"]["whole"]
    assert len(figures["ranks"]) == 5 and figures["recall at 1"] >= 0.8 and report["data"]["articles"] == 5
    with pytest.raises(ValueError, match="`ways` must be of first, windows, whole, but one is 'last'"):
        long_retrieval.main([*common.split(), "--checkpoints", str(MINILM), "--ways", "last"])
