"""The benchmark of sequence parallelism at a small size."""

import json

import pytest

from benchmarks import sequence_parallel


@pytest.mark.slow
def test_what_it_writes(tmp_path):
    small = ["--length", "300", "--processes", "2", "--hidden_size", "16", "--components", "4", "--layers", "1"]
    cases = ["--cases", "odd length", "packed documents"]
    sequence_parallel.main([*small, *cases, "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / "sequence_parallel_cpu.json").read_text())
    assert set(report["cases"]) == {"odd length", "packed documents"}
    for case in report["cases"].values():
        assert max(case["2"]["off by"].values()) < 1e-4
        assert len(case["2"]["peak"]) == 2 and case["2"]["bytes per rank"]["back"] > 0


def test_cases_that_there_are_not():
    with pytest.raises(ValueError, match="`cases` must be among plain"):
        sequence_parallel.main(["--cases", "other"])
