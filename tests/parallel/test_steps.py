"""Trainings in which two processes read each document: DDP and FSDP2 on the other dimension, and the recipe."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gma_hf.recipes import train_clm


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 4]
TEXT = Path(__file__).parents[1] / "data" / "shakespeare.txt"
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "forget_gate": True, "read_exponent": "learned", "hidden_dropout_prob": 0.0}


@pytest.mark.slow
def test_copies_and_shards(run_python, tmp_path):
    run_python(*LAUNCH, Path(__file__).parent / "steps.py", tmp_path)
    losses = json.loads((tmp_path / "losses.json").read_text())
    alone = losses.pop("alone")
    assert len(losses) == 5
    for name, found in losses.items():
        assert found == pytest.approx(alone, rel=1e-4), name


@pytest.mark.slow
def test_the_recipe(run_python, tmp_path):
    """`train_clm` in four processes, two of which read each block, beside one; steps of two batches each."""
    common = ["--train_file", TEXT, "--train_tokenizer", 257, "--model_config", json.dumps(MODEL), "--use_cpu", True]
    common += ["--block_size", 63, "--learning_rate", 0.1, "--report_to", "none", "--seed", 0, "--logging_steps", 1]
    common += ["--optim", "sgd", "--max_grad_norm", 0]  # Adam would move a weight by lr for rounding errors alone
    common += ["--save_strategy", "steps", "--save_steps", 3, "--max_steps", 3, "--gradient_accumulation_steps", 2]
    one = [*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4]
    alone = train_clm.main([str(argument) for argument in one])
    four = [*common, "--output_dir", tmp_path / "four", "--per_device_train_batch_size", 2]
    run_python(*LAUNCH, "-m", "gma_hf.recipes.train_clm", *four, "--sequence_parallel_size", 2)

    def losses(name):
        state = json.loads((tmp_path / name / "checkpoint-3" / "trainer_state.json").read_text())
        return [log["loss"] for log in state["log_history"] if "loss" in log]

    assert losses("four") == pytest.approx(losses("one"), rel=1e-4)
    together = json.loads((tmp_path / "four" / "eval_results.json").read_text())
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-3)
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "four")]
    for name, weight in weights[0].items():
        assert weight.allclose(weights[1][name], atol=1e-4), name
