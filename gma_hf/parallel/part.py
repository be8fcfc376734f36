"""
One rank of a group reads one part of a sequence, and its layers get from the other ranks what they need of the rest.

A causal layer needs the state after the tokens before its part. A bidirectional layer needs the states of all other
parts. A convolution needs the few tokens that it sees beyond the ends of its part.

The ranks must call the same collectives in the same order, in the forward and in the backward. So a rank that does
not need a result takes part all the same, and multiplies the result by zero.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..model.documents_gma import ONE_EACH, Documents
from ..model.equations_gma import ScoreWeights, append_ones
from ..model.mixing_gma import mix_bidirectional
from .collectives import add_up, gather


class SequencePart:
    """
    Describe which part of the rows of a batch this rank holds. `shard_batch` makes it, and the model's forward takes
    it.

    Args:
        group: the ranks that hold one part each, in the order of the parts.
        lengths: the number of tokens of each part.
        documents: padding and packing of the whole rows.
        tokens: the tokens of the whole rows, `[B, N, ...]`.
    """

    def __init__(self, group: dist.ProcessGroup, lengths: list[int], documents: Documents, tokens: Tensor):
        self.group, self.lengths, self.rank = group, lengths, dist.get_rank(group)
        self.start = sum(lengths[: self.rank])
        self.stop = self.start + lengths[self.rank]
        shape, device = tokens.shape[:2], tokens.device
        mask, ids = documents.mask, documents.ids
        self.masks = (torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask).split(lengths, 1)
        self.ids = (torch.zeros(shape, dtype=torch.long, device=device) if ids is None else ids).split(lengths, 1)
        # For each rank and row, [ranks, B]: whether the first document of this part is the last one of that earlier
        # part, and whether the last document of this part is the first one of that later part
        mine, places = self.ids[self.rank], torch.arange(len(lengths), device=device)[:, None]
        last, first = (torch.stack([ids[:, end] for ids in self.ids]) for end in (-1, 0))
        self.is_before = (places < self.rank) & (last == mine[:, 0])
        self.is_after = (places > self.rank) & (first == mine[:, -1])
        self.ends: dict[tuple[int, bool], list[Tensor]] = {}  # see `_ends`

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of a whole row."""
        return sum(self.lengths)

    def gather_tokens(self, x: Tensor) -> Tensor:
        """
        Return a tensor of the whole rows, joined from the tensors of all ranks; gradients flow back.

        Args:
            x: a tensor with an entry for each of this rank's tokens, such as logits, `[B, tokens of this rank, ...]`.

        Returns:
            The joined tensor, `[B, N, ...]`, on every rank.
        """
        longest = max(self.lengths)
        padded = F.pad(x.movedim(1, -1), (0, longest - x.shape[1]))
        parts = gather(padded, self.group)
        return torch.cat([part[..., :length] for part, length in zip(parts, self.lengths)], dim=-1).movedim(-1, 1)

    def check(self, cache_layer: Any, output_attentions: bool) -> None:
        """
        Refuse what a layer cannot do for a part of a sequence.

        Raises:
            ValueError: if the cache holds tokens or records its past, or if affinities are requested.
        """
        if cache_layer is not None and (cache_layer.tensors or cache_layer.record_past):
            raise ValueError(
                "`cache` must be empty and must not record its past where several processes read one sequence, but "
                f"it has read {int(cache_layer.get_seq_length())} tokens."
            )
        if output_attentions:
            raise ValueError(
                "`output_attentions` must be False where several processes read one sequence, since no process has "
                "the affinity of all tokens, but it is True."
            )

    def project(
        self, addition: Any, module: nn.Module, projected: Tensor, documents: Documents, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the result of `Addition.project` on the whole rows, for the tokens of this part."""
        before, after = addition.reach()
        if before == after == 0:
            return addition.project(module, projected, documents, kept)
        left = self.neighbours(projected, before, later=False)
        if after == 0:
            return addition.project(module, projected, documents, left)
        right = self.neighbours(projected, after, later=True)
        # Where a part has no neighbour, zeros stand in its place, which change nothing
        mask, ids = documents.mask, documents.ids
        if mask is not None:
            mask = F.pad(mask, (before, after), value=True)
        if ids is not None:
            ids = torch.cat([ids[:, :1].expand(-1, before), ids, ids[:, -1:].expand(-1, after)], dim=1)
        mixed, kept = addition.project(module, torch.cat([left, projected, right], dim=1), Documents(mask, ids), None)
        return mixed[:, before : before + projected.shape[1]], kept

    def neighbours(self, x: Tensor, count: int, later: bool) -> Tensor:
        """
        Return the real tokens of other parts that stand next to this part and belong to the same document.

        Args:
            x: channels of this part's tokens, `[B, tokens of this rank, C]`.
            count: the number of tokens to return.
            later: True for the tokens after this part, False for those before it.

        Returns:
            The tokens in their order, `[B, count, C]`, with zeros where there are none.
        """
        ends = self._ends(count, later)
        found = gather(_take(x, ends[self.rank]), self.group).transpose(0, 1).flatten(1, 2)
        is_near = torch.stack(ends) >= 0
        is_near = is_near & (self.is_after if later else self.is_before)[..., None]
        return _take(found, _nearest(is_near.transpose(0, 1).flatten(1), count, later))

    def _ends(self, count: int, later: bool) -> list[Tensor]:
        """Return the indices of the tokens of each part that an earlier (or later) part may need, `[B, count]`."""
        if (count, later) not in self.ends:
            self.ends[count, later] = [
                _nearest(mask & (ids == (ids[:, :1] if later else ids[:, -1:])), count, later)
                for mask, ids in zip(self.masks, self.ids)
            ]
        return self.ends[count, later]

    def mix(
        self, layer: Any, heads: Any, scores: ScoreWeights, documents: Documents, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the result of `GaussianMixtureAttention.mix` on the whole rows, for the tokens of this part."""
        if layer.is_causal:
            return layer.mix(heads, scores, documents, self.state_before(heads, scores, documents))
        if documents.ids is not None:
            return layer.mix(heads, scores, documents, self.states_elsewhere(heads, scores, documents))
        own = state_of(heads, scores, documents.mask)
        reading = heads._replace(keys=heads.keys[:, :, :0], values=heads.values[:, :, :0])
        return layer.mix(reading, scores, ONE_EACH, add_up(own, self.group))

    def state_before(self, heads: Any, scores: ScoreWeights, documents: Documents) -> Tensor:
        """Return the state that earlier parts wrote, decayed to the start of this part, `[B, H, K, d_v + 1]`."""
        mask = _within(documents, -1)
        if heads.log_decay is None:
            states = gather(state_of(heads, scores, mask), self.group)
            return (self.is_before[..., None, None, None] * states).sum(0)
        # The intermediate results are as large as the values, and cheap to compute again
        own = checkpoint(state_of, heads, scores, mask, use_reentrant=False, preserve_rng_state=False)
        total = heads.log_decay.sum(-1, keepdim=True)
        found = gather(torch.cat([own.flatten(2), total], dim=-1), self.group)
        states, totals = found[..., :-1].unflatten(-1, own.shape[2:]), found[..., -1]
        totals = torch.cat([totals[: self.rank], torch.zeros_like(totals[self.rank :])])
        weights = self.is_before[..., None] * _sum_after(totals.movedim(0, -1)).movedim(-1, 0).exp()
        return (weights[..., None, None] * states).sum(0)

    def states_elsewhere(self, heads: Any, scores: ScoreWeights, documents: Documents) -> Tensor:
        """
        Return the state that other parts wrote for each of the S documents of this part, `[S, H, K, d_v + 1]`.

        It serves bidirectional models with packed documents.
        """
        own = torch.stack([state_of(heads, scores, _within(documents, end)) for end in (0, -1)])
        first, last = gather(own, self.group).unbind(1)
        before = (self.is_before[..., None, None, None] * last).sum(0)
        after = (self.is_after[..., None, None, None] * first).sum(0)
        ends = (documents.places() == 0).sum(1).cumsum(0)  # documents become rows, in their order
        begins = F.pad(ends[:-1], (1, 0))
        states = before.new_zeros(int(ends[-1]), *before.shape[1:])
        return states.index_add(0, begins, before).index_add(0, ends - 1, after)


def state_of(heads: Any, scores: ScoreWeights, mask: Tensor | None) -> Tensor:
    """
    Return the state that the tokens of one part write without those of other parts, `[B, H, K, d_v + 1]`.

    Args:
        heads: queries, keys and values of the heads, and their log decays if there are any.
        scores: weights of the scores.
        mask: `[B, N]`, False where a token does not write; None if all tokens write.
    """
    values, documents = heads.values, Documents(mask)
    queries = heads.queries[:, :, :0]
    if heads.log_decay is None:
        return mix_bidirectional(queries, heads.keys, values, scores, 0.0, documents)[1]
    # What a token writes decays up to the end of the part, so its values, and the one appended to them, are scaled
    values = append_ones(values) * _sum_after(heads.log_decay).exp()[..., None]
    return mix_bidirectional(queries, heads.keys, values, scores, 0.0, documents)[1][..., :-1]


def _within(documents: Documents, end: int) -> Tensor | None:
    """Return the mask of the real tokens of the first (`end` 0) or last (-1) document, `[B, N]`; None means all."""
    mask, ids = documents.mask, documents.ids
    if ids is None:
        return mask
    is_within = ids == ids[:, end, None]
    return is_within if mask is None else mask & is_within


def _sum_after(x: Tensor) -> Tensor:
    """Return, for each entry, the sum of the entries after it along the last dimension."""
    return F.pad(x[..., 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))


def _nearest(mask: Tensor, count: int, first: bool) -> Tensor:
    """Return the indices of the first or last `count` true entries of each row `[B, N]`; -1 stands for no entry."""
    length = mask.shape[1]
    index = torch.arange(length, device=mask.device)
    key = torch.where(mask, length - index if first else index + 1, 0)
    nearest = F.pad(key, (0, max(count - length, 0))).topk(count, dim=1).values
    return torch.where(nearest > 0, length - nearest, -1) if first else nearest.flip(1) - 1


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens of `x` `[B, N, C]` at `index` `[B, count]`, and zeros where the index is -1."""
    found = x.gather(1, index.clamp_min(0)[..., None].expand(-1, -1, x.shape[-1]))
    return found * (index >= 0)[..., None]
