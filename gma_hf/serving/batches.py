"""
vLLM describes each step to the recurrent layers with the metadata of this file.

The tokens of a step are packed into one row. First come the requests that generate, with one token each. After them
come prompts, or parts of prompts, of any lengths.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
from vllm.v1.attention.backends.mamba_attn import BaseMambaAttentionMetadata, BaseMambaAttentionMetadataBuilder


# The longest prompt of a batch is at most this many times as long as the shortest, so at most half of it is padding
LONGEST_OVER_SHORTEST = 2


class PromptRows(NamedTuple):
    """Hold a batch of prompts of about the same length, one prompt in each row, padded on the right."""

    prompts: Tensor  # [R], the index of the prompt in each row
    tokens: Tensor  # [R, L], the index of each token among the tokens of all prompts; any valid index at padding
    mask: Tensor | None  # [R, L], False at padding; None if there is no padding

    def to(self, device: torch.device) -> "PromptRows":
        """Return these rows on a device."""
        return PromptRows(*(None if x is None else async_tensor_h2d(x, device) for x in self))


def rows_of_prompts(lengths: Tensor) -> tuple[list[PromptRows], Tensor]:
    """
    Return a few batches of rows for prompts that are packed into one row of tokens.

    Args:
        lengths: the number of tokens of each prompt, `[P]`, at least 1 each.

    Returns:
        The batches; and the index of each of the T packed tokens among the tokens of all batches, `[T]`. This index
        counts row after row, padding included.
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
    """Describe a step as vLLM does for any recurrent layer, and its prompts as rows."""

    prompt_rows: tuple[PromptRows, ...] = ()
    prompt_places: Tensor | None = None  # see `rows_of_prompts`


class GMAMetadataBuilder(BaseMambaAttentionMetadataBuilder[GMAMetadata]):
    """
    Build the description of a step, once for all layers.

    The rows of the prompts are laid out on the CPU, so that the CPU does not wait for the GPU.
    """

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
    """Tell vLLM which classes describe a step to the recurrent layers."""

    @staticmethod
    def get_name() -> str:
        """Return the name of this backend."""
        return "GMA"

    @staticmethod
    def get_builder_cls() -> type[GMAMetadataBuilder]:
        """Return the class that builds the description of a step."""
        return GMAMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        """Return True: these layers keep a state of constant size, as state-space models do."""
        return True
