"""A text that a model and somebody else write by turns, without the model reading anything twice."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

from .model.compat_gma import CACHE_NAME


class TextSession:
    """
    A text that keeps the model's cache between calls of `generate`: each reads only what has been added to the text.

    Args:
        model: a causal language model of Transformers; for a second turn, one that keeps what it reads in a `Cache`.
        tokenizer: its tokenizer.
        cache: what `model` has read already, if anything: the text continues from there.

    `limit` is how many tokens the model takes, None for any number, and `is_full` whether the text was ended by it.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache | None = None):
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.num_read = 0 if cache is None else int(cache.get_seq_length())
        self.limit = longest_text(model.config)
        self.is_full = False
        # The last token that was generated: `generate` stops before the model reads it
        self.unread = torch.empty(1, 0, dtype=torch.long, device=model.device)

    def generate(
        self, text: str, max_new_tokens: int, streamer: BaseStreamer | None = None, **choices: Any
    ) -> torch.Tensor:
        """
        Add `text` to the end and return the tokens that the model continues it with.

        Args:
            text: what is read, joined to what was generated last without anything between.
            max_new_tokens: how many tokens are generated, unless the model ends sooner or there is no room for more.
            streamer: given to Transformers' `generate`; so are the `choices`, such as `do_sample`.

        Returns:
            The tokens that were generated, `[at most max_new_tokens]`.

        Raises:
            ValueError: if there is nothing to read or no room for a token after it, for a token that the model does
                not know, or for a second turn of a model without a cache. Nothing of this turn has been read then.
        """
        new = self._encode(text)
        input_ids = torch.cat([self.unread, new], dim=1)
        self._check(input_ids)
        room = max_new_tokens if self.limit is None else self.limit - self.num_read - input_ids.shape[1]
        output = self.model.generate(
            input_ids,
            # As long as everything that was read: so Transformers tells that `input_ids` is only the end of it
            attention_mask=input_ids.new_ones(1, self.num_read + input_ids.shape[1]),
            **{CACHE_NAME: self.cache},
            max_new_tokens=min(max_new_tokens, room),
            streamer=streamer,
            return_dict_in_generate=True,
            num_beams=1,
            **choices,
        )
        self.cache, self.unread = output[CACHE_NAME], output.sequences[:, -1:]
        self.num_read += output.sequences.shape[1] - 1
        new_tokens = output.sequences[0, input_ids.shape[1] :]
        self.is_full = len(new_tokens) == room < max_new_tokens
        return new_tokens

    @torch.no_grad()
    def settle(self) -> Cache | None:
        """Read the last token that was generated too, and return the cache, which then holds the whole text."""
        if self.unread.shape[1] > 0:
            mask = self.unread.new_ones(1, self.num_read + 1)
            output = self.model(self.unread, attention_mask=mask, use_cache=True, **{CACHE_NAME: self.cache})
            self.cache, self.num_read, self.unread = output[CACHE_NAME], self.num_read + 1, self.unread[:, :0]
        return self.cache

    def _encode(self, text: str) -> torch.Tensor:
        """Return the tokens of `text`, `[1, N]`; what the tokenizer puts around texts comes at the beginning only."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("The text must be Unicode (UTF-8 on the command line), but it is not.") from error
        is_beginning = self.num_read == 0
        ids = self.tokenizer(text, add_special_tokens=is_beginning, verbose=False)["input_ids"]
        return torch.tensor([ids], dtype=torch.long, device=self.model.device)

    def _check(self, input_ids: torch.Tensor) -> None:
        """Refuse tokens `[1, N]` that the model cannot read after what it has read; see `generate` for the errors."""
        num_input, vocab_size = input_ids.shape[1], self.model.config.get_text_config().vocab_size
        if num_input == 0:
            raise ValueError("There must be at least one token to read, but the text is empty.")
        if input_ids.max() >= vocab_size:
            raise ValueError(
                f"The model knows token ids below {vocab_size}, but its tokenizer makes {int(input_ids.max())} of the "
                "text."
            )
        if self.num_read != (0 if self.cache is None else self.cache.get_seq_length()):
            raise ValueError(
                f"The model must keep what it reads in a cache, but {type(self.model).__name__} does not."
            )
        if self.limit is not None and self.num_read + num_input >= self.limit:
            raise ValueError(
                f"The text may be {self.limit} tokens long with this model, but with one token to generate it would "
                f"be {self.num_read + num_input + 1}: {self.num_read} read before and {num_input} to read now."
            )


def longest_text(config: Any) -> int | None:
    """Return how many tokens a model of this config takes, or None for any number."""
    if config.model_type == "gma":
        return config.position_limit
    return getattr(config, "max_position_embeddings", None)


def keeps_a_cache(model: PreTrainedModel) -> bool:
    """Return whether `model` returns what it has read in a cache, found out with one token."""
    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        output = model(token, attention_mask=torch.ones_like(token), use_cache=True)
    return getattr(output, CACHE_NAME, None) is not None
