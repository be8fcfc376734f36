"""
A short depthwise convolution of the tokens of a row, in the layout that a projection leaves: as one operator with a
backward by hand, on our kernels where they run, else in plain torch, a product of the whole sequence for each tap.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .compat_gma import is_exporting
from .documents_gma import ONE_EACH, Documents
from .equations_gma import routing_dtype
from .kernels_convolution_gma import convolution_problem, launch_convolution, launch_convolution_backward
from .operators_gma import ConvolutionGradients, ConvolutionInputs, ConvolutionResults, Form, Operator


def short_convolution(
    x: Tensor,
    weight: Tensor,
    causal: bool,
    documents: Documents = ONE_EACH,
    tail: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """
    Return a depthwise convolution with a residual path, `x + weight * x`, over the real tokens of each row. Masked
    ones are taken out before and put back after, as they were, so a row gives what it gives alone, wherever its
    padding is.

    Args:
        x: `[B, N, C]`.
        weight: `[C, W]`; the last tap is the current token (causal), or the middle one is (centred).
        causal: whether a token sees the W - 1 tokens before it, or (W - 1) / 2 on each side.
        documents: padding and packing; a token sees its own document only, and the tail is of document 0.
        tail: causal only: the last W - 1 inputs before this call, `[B, W - 1, C]`, or None for zeros.
        backend: `mixer_backend` of the config. The kernels are taken where they run, unless it is "torch"; where they
            do not run, the mixer refuses "triton".

    Returns:
        `[B, N, C]`, masked tokens as they were, and in the causal case the last W - 1 inputs including this call (else
        None), with zeros in the place of what is of another document than the last one.
    """
    batch, length, _ = x.shape
    mask, ids, before = documents.mask, documents.ids, 0
    ids = None if ids is None else ids.expand(batch, length)
    if tail is not None:  # of real tokens, and of document 0
        before = tail.shape[1]
        x = torch.cat([tail.to(x.dtype), x], dim=1)
        mask = None if mask is None else F.pad(mask, (before, 0), value=True)
        ids = None if ids is None else F.pad(ids, (before, 0))
    if (causal or not is_exporting()) and length == 1:
        inputs = ConvolutionInputs(x, weight, mask, None, ids)  # the token stands last, real or not
        output = _one_token(inputs, causal)
        return _leave_padding(output, x[:, before:], documents.mask), _tail(inputs) if causal else None
    order = None if mask is None else _real_tokens_first(mask)
    inputs = ConvolutionInputs(x, weight, mask, order, ids)
    if is_exporting():  # what is exported runs elsewhere, where nobody knows our operator
        output = _exported(inputs, causal)
    else:
        output = convolve(inputs, causal, backend != "torch" and convolution_problem(x) is None).output
    return _leave_padding(output[:, before:], x[:, before:], documents.mask), _tail(inputs) if causal else None


def _leave_padding(output: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the output `[B, N, C]`, and the input at masked tokens, which stood behind the end of their row."""
    return output if mask is None else torch.where(mask[..., None], output, x)


def _real_tokens_first(mask: Tensor) -> Tensor:
    """
    Return which token comes n-th, for the real tokens of each row and then the masked ones, `[B, N]`. They are counted
    instead of sorted, since a stable sort has no counterpart in ONNX.
    """
    token = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    count = mask.cumsum(dim=1, dtype=torch.long)
    return _inverse(torch.where(mask, count - 1, count[:, -1:] + token - count))


def _one_token(inputs: ConvolutionInputs, causal: bool) -> Tensor:
    """Return the output of the last token, the only one of its call, `[B, 1, C]`."""
    x, weight, _, _, ids = inputs
    middle = weight.shape[-1] // 2
    taps = weight.T[-x.shape[1] :] if causal else weight.T[middle : middle + 1]
    seen = x * taps.to(x.dtype)
    if ids is not None:
        seen = seen * (ids == ids[:, -1:])[..., None]
    return x[:, -1:] + seen.sum(1, keepdim=True)


def _exported(inputs: ConvolutionInputs, causal: bool) -> Tensor:
    """Return the output `[B, N, C]` by operations that leave the length open."""
    its, length = _Sorted(inputs, causal), inputs.x.shape[1]
    reach = (its.own, len(its.taps) - 1 - its.own)
    padded, output = F.pad(its.x, (0, 0, *reach)), its.x
    ids = None if its.ids is None else F.pad(its.ids, reach)
    for tap in range(len(its.taps)):
        seen = padded[:, tap : tap + length] * its.taps[tap]
        if ids is not None:
            seen = seen * (ids[:, tap : tap + length] == its.ids)[..., None]
        output = output + seen
    return its.put_back(output).to(inputs.x.dtype)


def _tail(inputs: ConvolutionInputs) -> Tensor:
    """Return the last W - 1 real inputs, `[B, W - 1, C]`."""
    x, weight, mask, order, ids = inputs
    length, count = x.shape[1], weight.shape[-1] - 1
    if mask is None:
        first = max(0, length - count)
        tail = F.pad(x[:, first:], (0, 0, count - length + first, 0))
        return (
            tail
            if ids is None
            else tail * F.pad(ids[:, first:] == ids[:, -1:], (count - length + first, 0))[..., None]
        )
    last = mask.sum(1, keepdim=True) + torch.arange(-count, 0, device=x.device)
    tokens = last.clamp_min(0)
    tokens = tokens if order is None else order.gather(1, tokens)
    is_kept = last >= 0
    if ids is not None:
        places = ids.gather(1, tokens)
        is_kept = is_kept & (places == places[:, -1:])
    return x.gather(1, tokens[..., None].expand(-1, -1, x.shape[-1])) * is_kept[..., None]


def _inverse(order: Tensor) -> Tensor:
    """Return the inverse of a permutation of each row, `[B, N]`."""
    token = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, token)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Return the tokens of `[B, N, C]` in this order, `[B, N]`."""
    rows = torch.arange(order.shape[0], device=order.device)[:, None] * order.shape[1]
    return x.flatten(0, 1).index_select(0, (rows + order).flatten()).view(x.shape)


class _Sorted:
    """The inputs in plain torch: real tokens first, and zeros in the place of the others."""

    def __init__(self, inputs: ConvolutionInputs, causal: bool):
        x, weight, self.mask, self.order, ids = inputs
        self.dtype = routing_dtype(x)
        self.x = self.sort(x if self.mask is None else x * self.mask[..., None])
        self.ids = ids if ids is None or self.order is None else ids.gather(1, self.order)
        self.taps = weight.T.to(self.dtype).contiguous()
        self.own = weight.shape[-1] - 1 if causal else weight.shape[-1] // 2

    def sort(self, x: Tensor) -> Tensor:
        """Return `[B, N, C]` in their order, in the dtype of the products."""
        x = x.to(self.dtype).contiguous()
        return x if self.order is None else _take(x, self.order)

    def put_back(self, x: Tensor) -> Tensor:
        """Return `[B, N, C]` in the order of the inputs."""
        return x if self.order is None else _take(x, _inverse(self.order))

    def others(self) -> Iterator[tuple[int, slice, slice]]:
        """Yield each tap but that of the token itself, which tokens have one under it, and which these are."""
        length = self.x.shape[1]
        for tap in range(len(self.taps)):
            away = abs(tap - self.own)
            if 0 < away < length:
                late, early = slice(away, length), slice(0, length - away)
                yield (tap, late, early) if tap < self.own else (tap, early, late)

    def visible(self, x: Tensor, seeing: slice, seen: slice) -> Tensor:
        """Return `[B, n, C]`, and zeros where the token that sees is of another document than the one that is seen."""
        return x if self.ids is None else x * (self.ids[:, seeing] == self.ids[:, seen])[..., None]


def _new_results(inputs: ConvolutionInputs, causal: bool, on_kernels: bool) -> ConvolutionResults:
    return ConvolutionResults(inputs.x.new_empty(inputs.x.shape))


def _forward(inputs: ConvolutionInputs, causal: bool, on_kernels: bool) -> ConvolutionResults:
    if on_kernels:
        return ConvolutionResults(launch_convolution(inputs, causal))
    its = _Sorted(inputs, causal)
    output = torch.addcmul(its.x, its.x, its.taps[its.own])
    for tap, seeing, seen in its.others():
        output[:, seeing].addcmul_(its.visible(its.x[:, seen], seeing, seen), its.taps[tap])
    return ConvolutionResults(its.put_back(output).to(inputs.x.dtype))


def _new_gradients(inputs: ConvolutionInputs) -> ConvolutionGradients:
    return ConvolutionGradients(inputs.x.new_empty(inputs.x.shape), inputs.weight.new_empty(inputs.weight.shape))


def _backward(
    grad_output: Tensor, inputs: ConvolutionInputs, results: ConvolutionResults, causal: bool, on_kernels: bool
) -> ConvolutionGradients:
    if on_kernels:
        return launch_convolution_backward(grad_output, inputs, causal)
    its = _Sorted(inputs, causal)
    grad, grad_taps = its.sort(grad_output), torch.zeros_like(its.taps)
    grad_x = torch.addcmul(grad, grad, its.taps[its.own])
    grad_taps[its.own] = (grad * its.x).sum((0, 1))
    for tap, seeing, seen in its.others():
        here = its.visible(grad[:, seeing], seeing, seen)
        grad_x[:, seen].addcmul_(here, its.taps[tap])
        grad_taps[tap] = (here * its.x[:, seen]).sum((0, 1))
    grad_x = its.put_back(grad_x).to(inputs.x.dtype)
    if inputs.mask is not None:
        grad_x = grad_x * inputs.mask[..., None]
    return ConvolutionGradients(grad_x, grad_taps.T.to(inputs.weight.dtype).contiguous())


convolve = Operator(
    Form(
        name="convolution",
        inputs=ConvolutionInputs,
        results=ConvolutionResults,
        gradients=ConvolutionGradients,
        settings="bool causal, bool on_kernels",
        new_results=_new_results,
        forward=_forward,
        new_gradients=_new_gradients,
        backward=_backward,
        outputs=1,
    )
)
