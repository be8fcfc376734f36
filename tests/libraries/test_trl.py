"""TRL's SFTTrainer with several documents packed into a row."""

import pytest
import torch
from transformers import AutoTokenizer

from gma_hf import GMAForCausalLM


pytest.importorskip("trl")

# PEFT 0.21.2 and TRL 1.16.0 use names that Transformers 5.23 has changed
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

PACKED = {"packing": True, "max_length": 64, "per_device_train_batch_size": 2, "dataset_num_proc": None}


@pytest.fixture
def make_trainer(make_config, make_model, shakespeare, text, tmp_path):
    """`make_trainer(name, **arguments)`: SFTTrainer on short documents of the text sample."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def make(name, **arguments):
        tokenizer = AutoTokenizer.from_pretrained(shakespeare)
        model = make_model(GMAForCausalLM, make_config(name, vocab_size=len(tokenizer)))
        documents = [line for line in text.splitlines() if 10 < len(line) < 30][:200]
        choices = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "save_strategy": "no"}
        choices |= {"logging_steps": 1, "learning_rate": 1e-2, "bf16": False, "seed": 0, "disable_tqdm": True}
        return SFTTrainer(
            model=model,
            args=SFTConfig(**{**choices, **PACKED, **arguments}),
            train_dataset=Dataset.from_dict({"text": documents}),
            processing_class=tokenizer,
        )

    return make


@pytest.mark.parametrize("name", ["causal_additions", "causal_hybrid"])
def test_a_few_steps_on_packed_documents(make_trainer, name):
    trainer = make_trainer(name, max_steps=8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.5


@pytest.mark.parametrize("name", ["causal_additions", "causal_hybrid"])
def test_packed_documents_do_not_see_each_other(make_trainer, assert_close, name):
    """The loss of a batch of the trainer is that of its documents, each read alone."""
    trainer = make_trainer(name)
    model = trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    rows, positions = batch["input_ids"], batch["position_ids"]
    starts = (positions.flatten() == 0).nonzero().flatten().tolist()
    documents = [
        rows.flatten()[start:end] for start, end in zip(starts, [*starts[1:], rows.numel()]) if end - start > 1
    ]
    assert len(documents) > 4 and len(starts) > rows.shape[0]
    with torch.no_grad():
        actual = trainer.compute_loss(model, dict(batch))
        losses = [model(row[None], labels=row[None]).loss * (len(row) - 1) for row in documents]
    assert_close(actual, sum(losses) / sum(len(row) - 1 for row in documents), 1e-4)


def test_with_an_adapter(make_trainer):
    """SFTTrainer on what PEFT made, the mixture trained too."""
    peft = pytest.importorskip("peft")
    trainer = make_trainer("causal", max_steps=40)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["qkv_proj", "o_proj"], modules_to_save=["mixture"]
    )
    trainer = type(trainer)(
        model=trainer.model,
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
        peft_config=config,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
