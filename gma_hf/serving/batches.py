"""
How vLLM describes a step to the recurrent layers: requests that generate, one token each, and after them prompts, or
parts of prompts, of any lengths, all in one packed row of tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
from vllm.v1.attention.backends.mamba_attn import BaseMambaAttentionMetadata, BaseMambaAttentionMetadataBuilder


# The longest prompt of a batch over the shortest: so at most half of a batch is padding
LONGEST_OVER_SHORTEST = 2


class PromptRows(NamedTuple):
    """Prompts of about the same length as the rows of a batch, padded on the right."""

    prompts: Tensor  # [R], which prompt each row is
    tokens: Tensor  # [R, L], the place of each token among the tokens of all prompts; any place at padding
    mask: Tensor | None  # [R, L], False at padding; None without any

    def to(self, device: torch.device) -> "PromptRows":
        """Return the same on a device."""
        return PromptRows(*(None if x is None else async_tensor_h2d(x, device) for x in self))


def rows_of_prompts(lengths: Tensor) -> tuple[list[PromptRows], Tensor]:
    """
    Return prompts that are packed into one row of tokens as a few batches of rows.

    Args:
        lengths: tokens of each prompt, `[P]`, at least 1 each.

    Returns:
        The batches; and, for each of the T packed tokens, its place among the tokens of all batches, row after row,
        padding counted, `[T]`.
    """
    batches, base, starts = [], 0, lengths.cumsum(0) - lengths
    place = torch.empty(int(lengths.sum()), dtype=torch.long)
    order = lengths.argsort(descending=True, stable=True)
    while len(order) > 0:
        longest = int(lengths[order[0]])
        fits = lengths[order] * LONGEST_OVER_SHORTEST >= longest
        prompts, order = order[fits], order[~fits]
        own, token = lengths[prompts][:, None], torch.arange(longest)
        mask = token < own
        tokens = starts[prompts][:, None] + torch.minimum(token, own - 1)
        place[tokens[mask]] = base + mask.flatten().nonzero()[:, 0]
        base += mask.numel()
        batches.append(PromptRows(prompts, tokens, None if bool(mask.all()) else mask))
    return batches, place


@dataclass
class GMAMetadata(BaseMambaAttentionMetadata):
    """What vLLM says of any recurrent layer's step, and its prompts as rows."""

    prompt_rows: tuple[PromptRows, ...] = ()
    prompt_places: Tensor | None = None  # see `rows_of_prompts`


class GMAMetadataBuilder(BaseMambaAttentionMetadataBuilder[GMAMetadata]):
    """Makes the description of a step, once for all layers. The prompts are laid out on the CPU, without a wait."""

    metadata_cls = GMAMetadata
    needs_causal_conv1d_metadata = False

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False, **kwargs
    ) -> GMAMetadata:
        """Return the description of a step."""
        metadata = self._compute_common_metadata(common_attn_metadata)
        if metadata.num_prefills > 0:
            starts = common_attn_metadata.query_start_loc_cpu[-metadata.num_prefills - 1 :]
            batches, places = rows_of_prompts(starts.diff().long())
            metadata.prompt_rows = tuple(batch.to(self.device) for batch in batches)
            metadata.prompt_places = async_tensor_h2d(places, self.device)
        return metadata


class GMABackend(AttentionBackend):
    """What vLLM looks up for the recurrent layers."""

    @staticmethod
    def get_name() -> str:
        """Return the name."""
        return "GMA"

    @staticmethod
    def get_builder_cls() -> type[GMAMetadataBuilder]:
        """Return what describes a step."""
        return GMAMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        """Return that these layers keep a state of constant size."""
        return True
