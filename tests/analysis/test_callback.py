"""Routing figures in the logs of a real training, and a warning when the components collapse."""

import logging

import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from gma_hf.analysis import RoutingCallback


class Tracker(TrainerCallback):
    """As those that `report_to` names are told."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(logs)


def train(model, folder, several=False, **options):
    trainer = trainer_of(model, folder, several)
    trainer.add_callback(RoutingCallback(trainer, **options))
    trainer.train()
    return [log for log in trainer.state.log_history if "routing/layer_0/token_entropy" in log]


def trainer_of(model, folder, several=False, eval_strategy="steps"):
    rows = torch.randint(24, (8, 20), generator=torch.Generator().manual_seed(0)).tolist()
    data = datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    arguments = TrainingArguments(
        folder,
        max_steps=2,
        eval_strategy=eval_strategy,
        eval_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-5,
    )
    evaluated = {"one": data, "two": data} if several else data
    return Trainer(model, arguments, train_dataset=data, eval_dataset=None if eval_strategy == "no" else evaluated)


def test_figures_are_logged_at_each_evaluation(planted, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "gma_hf"):
        logs = train(planted, tmp_path)
    assert [log["step"] for log in logs] == [1, 2]
    assert 2 < logs[0]["routing/layer_0/effective_components"] < 3.01
    assert logs[0]["routing/layer_0/dead_components"] == 4  # one for each of two heads and two sides
    assert logs[0]["routing/layer_0/token_entropy"] < 0.01
    assert not caplog.records


def test_of_several_data_sets_the_first_counts(planted, tmp_path):
    logs = train(planted, tmp_path, several=True)
    assert [log["step"] for log in logs] == [1, 2]
    assert 2 < logs[0]["routing/layer_0/effective_components"] < 3.01


def test_trackers_are_told_and_training_is_as_without(planted, tmp_path):
    weights, trackers = [], []
    start = {name: value.clone() for name, value in planted.state_dict().items()}
    for with_callback in (False, True):
        planted.load_state_dict(start)
        trainer, tracker = trainer_of(planted, tmp_path), Tracker()
        trainer.add_callback(tracker)
        if with_callback:
            trainer.add_callback(RoutingCallback(trainer))
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in planted.parameters()]))
        trackers.append([log for log in tracker.logs if "routing/layer_0/effective_components" in log])
    assert torch.equal(*weights)
    assert [len(logs) for logs in trackers] == [0, 2]


def test_without_evaluations_it_says_so_and_measures_what_is_evaluated(planted, tmp_path, caplog):
    trainer = trainer_of(planted, tmp_path, eval_strategy="no")
    trainer.add_callback(RoutingCallback(trainer))
    with caplog.at_level(logging.WARNING, "gma_hf"):
        trainer.train()
    assert [record.getMessage() for record in caplog.records] == [
        "RoutingCallback logs at evaluations, and `eval_strategy` is 'no'."
    ]
    trainer.evaluate(trainer.train_dataset)
    assert 2 < trainer.state.log_history[-1]["routing/layer_0/effective_components"] < 3.01


def test_collapse_is_warned_of(planted, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "gma_hf"):
        train(planted, tmp_path, collapse=0.9)
    assert caplog.records[0].getMessage() == "At step 1 a head of layer 0 uses 3.0 of 4 components."
    caplog.clear()
    with torch.no_grad():
        planted.model.layers[0].attention.mixture.prior_logits[1, 0] = 1e6  # one head, one component
    with caplog.at_level(logging.WARNING, "gma_hf"):
        train(planted, tmp_path)
    assert caplog.records[0].getMessage() == "At step 1 a head of layer 0 uses 1.0 of 4 components."


def test_a_wrong_share_is_refused():
    with pytest.raises(ValueError, match="`collapse` must be between 0 and 1, but it is 2"):
        RoutingCallback(None, collapse=2)
