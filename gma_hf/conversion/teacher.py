"""
The source of a distillation: its outputs for texts of any length, by overlapping windows where a text is too long.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model.modeling_gma import GMAPreTrainedModel
from .convert import convert_checkpoint
from .windows import Windows, windows_of


READ = ("input_ids", "attention_mask", "token_type_ids")  # and "labels", which a source is not given


class Teacher:
    """
    Let a source read texts that are too long for it in overlapping windows.

    Args:
        source: folder or Hub name of a checkpoint, or a model, with its softmax layers.
        tokenizer: its tokenizer, whose tokens around a text each window has, or None for windows without.
        window_size: tokens that the source reads at once; its number of positions when None.
        window_overlap: tokens that a window shares with the next; a quarter of its size when None.

    Raises:
        ValueError: for a source that cannot be converted, and for windows that it cannot read.
    """

    def __init__(
        self,
        source: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        window_size: int | None = None,
        window_overlap: int | None = None,
    ):
        is_ours = isinstance(source, PreTrainedModel) and source.config.model_type == "gma"
        network = source if is_ours else convert_checkpoint(source, layers="none").float()
        self.network: GMAPreTrainedModel = network.eval()
        self.is_causal, limit = network.config.is_causal, network.config.position_limit
        if window_size is not None and (window_size < 8 or limit is not None and window_size > limit):
            most = "" if limit is None else f" and at most the source's number of positions, {limit},"
            raise ValueError(f"`window_size` must be at least 8{most} but it is {window_size}.")
        self.window_size = window_size or limit
        self.overlap = window_overlap
        if window_overlap is not None and not 0 <= window_overlap < (self.window_size or window_overlap) / 2:
            raise ValueError(
                f"`window_overlap` must be from 0 to less than half of the window's {self.window_size} tokens, but it "
                f"is {window_overlap}."
            )
        names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
        self.special_ids = {getattr(tokenizer, name, None) for name in names} - {None}

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits of a language model, `[B, N, vocabulary]`, for inputs `[B, N]`."""
        windows, outputs = self.read(self.network, inputs)
        return windows.join(outputs.logits)

    @torch.no_grad()
    def embeddings(self, inputs: dict[str, Tensor], pooling: str) -> tuple[Tensor, Tensor]:
        """
        Return the embeddings of texts, `[B, hidden]`, of length one, and the last hidden states of their tokens,
        `[B, N, hidden]`. The embedding of a text of several windows is the mean of theirs; `pooling` as in `pool`.
        """
        windows, outputs = self.read(self.network, inputs)
        pooled = pool(outputs.last_hidden_state, windows.mask, pooling)
        return F.normalize(windows.mean(pooled), dim=-1), windows.join(outputs.last_hidden_state)

    @torch.no_grad()
    def attention(self, inputs: dict[str, Tensor], layers: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return what the attention of some layers reads and gives, `[B, N, hidden]` each, by the layer's index."""
        found = {}

        def record(index: int):  # noqa: ANN202
            return lambda module, args, output: found.update({index: (args[0], output[0])})

        modules = self.network.base_model.layers
        hooks = [modules[index].attention.register_forward_hook(record(index)) for index in layers]
        try:
            windows, _ = self.read(self.network.base_model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return {index: (windows.join(read), windows.join(given)) for index, (read, given) in found.items()}

    def read(self, network: nn.Module, inputs: dict[str, Tensor]) -> tuple[Windows, Any]:
        """
        Return the windows of a batch, and what a network gives for them.

        Raises:
            ValueError: for inputs that windows cannot be cut from.
        """
        for name in inputs:
            if name not in (*READ, "labels"):
                raise ValueError(f"Examples may hold {', '.join(READ)} and labels, but one holds {name!r}.")
        input_ids, mask = inputs["input_ids"], real_tokens(inputs)
        size = self.window_size or input_ids.shape[1]
        overlap = size // 4 if self.overlap is None else self.overlap
        windows = windows_of(input_ids, mask, size, overlap, self.special_ids, self.is_causal)
        cut = {name: windows.cut(inputs[name]) for name in READ if name in inputs}
        choices = {"use_cache": False} if self.is_causal else {}
        return windows, network(**cut | {"attention_mask": windows.mask.long()}, **choices)


def real_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """Return which tokens of a batch are real, `[B, N]`."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def pool(hidden_states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """
    Return the embeddings of texts, of length one, `[B, hidden]`.

    Args:
        hidden_states: the last of each token, `[B, N, hidden]`.
        mask: `[B, N]`, true at real tokens.
        pooling: "mean" over the real tokens, or "cls", the first one.
    """
    if pooling == "cls":
        row, first = torch.arange(len(mask), device=mask.device), mask.int().argmax(dim=1)
        return F.normalize(hidden_states[row, first], dim=-1)
    weights = mask[..., None].to(hidden_states.dtype)
    return F.normalize((hidden_states * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)
