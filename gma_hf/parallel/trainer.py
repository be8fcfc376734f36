"""Sequence parallelism with Transformers' `Trainer`: several processes read one sequence together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader
from transformers import Trainer

from .batch import shard_batch


class SequenceParallelTrainer(Trainer):
    """
    Train with `Trainer`, where each group of `sequence_parallel_size` processes reads the same batch, a part each.

    The weights are copied (DDP) or sharded (FSDP2) over all processes, as in `Trainer`.
    `per_device_train_batch_size` counts the rows of a group. The collator must give all processes of a group the same
    batch, so a collator that draws random numbers must draw the same numbers in each of them.

    Args:
        sequence_parallel_size: processes per group, 2 or more; it must divide the number of processes.
        Others: the arguments of `Trainer`. `compute_metrics`, label smoothing and `compute_loss_func` are refused,
            because they would need all tokens.

    Raises:
        ValueError: for a size below 2 or one that does not divide the number of processes, and for the arguments that
            are refused.
    """

    def __init__(self, *args: Any, sequence_parallel_size: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        count, size = self.args.world_size, sequence_parallel_size
        if size < 2 or count % size:
            raise ValueError(
                f"`sequence_parallel_size` must be 2 or more and divide the number of processes, {count}, but it is "
                f"{size}."
            )
        refused = {
            "label_smoothing_factor": self.args.label_smoothing_factor,
            "compute_metrics": self.compute_metrics,
            "compute_loss_func": self.compute_loss_func,
        }
        for name, value in refused.items():
            if value:
                raise ValueError(f"`{name}` must be off where several processes read one sequence, but it is {value}.")
        self.args.prediction_loss_only = True
        # Accelerate's data loader gives the same batches to all processes along a dimension called cp
        names = ("dp_replicate", "cp")
        self.mesh = init_device_mesh(self.args.device.type, (count // size, size), mesh_dim_names=names)
        self.group = self.mesh["cp"].get_group()

    @contextmanager
    def _one_batch_per_group(self) -> Iterator[None]:
        state = self.accelerator.state
        before, state.device_mesh = state.device_mesh, self.mesh
        try:
            yield
        finally:
            state.device_mesh = before

    def get_train_dataloader(self) -> DataLoader:
        with self._one_batch_per_group():
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self._one_batch_per_group():
            return super().get_eval_dataloader(eval_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of this process's part; the mean over the processes is the loss of the batch."""
        part = shard_batch(self.model, inputs, self.group)
        if num_items_in_batch is not None:  # it counts the same batch once for each process of a group
            num_items_in_batch = num_items_in_batch / dist.get_world_size(self.group)
        return super().compute_loss(model, part, return_outputs, num_items_in_batch)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None, None]:
        """Return the loss of the batch, averaged over the parts that the processes of a group compute."""
        loss, _, _ = super().prediction_step(*args, **kwargs)
        loss = loss.clone()
        dist.all_reduce(loss, group=self.group)
        return loss / dist.get_world_size(self.group), None, None

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return the number of rows of a step; the rows of a group count once."""
        return super().get_total_train_batch_size(args) // dist.get_world_size(self.group)
