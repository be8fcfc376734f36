"""
Run by test_steps in each of four processes, two documents at a time, each read by two processes: three steps of a
model in copies (DDP), and in shards (FSDP2) over the processes of a document, over all, and over the documents alone;
then the same steps of the first process alone.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
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


def average(model: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """Give the processes of a document the mean of their gradients, where nothing else does."""
    for parameter in model.parameters():
        grad = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        dist.all_reduce(grad, group=group)
        grad /= dist.get_world_size(group)


def train(model: torch.nn.Module, mesh: DeviceMesh | None, is_averaged: bool = True) -> list[float]:
    """
    Return the losses of both documents, of which a process sees its part of one.

    Args:
        model: with its copies or shards.
        mesh: documents by parts of one; None for one process that sees everything.
        is_averaged: whether the model's copies or shards take the mean over the parts of a document.
    """
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
        if not is_averaged:
            average(model, mesh.get_group("sp"))
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
    documents = {"process_group": mesh.get_group("dp")}
    losses = {
        "copies": train(DistributedDataParallel(make_model()), mesh),
        "copies over the documents": train(DistributedDataParallel(make_model(), **documents), mesh, False),
        "shards over a document": train(sharded(make_model(), mesh), mesh),
        "shards over all": train(sharded(make_model(), init_device_mesh("cpu", (4,))), mesh),
        "shards over the documents": train(sharded(make_model(), mesh["dp"]), mesh, False),
    }
    losses["alone"] = train(make_model(), None)
    if dist.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # torch 2.13 aborts now and then while the interpreter ends, after all is done
