"""Every head under Trainer: batches that are accumulated give the step of one batch of the same size."""

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import gma_hf


HEADS = {
    "SequenceClassification": {"labels": [0, 1] * 4},
    "TokenClassification": {"labels": [[0, 1, 0, 1, 1, 0]] * 8},
    "QuestionAnswering": {"start_positions": [0, 1] * 4, "end_positions": [2, 3] * 4},
    "MultipleChoice": {"labels": [0, 1] * 4},
    "CausalLM": {"labels": [[1, 2, 3, 4, 5, 6]] * 8},
    "MaskedLM": {"labels": [[1, 2, -100, 4, 5, -100]] * 8},
}


@pytest.mark.parametrize("head", HEADS)
def test_accumulated_batches_equal_one_batch(make_config, make_model, tmp_path, head):
    torch.manual_seed(0)
    shape = (8, 2, 6) if head == "MultipleChoice" else (8, 6)
    ids = torch.randint(1, 61, shape)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), **HEADS[head]})
    name = "bidirectional" if head == "MaskedLM" else "causal"
    steps = []
    for batch, accumulated in ((8, 1), (2, 4)):
        model = make_model(getattr(gma_hf, f"GMAFor{head}"), make_config(name))
        arguments = TrainingArguments(
            output_dir=tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            logging_steps=1,
            max_grad_norm=1e9,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        steps.append(next(entry for entry in trainer.state.log_history if "grad_norm" in entry))
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], rel=1e-3)
    assert steps[0]["grad_norm"] == pytest.approx(steps[1]["grad_norm"], rel=1e-3)
