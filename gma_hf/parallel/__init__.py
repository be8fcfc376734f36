"""
Sequence parallelism: the processes of a `torch.distributed` group read one sequence together, a part each.

    part = shard_batch(model, batch, group)  # this rank's part of a batch that all ranks have
    loss = model(**part).loss  # its mean over the ranks is the loss of the batch; so it is with the gradients

A layer mixes its own part. What it asks the other ranks for is a state, whose size does not depend on the length of
their parts.
"""

from .batch import shard_batch
from .cache import whole_cache
from .part import SequencePart


__all__ = ["SequencePart", "shard_batch", "whole_cache"]
