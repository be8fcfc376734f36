"""
Run by test_many_processes in each of two processes: three steps of a GMA model in shards (FSDP2), its losses, and a
sharded checkpoint; then the same steps and a checkpoint of the first process alone. Trainer cannot do this on CPUs:
Accelerate turns to FSDP on accelerators alone.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import fully_shard

from gma_hf import GMAConfig, GMAForCausalLM


FIELDS = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
FIELDS |= {
    "conv_kernel_size": 3,
    "forget_gate": True,
    "read_exponent": "learned",
    "hidden_dropout_prob": 0.0,
    "use_cache": False,
}


def make_model() -> GMAForCausalLM:
    torch.manual_seed(0)
    return GMAForCausalLM(GMAConfig(**FIELDS))


def train(model: GMAForCausalLM, rank: int, count: int) -> list[float]:
    """Return the losses of the whole batch, of which a process sees its share."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(3):
        batch = torch.randint(50, (4, 40), generator=generator).chunk(count)[rank]
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.detach()
        if count > 1:
            dist.all_reduce(loss)
        losses.append(loss.item() / count)
    return losses


def sharded(model: GMAForCausalLM) -> GMAForCausalLM:
    """Shard a model by blocks; mixtures are units of their own, since they stay float32 where the rest is not."""
    for block in model.model.layers:
        fully_shard(block.attention.mixture)
        fully_shard(block)
    return fully_shard(model)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    model = sharded(make_model())
    shard = model.model.layers[0].attention.qkv_proj.weight.to_local()
    assert shard.numel() < model.model.layers[0].attention.qkv_proj.weight.numel()
    losses = train(model, dist.get_rank(), dist.get_world_size())
    losses_half = train(sharded(make_model().bfloat16()), dist.get_rank(), dist.get_world_size())
    dcp.save(get_model_state_dict(model), checkpoint_id=folder / "sharded")
    is_first = dist.get_rank() == 0
    dist.destroy_process_group()
    if is_first:
        alone = make_model()
        losses_alone = train(alone, 0, 1)
        alone.save_pretrained(folder / "alone")
        (folder / "losses.json").write_text(
            json.dumps({"sharded": losses, "half": losses_half, "alone": losses_alone})
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # torch 2.13 aborts now and then while the interpreter ends, after all is done
