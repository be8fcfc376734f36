"""Training from several starts of the routing, as small as it gets."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import routing_start


TEXT = Path(__file__).parents[1] / "data" / "shakespeare.txt"
STARTS = ("softmax", "GMA, temperature 0.1", "GMA, temperature 1.0")
COMPONENTS = 8


def test_figures_of_every_start(tmp_path, monkeypatch, capsys):
    starts = {name: {"num_components": COMPONENTS, **routing_start.STARTS[name]} for name in STARTS}
    starts["softmax"]["layer_types"] = ["full_attention"]
    monkeypatch.setattr(routing_start, "STARTS", starts)
    monkeypatch.setattr(routing_start, "MODEL", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2})
    given = ["--train_file", TEXT, "--train_tokenizer", 257, "--block_size", 64, "--output_dir", tmp_path / "out"]
    given += ["--max_steps", 2, "--learning_rate", 1e-3, "--report_to", "none", "--save_strategy", "no"]
    routing_start.main([str(argument) for argument in [*given, "--use_cpu", True, "--seed", 0]])
    figures = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(figures) == set(STARTS) and set(figures["softmax"]) == {"loss"}
    rows = capsys.readouterr().out
    for name, figure in figures.items():
        assert figure["loss"] == pytest.approx(math.log(257), abs=1)
        assert f"| {name} | {figure['loss']:.3f} |" in rows
    flat, sharp = (figures[name]["entropy_before"] for name in STARTS[1:])
    assert 0 < sharp < flat <= math.log(COMPONENTS) + 1e-5  # a low temperature here flattens the posterior
    assert all(1 <= figures[name]["components_in_use"] <= COMPONENTS + 1e-4 for name in STARTS[1:])
