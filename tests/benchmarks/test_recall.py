"""Recall as its user runs it: runs kept and not repeated, table and plot; and what is refused."""

import json
import math

import pytest
import torch
from torch import nn

from benchmarks import recall
from benchmarks.recall_contenders import CONTENDERS, network
from benchmarks.recall_data import Recall
from benchmarks.recall_results import finished
from benchmarks.recall_training import ask, parameter_groups, schedule, train
from gma_hf.model.configuration_gma import OWN_FIELDS


KNOWN = [name for name, contender in CONTENDERS.items() if set(contender.fields) <= set(OWN_FIELDS)]


@pytest.fixture
def quick(tmp_path):
    """`quick(*arguments)`: a quick run, and by the name of its file each run of the folder."""

    def make(*arguments):
        recall.main(["--quick", "True", "--output_dir", str(tmp_path), *arguments])
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}

    return make


def test_all_mixers_in_a_quick_run(quick, tmp_path):
    runs = quick("--mixers", *KNOWN, "--max_steps", "4")
    assert sorted(run["mixer"] for run in runs.values()) == sorted(KNOWN)
    for run in runs.values():
        assert [(x["pairs"], x["length"], x["examples"]) for x in run["evaluation"]] == [(4, 32, 8), (2, 48, 8)]
        assert [x["step"] for x in run["curve"]] == [1, 2, 3, 4] and math.isfinite(run["curve"][-1]["loss"])
    table = (tmp_path / "recall.md").read_text()
    assert all(f"| {name} |" in table for name in KNOWN) and (tmp_path / "recall.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "recall.json").read_text())) == len(KNOWN)


def test_a_run_is_not_repeated_and_the_best_rate_is_taken(quick, monkeypatch, tmp_path):
    arguments = ("--mixers", "linear", "--learning_rates", "1e-3", "1e-2", "--seeds", "3", "5")
    first = quick(*arguments)
    tried = {run["learning_rate"]: run["accuracy"] for run in first.values() if run["seed"] == 3}
    (other,) = (run for run in first.values() if run["seed"] == 5)
    assert set(tried) == {1e-3, 1e-2} and tried[other["learning_rate"]] == max(tried.values())
    (kept,) = finished(tmp_path / "runs")
    assert [(run["learning_rate"], run["seed"]) for run in kept] == [(other["learning_rate"], seed) for seed in (3, 5)]
    monkeypatch.setattr(recall, "train", None)
    assert quick(*arguments) == first


def test_fields_are_those_of_gma_alone(quick):
    given = ("--fields", '{"num_components": 5}', "--mixture_rate", "4", "--mixers", "gma-32", "linear")
    runs = {run["mixer"]: run for run in quick(*given).values()}
    assert runs["gma-32"]["state"] == 2 * 5 * 33
    assert runs["gma-32"]["settings"]["fields"] == {"num_components": 5}
    assert not {"fields", "mixture_rate"} & set(runs["linear"]["settings"])
    assert len(quick("--mixers", "gma-32")) == 3  # the same without them is another run


def test_a_needle(quick):
    (run,) = quick("--task", "needle", "--mixers", "linear", "--pairs", "1", "--evaluate", "1x100").values()
    assert [(x["pairs"], x["length"]) for x in run["evaluation"]] == [(1, 32), (1, 100)]


def test_the_delta_rule_learns():
    """Two keys are recalled after few steps, which a wrong label anywhere would not allow."""
    torch.manual_seed(0)
    task = Recall(num_keys=4, num_values=4, num_distractors=1)
    model = network("delta", task.vocab_size, {})
    settings = {"batch_size": 32, "learning_rate": 1e-2, "mixture_rate": 1.0, "warmup_steps": 10, "seed": 0}
    curve = train(model, task, 2, 8, max_steps=120, **settings)["curve"]
    asked = ask(model, task, 2, 8, 100)
    assert curve[0]["accuracy"] < 0.5 and asked["accuracy"] > 0.9 and asked == ask(model, task, 2, 8, 100)


def test_weight_decay_is_for_matrices_alone():
    model = network("gla", 100, {})
    decayed, others = parameter_groups(model, 1e-3, 1.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    of_norms = {
        x for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) for x in module.parameters()
    }
    biases = {parameter for parameter, name in names.items() if name.endswith("bias")}
    assert set(others["params"]) == of_norms | biases and others["weight_decay"] == 0
    assert set(decayed["params"]) == set(names) - of_norms - biases and decayed["weight_decay"] == 0.1
    *_, mixture = parameter_groups(network("gma-32", 100, {}), 1e-3, 4.0)
    assert (len(mixture["params"]), mixture["lr"], mixture["weight_decay"]) == (6, 4e-3, 0.0)


def test_the_rate_warms_up_and_falls_to_nothing():
    factors = [schedule(step, 10, 100) for step in range(101)]
    assert factors[0] == 0.1 and factors[9:11] == [1, 1] and factors[55] == pytest.approx(0.5) and factors[100] == 0


def test_what_is_not_allowed_is_refused(tmp_path):
    for arguments, sentence in {
        "--mixers rnn": "`mixers` must be of gma-32, .*, mamba, but one is 'rnn'",
        "--task copy": "`task` must be one of recall, needle, but it is 'copy'",
        "--evaluate 8-256": "`evaluate` must hold pairs and tokens as in 8x256, but one is '8-256'",
        "--max_steps 0": "`max_steps` must be at least 1, but it is 0",
        "--warmup_steps 2000": "`warmup_steps` must be from 0 to `max_steps`, 1000, but it is 2000",
        "--mixture_rate 0": "`mixture_rate` must be greater than 0, but it is 0",
        "--mixers linear --pairs 8 --lengths 64 31": "`length` must be at least 32 with 8 pairs",
        '--mixers gma-32 --fields {"heads":3}': "`fields` must be of GMAConfig, but one of gma-32 is 'heads'",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            recall.main([*arguments.split(), "--output_dir", str(tmp_path)])
    assert not any(tmp_path.iterdir())
