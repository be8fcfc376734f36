"""Every benchmark runs at a small size and writes every figure it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
TEXT = "tests/data/shakespeare.txt"
RUNS = {
    "mixer": "--lengths 64 128 --heads 2 --width 8 --components 4 --rounds 1 --floor True",
    "decode": "--contexts 20 40 --layers 1 --heads 2 --hidden_size 16 --vocab_size 50 --rounds 1 --piece 16",
    "model": "--lengths 32 64 --layers 1 --heads 2 --hidden_size 16 --vocab_size 50 --rounds 1 --longest_mamba 32",
    "chunk_size": "--lengths 32 64 --chunk_sizes 8 16 --heads 2 --width 8 --components 4 --rounds 1",
    "encoder": "--lengths 32 64 --layers 2 --heads 2 --hidden_size 16 --components 4 --rounds 1",
    "long_context": f"--text {TEXT} --document 300 --prompt 9000",
    "analysis": f"--text {TEXT} --tokens 2000",
    "assisted": f"--text {TEXT} --prompts 2 --max_new_tokens 20",
}
FIGURES = {"mixer": ["forward", "forward + backward"], "decode": ["time per token"], "model": ["training step"]}
FIGURES["encoder"] = ["encoding", "peak memory"]
FIGURES["chunk_size"] = ["forward", "forward + backward"]


def run(name, *arguments):
    command = [sys.executable, f"benchmarks/{name}.py", *RUNS[name].split(), *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize("name", ["mixer", "decode", "model", "chunk_size"])
def test_a_benchmark_runs_in_half_precision(tmp_path, name):
    run(name, "--dtype", "bfloat16", "--output_dir", str(tmp_path))
    assert json.loads((tmp_path / f"{name}_cpu.json").read_text())["arguments"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs(tmp_path, name):
    run(name, "--output_dir", str(tmp_path))
    report = json.loads((tmp_path / f"{name}_cpu.json").read_text())
    assert "threads" in report["machine"]
    for title in FIGURES.get(name, []):
        assert (tmp_path / f"{name}_cpu.png").stat().st_size > 1000
        for contender, column in report[title].items():
            assert column and all(value > 0 for value in column.values()), contender
    if name == "decode":
        for title in ("time per token", "state or key-value cache"):
            assert len(report[title]) == 5 and all(set(column) == {"20", "40"} for column in report[title].values())
        mebibytes = report["state or key-value cache"]
        assert mebibytes["GPT-2"]["40"] == 2 * mebibytes["GPT-2"]["20"] == 2 * 40 * 16 * 4 / 2**20
        assert mebibytes["GMA"]["40"] == mebibytes["GMA"]["20"]
    if name == "long_context":
        assert report["largest difference of the logits"] < 1e-4 and report["generated"] == 20
    if name == "assisted":
        assert report["prompts with exactly the greedy tokens"] == 2 and 0 <= report["share accepted"] <= 1
