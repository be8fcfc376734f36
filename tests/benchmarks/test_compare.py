"""A comparison as its user runs it, with two mixers: every run kept, the best learning rate taken, table and plot."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks import compare, compare_cost


@pytest.fixture
def trainings(monkeypatch):
    """All trainings of a comparison, in order: the run, its Trainer, and the weights that it starts from."""
    seen, make = [], compare.Run.trainer

    def watched(run, model, *rest):
        trainer = make(run, model, *rest)
        seen.append((run, trainer, copy.deepcopy(model.state_dict())))
        return trainer

    monkeypatch.setattr(compare.Run, "trainer", watched)
    return seen


@torch.no_grad()
def figures_by_hand(trainer):
    """Loss and accuracy of what was trained on its validation examples; the loss of classes or of the next token."""
    logits, labels = [], []
    for batch in DataLoader(trainer.eval_dataset, 8, collate_fn=trainer.data_collator):
        labels.append(batch.pop("labels"))
        logits.append(trainer.model.eval()(**batch).logits)
    logits, labels = torch.cat(logits), torch.cat(labels)
    if labels.ndim == 2:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item()


@pytest.mark.slow
def test_runs_chooses_a_rate_and_goes_on(tmp_path, monkeypatch, trainings):
    arguments = ["--quick", "True", "--output_dir", str(tmp_path), "--mixers", "gma", "linear"]
    results = compare.main(arguments)
    assert set(results) == {"gma", "linear"}
    for mixer, runs in results.items():
        assert [run["seed"] for run in runs] == [0, 1]
        tried = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob(f"{mixer}-*-0-4.json")]
        assert len(tried) == 2
        assert runs[0]["learning_rate"] == min(tried, key=lambda run: run["loss"])["learning_rate"]
    assert len(trainings) == 2 * (2 + 2)  # of each mixer: both rates, then both seeds
    starts = {}
    for run, trainer, start in trainings:
        assert trainer.args.learning_rate == run.learning_rate and trainer.state.global_step == run.steps
        figures = json.loads((tmp_path / "runs" / f"{run.name}.json").read_text())
        loss, _ = figures_by_hand(trainer)
        assert figures["loss"] == pytest.approx(loss, rel=1e-5)
        if run.steps == 10:
            assert figures == results[run.mixer][run.seed]
        embedding = start["model.embeddings.word_embeddings.weight"]
        assert torch.equal(starts.setdefault((run.mixer, run.seed), embedding), embedding)  # whatever the rate
    assert not torch.equal(starts["gma", 0], starts["gma", 1])
    table = (tmp_path / "table.md").read_text()
    assert table.count("±") == 2 and f"{results['gma'][0]['parameters']:,}" in table
    assert (tmp_path / "scores.png").stat().st_size > 5_000
    costs = json.loads((tmp_path / "costs.json").read_text())
    for mixer in results:
        assert f"| {costs[mixer]['milliseconds']:.0f} | {costs[mixer]['mebibytes']:.0f} |" in table
        assert costs[mixer]["milliseconds"] > 0 and costs[mixer]["mebibytes"] > 0

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert compare.main(arguments) == results  # nothing is run twice
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert compare.main([*arguments[:-2], "linear"]) == results  # the table is of all that was run

    monkeypatch.setitem(compare.QUICK, "hidden_size", 16)  # runs of another network are not mixed in
    with pytest.raises(ValueError, match="`hidden_size` must be as in the other runs in .*, 32, but it is 16"):
        compare.main(arguments)


def test_classes_of_listops(tmp_path, trainings):
    arguments = ["--quick", "True", "--task", "classification", "--output_dir", str(tmp_path)]
    results = compare.main([*arguments, "--mixers", "gma", "softmax"])
    table = (tmp_path / "table.md").read_text()
    assert "accuracy, %" in table
    for run, trainer, _ in trainings:
        if run.steps == 10:
            loss, accuracy = figures_by_hand(trainer)
            figures = results[run.mixer][run.seed]
            assert (figures["loss"], figures["accuracy"]) == pytest.approx((loss, accuracy), rel=1e-4)
    for runs in results.values():
        assert f"{100 * sum(run['accuracy'] for run in runs) / 2:.2f} ±" in table


def test_a_class_after_the_next_token(tmp_path, trainings):
    arguments = ["--quick", "True", "--task", "pretrained_classification", "--seeds", "0", "--learning_rates", "4e-3"]
    arguments += ["--mixers", "gma + conv + gates, no positions", "softmax + conv + output gate, no positions"]
    arguments += ["--conv_kernel_size", "7", "--train_sampling_strategy", "group_by_length"]
    results = compare.main([*arguments, "--output_dir", str(tmp_path), "--pretraining_steps", "20"])
    assert len(results) == 2 and len(trainings) == 4
    for (_, before, _), (run, after, start) in zip(trainings[::2], trainings[1::2]):
        assert (before.args.max_steps, before.args.learning_rate) == (20, 4e-3)
        losses = [log["loss"] for log in before.state.log_history if "loss" in log]
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # it learned the next token
        for name, weight in before.model.base_model.state_dict().items():
            assert torch.equal(start[f"model.{name}"], weight), name  # where the classifier starts
        loss, accuracy = figures_by_hand(after)
        (figures,) = results[run.mixer]
        assert (figures["loss"], figures["accuracy"]) == pytest.approx((loss, accuracy), rel=1e-4)
        assert after.state.global_step == figures["steps"] == 10


def test_quick_takes_the_data_of_a_config_and_what_is_told(tmp_path):
    config = tmp_path / "listops.yaml"
    config.write_text(
        "task: classification\nlistops: [4, 20]\ntrain_examples: 16\nvalidation_examples: 8\ntest_examples: 1\n"
        f"max_length: 21\nmixers: [gma]\nmax_steps: 500\nhidden_size: 512\noutput_dir: {tmp_path / 'out'}\n"
    )
    told = ["--quick", "True", "--config", str(config), "--max_steps", "3", "--seeds", "5"]
    results = compare.main([*told, "--learning_rates", "1e-3"])
    assert [(run["steps"], run["seed"]) for run in results["gma"]] == [(3, 5)]
    settings = json.loads((tmp_path / "out-quick" / "settings.json").read_text())
    assert (settings["listops"], settings["train_examples"], settings["hidden_size"]) == ([4, 20], 16, 32)


def test_a_setting_that_older_runs_lack_had_its_default(tmp_path):
    settings = tmp_path / "settings.json"
    given = ["--quick", "True", "--output_dir", str(tmp_path)]
    compare.check_settings(*compare.parsed(given))
    older = json.loads(settings.read_text())
    del older["conv_kernel_size"]
    settings.write_text(json.dumps(older))
    with pytest.raises(ValueError, match="`conv_kernel_size` must be as in the other runs in .*, 4, but it is 7"):
        compare.check_settings(*compare.parsed([*given, "--conv_kernel_size", "7"]))
    compare.check_settings(*compare.parsed(given))


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="`task` must be one of causal_lm, classification, pretrained_classification, but it is 'parsing'",
    ):
        compare.main(["--quick", "True", "--task", "parsing", "--output_dir", str(tmp_path)])


def test_a_network_of_its_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be those of this recipe, but one is '--model_config'"):
        compare.main(["--quick", "True", "--output_dir", str(tmp_path / "run"), "--model_config", "{}"])
    assert not (tmp_path / "run").exists()


def test_an_unknown_mixer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`mixers` must be of 'softmax', .* but one is 'rnn'"):
        compare.main(["--quick", "True", "--output_dir", str(tmp_path), "--mixers", "gma", "rnn"])


def test_the_cost_of_a_step_by_itself(capsys):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_components": 4}
    sizes |= {"vocab_size": 50, "length": 12, "steps": 2}
    arguments = [str(x) for name, value in sizes.items() for x in (f"--{name}", value)]
    costs = compare_cost.main([*arguments, "--clock", "process", "--mixers", "softmax", "gma, recommended"])
    assert list(costs) == ["softmax", "gma, recommended"]
    assert all(cost["milliseconds"] > 0 for cost in costs.values())
    ratio = costs["gma, recommended"]["milliseconds"] / costs["softmax"]["milliseconds"]
    assert f"milliseconds ({ratio:.3f})" in capsys.readouterr().out
