"""Two real processes (gloo): Accelerate's launcher with gradient checkpointing, and the tensor parallel plan."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gma_hf import GMAForCausalLM


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "train_clm.py"
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "forget_gate": True, "hidden_dropout_prob": 0.0}


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses_of(folder):
    state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
    return [log["loss"] for log in state["log_history"] if "loss" in log]


def test_accelerate_launch_with_gradient_checkpointing(tmp_path):
    """The losses of one process without checkpointing and with the same examples per step."""
    common = ["--train_file", ROOT / "tests" / "data" / "shakespeare.txt", "--train_tokenizer", 257]
    common += ["--model_config", json.dumps(MODEL), "--use_cpu", True, "--block_size", 64, "--learning_rate", 1e-2]
    common += ["--report_to", "none", "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 3]
    common += ["--max_steps", 3]
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(RECIPE, *common, "--output_dir", alone, "--per_device_train_batch_size", 8)
    # `--cpu` instead of a config with a type would start one process, unless through mpirun
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "recipes" / "accelerate" / "ddp.yaml"]
    launcher += ["--num_processes", 2, "--mixed_precision", "no", "--main_process_port", 0]
    batch = ["--per_device_train_batch_size", 4, "--gradient_checkpointing", True]
    run(*launcher, RECIPE, *common, "--output_dir", together, *batch)
    assert len(losses_of(alone)) == 3
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-4)
    # Both processes took part: each has a random state of its own in the checkpoint
    assert len(list((together / "checkpoint-3").glob("rng_state_*.pth"))) == 2


@pytest.mark.parametrize("name", ["causal_hybrid_additions"])
def test_the_tensor_parallel_plan(make_config, make_model, assert_close, tmp_path, name):
    """A vocabulary of 61 and softmax layers too: the plan must not need sizes that two divides, nor GMA alone."""
    script = Path(__file__).parent / "tensor_parallel.py"
    spec = importlib.util.spec_from_file_location("tensor_parallel", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = make_model(GMAForCausalLM, make_config(name))
    model.save_pretrained(tmp_path)
    run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, script, tmp_path)
    together = torch.load(tmp_path / "outputs.pt")
    logits, tokens = module.outputs(model)
    assert_close(together["logits"], logits, 1e-5)
    assert torch.equal(together["tokens"], tokens)
