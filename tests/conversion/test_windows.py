"""Windows of texts that a source cannot read whole: what is cut, and which window stands for which token."""

import pytest
import torch

from gma_hf.conversion.windows import windows_of


CLS, SEP = 1, 2


def text(length):
    """Token ids that tell their place, between [CLS] and [SEP]."""
    return [CLS, *range(10, 10 + length), SEP]


def batch(*rows, padding="right"):
    longest = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(None, len(row)) if padding == "right" else slice(longest - len(row), None)
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_each_token_stands_in_a_window_with_its_context(padding, is_causal):
    ids, mask = batch(text(50), text(3), text(14), text(15), padding=padding)
    windows = windows_of(ids, mask, 16, 4, {CLS, SEP}, is_causal)
    cut = windows.cut(ids)
    assert torch.equal(windows.join(cut)[mask == 1], ids[mask == 1])
    assert windows.rows.tolist() == [0] * 5 + [1, 2, 3, 3]
    lengths = windows.mask.sum(dim=1).tolist()
    assert lengths == [16] * 5 + [5, 16, 16, 16]
    for window, length in zip(cut, lengths):
        assert window[0] == CLS and window[length - 1] == SEP
    assert cut[4, 14] == 59  # the last ends where the text does
    # Of the windows of 14 tokens that begin at 0, 10, 20, ..., the second stands for token 12 if it is read from both
    # sides: it is as far from its border then, and the first, with more before it, from left to right
    row, place = 0, int((ids[0] == 10 + 12).nonzero())
    assert int(windows.places[row, place]) // 16 == (0 if is_causal else 1)


def test_texts_without_special_tokens_are_cut_as_they_are():
    ids = torch.arange(10, 60)[None]
    windows = windows_of(ids, torch.ones_like(ids), 20, 5, {CLS, SEP}, True)
    assert windows.cut(ids)[:, 0].tolist() == [10, 25, 40]
    assert torch.equal(windows.join(windows.cut(ids)), ids)


def test_means_are_those_of_the_windows_of_a_row():
    ids, mask = batch(text(50), text(3))
    windows = windows_of(ids, mask, 16, 4, {CLS, SEP}, False)
    x = torch.arange(len(windows.rows)).float()[:, None].repeat(1, 2)
    assert torch.equal(windows.mean(x), torch.tensor([[2.0, 2.0], [5.0, 5.0]]))
