"""`benchmarks/serving.py`, very small."""

import json

import pytest


pytest.importorskip("vllm")
pytest.importorskip("matplotlib")


def test_conversations_are_held_and_counted(tmp_path):
    from benchmarks import serving

    sizes = "--layers 2 --width 64 --heads 2 --components 8 --vocabulary 61 --requests 6 --longest 20 --new_tokens 4"
    others = "--rounds 1 --batch_size 3 --conversations 30 --context 40 --pool_gib 1"
    serving.main([*f"{sizes} {others}".split(), "--output_dir", str(tmp_path)])
    found = json.loads((tmp_path / "serving_cpu.json").read_text())["found"]
    state, tail = 2 * 8 * 33 * 4, 3 * 192 * 4
    assert found["GMA"]["conversations"] == {
        "held at once": 30,
        "bytes": 30 * 2 * (state + tail),
        "bytes per conversation": 2 * (state + tail),
    }
    assert found["GPT-2"]["conversations"]["bytes per conversation"] == 128 * 2 * 2 * 64 * 4  # a block of 128 tokens
    for name in ("GMA", "GPT-2"):
        assert min(found[name]["requests per second"]["by the clock"].values()) > 0
