"""Overlapping windows, in which a model reads texts that are longer than it can read whole."""

from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """Windows of the rows of a batch `[B, N]`, S in all, each of at most W tokens."""

    rows: Tensor  # [S], the row that each window is cut from
    tokens: Tensor  # [S, W], the places in that row of its tokens, 0 at padding
    mask: Tensor  # [S, W], False at padding
    places: Tensor  # [B, N], which of the S * W tokens stands for each token of the batch, 0 at padding

    def cut(self, x: Tensor) -> Tensor:
        """Return what the windows hold of `[B, N, ...]`, as `[S, W, ...]`."""
        return x[self.rows[:, None], self.tokens]

    def join(self, x: Tensor) -> Tensor:
        """Return, of `[S, W, ...]`, what belongs to each token of the batch, as `[B, N, ...]`."""
        return x.flatten(0, 1)[self.places]

    def mean(self, x: Tensor) -> Tensor:
        """Return the means over the windows of each row, of `[S, d]`, as `[B, d]`."""
        sums = x.new_zeros(len(self.places), x.shape[-1]).index_add(0, self.rows, x)
        return sums / self.rows.bincount(minlength=len(sums))[:, None]


def windows_of(
    input_ids: Tensor, mask: Tensor, size: int, overlap: int, special_ids: set[int], is_causal: bool
) -> Windows:
    """
    Return the windows of a batch.

    All windows of a row but an only one are of the full size, the last one ends where the row ends, and each begins
    and ends with the special token that the row begins and ends with, if it does. Of the windows that hold a token,
    the one that stands for it is the one with most context for it: on both sides, or before it (causal).

    Args:
        input_ids: `[B, N]`.
        mask: `[B, N]`, true at real tokens; padding may be anywhere.
        size: tokens of a window, with the special ones.
        overlap: tokens that a window shares with the next, at least; less than half the size.
        special_ids: of the tokens that are put around texts, such as [CLS] and [SEP].
        is_causal: whether tokens are read from left to right.
    """
    rows, pieces, places = [], [], torch.zeros_like(input_ids)
    for row, real in enumerate(mask.bool()):
        real = real.nonzero()[:, 0]
        first, last = (int(input_ids[row, real[i]]) in special_ids if len(real) > 2 else False for i in (0, -1))
        body = real[int(first) : len(real) - int(last)]
        room = size - int(first) - int(last)
        starts = [*range(0, max(len(body) - room, 0), room - overlap), max(len(body) - room, 0)]
        for start in starts:
            parts = (real[: int(first)], body[start : start + room], real[len(real) - int(last) :])
            pieces.append(torch.cat(parts))
        rows += [row] * len(starts)

        ends = torch.tensor([start + room for start in starts[:-1]], device=real.device)
        starts = torch.tensor(starts, device=real.device)
        borders = ends if is_causal else (ends + starts[1:]) // 2
        token = torch.arange(len(body), device=real.device)
        window = torch.bucketize(token, borders, right=True)
        before = len(pieces) - len(starts)  # windows of other rows
        places[row, body] = (before + window) * size + int(first) + token - starts[window]
        if first:
            places[row, real[0]] = before * size
        if last:
            places[row, real[-1]] = (len(pieces) - 1) * size + len(pieces[-1]) - 1
    longest = max(map(len, pieces))
    places = places // size * longest + places % size
    tokens = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    lengths = torch.tensor([len(piece) for piece in pieces], device=tokens.device)
    is_real = torch.arange(longest, device=tokens.device) < lengths[:, None]
    return Windows(torch.tensor(rows, device=tokens.device), tokens, is_real, places)
