"""Sequence parallelism leaves a cache from which each process can generate."""

import torch.distributed as dist
from transformers.cache_utils import Cache

from .part import SequencePart


def whole_cache(cache: Cache, part: SequencePart) -> Cache:
    """
    Return the cache of the whole rows, from which each rank can generate. Every rank must call this function.

    Args:
        cache: the cache that the forward of a part has returned; it is changed in place.
        part: the part that this rank has read.
    """
    last = len(part.lengths) - 1
    source = dist.get_global_rank(part.group, last)
    for layer in cache.layers:
        tensors = {name: x.detach().clone() for name, x in layer.tensors.items()}
        for _, tensor in sorted(tensors.items()):
            dist.broadcast(tensor, source, group=part.group)
        layer.update(tensors, part.num_tokens - part.lengths[part.rank])
    return cache
