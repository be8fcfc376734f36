"""What a sequence leaves behind that several processes have read."""

import torch.distributed as dist
from transformers.cache_utils import Cache

from .part import SequencePart


def whole_cache(cache: Cache, part: SequencePart) -> Cache:
    """
    Turn the cache of a part into that of the whole rows, from which each rank can generate. Every rank has to call it.

    Args:
        cache: as the forward of a part has returned it; it is changed.
        part: the part.
    """
    last = len(part.lengths) - 1
    source = dist.get_global_rank(part.group, last)
    for layer in cache.layers:
        tensors = {name: x.detach().clone() for name, x in layer.tensors.items()}
        for _, tensor in sorted(tensors.items()):
            dist.broadcast(tensor, source, group=part.group)
        layer.update(tensors, part.num_tokens - part.lengths[part.rank])
    return cache
