"""Two real processes (gloo): Accelerate's launcher with activation checkpointing, and the tensor parallel plan."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import gma_hf


ROOT = Path(__file__).parents[2]
RECIPE = ("-m", "gma_hf.recipes.train_clm")
ACCELERATE = ROOT / "gma_hf" / "recipes" / "accelerate"
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "forget_gate": True, "read_exponent": "learned", "hidden_dropout_prob": 0.0}


def losses_of(folder):
    state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
    return [log["loss"] for log in state["log_history"] if "loss" in log]


def checkpoints_activations(folder):
    """By the arguments that Trainer itself has kept."""
    return torch.load(folder / "checkpoint-3" / "training_args.bin", weights_only=False).activation_checkpointing


@pytest.mark.slow
def test_accelerate_launch_with_activation_checkpointing(run_python, tmp_path):
    """The losses of one process without checkpointing and with the same examples per step."""
    common = ["--train_file", ROOT / "tests" / "data" / "shakespeare.txt", "--train_tokenizer", 257]
    common += ["--model_config", json.dumps(MODEL), "--use_cpu", True, "--block_size", 64, "--learning_rate", 1e-2]
    common += ["--report_to", "none", "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 3]
    common += ["--max_steps", 3]
    alone, together = tmp_path / "alone", tmp_path / "together"
    run_python(*RECIPE, *common, "--output_dir", alone, "--per_device_train_batch_size", 8)
    # `--cpu` instead of a config with a type would start one process, unless through mpirun
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ACCELERATE / "ddp.yaml"]
    launcher += ["--num_processes", 2, "--mixed_precision", "no", "--main_process_port", 0]
    batch = ["--per_device_train_batch_size", 4, "--activation_checkpointing", True]
    run_python(*launcher, *RECIPE, *common, "--output_dir", together, *batch)
    assert [checkpoints_activations(folder) for folder in (alone, together)] == [False, True]
    assert len(losses_of(alone)) == 3
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-4)
    # Both processes took part: each has a random state of its own in the checkpoint
    assert len(list((together / "checkpoint-3").glob("rng_state_*.pth"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "name"),
    [("CausalLM", "causal_hybrid_additions"), ("MaskedLM", "bidirectional_conv")],
)
def test_the_tensor_parallel_plan(make_config, make_model, assert_close, run_python, tmp_path, head, name):
    """A vocabulary of 61 and softmax layers too: the plan must not need sizes that two divides, nor GMA alone."""
    script = Path(__file__).parent / "tensor_parallel.py"
    spec = importlib.util.spec_from_file_location("tensor_parallel", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = make_model(getattr(gma_hf, f"GMAFor{head}"), make_config(name))
    model.save_pretrained(tmp_path)
    run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, script, tmp_path, head)
    logits, tokens = module.outputs(model)
    together = torch.load(tmp_path / "outputs.pt")
    assert_close(together["logits"], logits, 1e-5)
    assert torch.equal(together["tokens"], tokens)
