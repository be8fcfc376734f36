"""
Run by test_steps in each of four processes, two documents at a time, each read by two processes: three steps of a
model in copies (DDP), and in shards over the processes of a document, copied over the documents (FSDP2); then the same
steps of the first process alone.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.parallel import shard_batch


FIELDS = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_components": 8}
FIELDS |= {"conv_kernel_size": 3, "forget_gate": True, "read_exponent": "learned", "hidden_dropout_prob": 0.0}


def make_model() -> GMAForCausalLM:
    torch.manual_seed(0)
    return GMAForCausalLM(GMAConfig(**FIELDS, use_cache=False))


def sharded(model: GMAForCausalLM, mesh: DeviceMesh) -> GMAForCausalLM:
    for block in model.model.layers:
        fully_shard(block.attention.mixture, mesh=mesh)
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: torch.nn.Module, mesh: DeviceMesh | None) -> list[float]:
    """Return the losses of both documents, of which a process sees its part of one."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(3):
        rows = torch.randint(50, (2, 41), generator=generator)
        batch = {"input_ids": rows, "labels": rows}
        if mesh is not None:
            row = rows[mesh.get_local_rank("dp")][None]
            batch = shard_batch(model, {"input_ids": row, "labels": row}, mesh["sp"])
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.detach()
        if mesh is not None:
            dist.all_reduce(loss)
            loss /= mesh.size()
        losses.append(loss.item())
    return losses


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "sp"))
    losses = {"copies": train(DistributedDataParallel(make_model()), mesh)}
    losses["shards"] = train(sharded(make_model(), mesh), mesh)
    losses["alone"] = train(make_model(), None)
    if dist.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # torch 2.13 aborts now and then while the interpreter ends, after all is done
