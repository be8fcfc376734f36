"""Routing figures in the logs of a real training, and a warning when the components collapse."""

import logging

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from gma_hf.analysis import RoutingCallback


def train(model, folder, several=False, **options):
    rows = torch.randint(24, (8, 20), generator=torch.Generator().manual_seed(0)).tolist()
    data = datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    arguments = TrainingArguments(
        folder,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-5,
    )
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset={"one": data, "two": data} if several else data
    )
    trainer.add_callback(RoutingCallback(trainer, **options))
    trainer.train()
    return [log for log in trainer.state.log_history if "routing/layer_0/token_entropy" in log]


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
    assert 2 < logs[0]["routing/layer_0/effective_components"] < 3.01


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
