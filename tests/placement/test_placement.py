"""`device_map="auto"` with weights on the disk, and `torch_compile=True` in Trainer."""

import shutil

import pytest
import torch
from accelerate.utils import compute_module_sizes
from datasets import Dataset
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, Trainer, TrainingArguments

from gma_hf import GMAForCausalLM, GMAForMaskedLM


@pytest.mark.parametrize(
    ("name", "head", "auto"),
    [
        ("causal_hybrid_additions", GMAForCausalLM, AutoModelForCausalLM),
        ("bidirectional", GMAForMaskedLM, AutoModelForMaskedLM),
    ],
)
@torch.no_grad()
def test_weights_on_the_disk(make_config, make_model, random_rows, assert_close, tmp_path, name, head, auto):
    """Memory for half of the weights: the rest stays on the disk and is fetched layer by layer."""
    model, ids = make_model(head, make_config(name, max_position_embeddings=32)), torch.stack(random_rows([21, 21]))
    model.save_pretrained(tmp_path / "model")
    sizes = compute_module_sizes(model)
    # Accelerate keeps room for the largest layer, to fetch it into
    memory = sizes[""] // 2 + sizes["model.layers.0"]
    placed = auto.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path / "offload"
    )
    assert set(placed.hf_device_map.values()) == {"cpu", "disk"}
    assert next(placed.model.layers[-1].parameters()).is_meta
    assert_close(placed(ids).logits, model(ids).logits, 1e-6)
    if head is GMAForCausalLM:
        choices = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(placed.generate(ids, **choices), model.generate(ids, **choices))


# Of torch 2.13, by its own import of Inductor
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("head", "name"),
    [(GMAForCausalLM, "causal"), (GMAForCausalLM, "causal_additions"), (GMAForMaskedLM, "bidirectional")],
)
def test_torch_compile_in_trainer(make_config, make_model, random_rows, tmp_path, monkeypatch, head, name):
    """By Inductor, or without a C++ compiler by AOTAutograd alone; the losses of the same steps without."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # Trainer sets it, and leaves it so
    # A cache kept from before may hold a graph around operators of ours that have changed since
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    ids = torch.stack(random_rows([24] * 8)).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    losses, graphs = [], []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        arguments = TrainingArguments(
            output_dir=tmp_path,
            torch_compile=is_compiled,
            torch_compile_backend=("inductor" if shutil.which("g++") else "aot_eager") if is_compiled else None,
            per_device_train_batch_size=4,
            max_steps=2,
            logging_steps=1,
            learning_rate=1e-2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        model = make_model(head, make_config(name, num_hidden_layers=1))
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 0 < graphs[1]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
