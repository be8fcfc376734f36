"""
Sequence parallelism: the processes of a `torch.distributed` group read one sequence together, a part each.

    part = shard_batch(model, batch, group)  # this rank's part of a batch that all ranks have
    loss = model(**part).loss  # the mean over the ranks is the loss of the batch; the same is true of the gradients

Each rank's layers mix the tokens of its own part. From the other ranks they only need states, whose size does not
depend on the length of the parts.
"""

from .batch import shard_batch
from .cache import whole_cache
from .part import SequencePart


__all__ = ["SequencePart", "shard_batch", "whole_cache"]
