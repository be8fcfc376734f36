"""Two real processes (gloo) do what one does with the same examples per step; and the configs of Accelerate."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM

from gma_hf import GMAForCausalLM, recipes
from gma_hf.recipes import train_clm


TEXT = Path(__file__).parents[1] / "data" / "shakespeare.txt"
CONFIGS = Path(recipes.__path__[0]) / "accelerate"
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
MODEL |= {"conv_kernel_size": 3, "forget_gate": True, "read_exponent": "learned", "hidden_dropout_prob": 0.0}
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]


def losses_of(folder):
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [log["loss"] for log in state["log_history"] if "loss" in log]


@pytest.mark.slow
def test_copies_in_two_processes(run_python, tmp_path):
    """DDP, by `train_clm` as its user launches it."""
    common = ["--train_file", TEXT, "--train_tokenizer", 257, "--model_config", json.dumps(MODEL), "--use_cpu", True]
    common += ["--block_size", 64, "--learning_rate", 0.1, "--report_to", "none", "--seed", 0, "--logging_steps", 1]
    common += ["--optim", "sgd", "--max_grad_norm", 0]  # Adam would move a weight by lr for rounding errors alone
    common += ["--save_strategy", "steps", "--save_steps", 4, "--max_steps", 4]
    one = [*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 8]
    alone = train_clm.main([str(argument) for argument in one])
    run_python(
        *LAUNCH,
        "-m",
        "gma_hf.recipes.train_clm",
        *common,
        "--output_dir",
        tmp_path / "two",
        "--per_device_train_batch_size",
        4,
    )
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    together = json.loads((tmp_path / "two" / "eval_results.json").read_text())
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-3)
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-4), name


@pytest.mark.slow
def test_shards_in_two_processes(run_python, tmp_path):
    """FSDP2 by torch: the same losses, and a sharded checkpoint that one process loads."""
    run_python(*LAUNCH, Path(__file__).parent / "sharded_steps.py", tmp_path)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses["half"] == pytest.approx(losses["alone"], rel=0.02)
    assert losses["sharded"] == pytest.approx(losses["alone"], rel=1e-4)

    model = GMAForCausalLM.from_pretrained(tmp_path / "alone")
    loaded = GMAForCausalLM(model.config).eval()
    state = loaded.state_dict()
    with pytest.warns(UserWarning, match="load in a single process"):
        dcp.load(state, checkpoint_id=tmp_path / "sharded")
    loaded.load_state_dict(state)
    tokens = torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-3)
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2


@pytest.mark.parametrize("name", ["one_gpu", "ddp", "fsdp2", "zero3"])
def test_accelerate_reads_its_configs(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    sharded = name in ("fsdp2", "zero3")  # whose mixed precision is in the weights, not in autocast
    assert config.mixed_precision == ("no" if sharded else "bf16") and config.num_processes in (1, 8)
    if name == "fsdp2":
        wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert set(wrapped) == {"GMABlock", "GaussianMixture"} <= set(GMAForCausalLM._no_split_modules)
        # In shards, Trainer would save no model at the end
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
