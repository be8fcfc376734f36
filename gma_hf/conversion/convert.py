"""`convert_checkpoint`: make a GMA model of a model of Transformers that belongs to one of the `FAMILIES`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..model.modeling_gma import GMAPreTrainedModel
from .calibration import token_batches
from .mixers import which_layers, with_gma_layers
from .positions import extend_positions
from .source import open_source, open_tokenizer
from .weights import carry_over


def convert_checkpoint(
    source: str | Path | PreTrainedModel,
    *,
    layers: str | Iterable[int] = "all",
    num_components: int = 64,
    calibration: Iterable | None = None,
    max_position_embeddings: int | None = None,
    **mixer: Any,
) -> GMAPreTrainedModel:
    """
    Return the GMA model of a checkpoint of one of the `FAMILIES`, with its head.

    Embeddings, MLPs, norms, head and generation config carry over, and in the layers that stay softmax the attention
    too: with `layers="none"` the model computes what the source computes. In a GMA layer the projections carry over,
    and with `calibration` the mixtures are fitted to the queries and keys that the source makes of it. The output of
    such a layer is near the source's only after a distillation (`python -m gma_hf.recipes.distill`).

    Where a GMA model differs from its source:
    - padding counts for nothing: positions count the real tokens of a row (GPT-2, GPT-Neo, BERT, ELECTRA, DistilBERT
      count its columns unless they get `position_ids`; with padding on the right this is the same), and a causal
      classifier reads the last real token by the `attention_mask` (the others: by the padding token);
    - padding is told by the `attention_mask` alone (RoBERTa and its relatives tell it by the token too);
    - `token_type_ids` of GPT-2 and GPT-Neo, which embed them as words, are ignored;
    - there is one dropout on the residual stream (GPT-2's `resid_pdrop`, not its `embd_pdrop`), and none before a
      question answering head.

    Args:
        source: folder or Hub name of a checkpoint, or a model.
        layers: which layers become GMA: "all", "none", "every:N" (the N-th, the 2 N-th, ... layer), or their indices
            (in a list, or as text: "0,2,4").
        num_components: K, the Gaussian components of each head.
        calibration: some hundred texts as the model will read them, or token batches (`input_ids` `[batch, N]`, or
            dicts with `attention_mask` too). About 8,000 tokens are used, none beyond the source's positions.
        max_position_embeddings: how many tokens the model reads, if more than the source does. The positions of the
            source stay what they are, and those beyond start as copies of them (`extend_positions`), so that texts
            that the source can read are read as before. The tokenizer's `model_max_length` is the source's still:
            `open_tokenizer` and `gma-hf convert` set it.
        mixer: other fields of `GMAConfig` that decide what the mixer computes (`MIXER_FIELDS`, but for `routing_dim`).
            Gates and convolutions start without an effect. With `read_exponent="learned"` and `calibration` each head
            starts at the exponent that is best for it.

    Raises:
        ValueError: for a source that cannot be opened or is of an unsupported architecture, for weights that are
            missing, left over or of another shape, and for wrong `layers`, `num_components`, `calibration` or
            `max_position_embeddings`.
    """
    model = open_source(source)
    indices = which_layers(layers, model.config.num_hidden_layers)
    exact = carry_over(model)
    batches = None
    if calibration is not None and indices:
        limits = (exact.config.position_limit, exact.config.vocab_size)
        batches = token_batches(calibration, open_tokenizer(source), *limits)
    if max_position_embeddings is not None:
        extend_positions(exact, max_position_embeddings)
    return with_gma_layers(exact, indices, batches, num_components=num_components, **mixer)
