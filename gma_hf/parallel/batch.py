"""This module cuts a batch, which all ranks of a group have, along its tokens."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..model.documents_gma import documents_of_call, positions_of_real_tokens
from .collectives import gather
from .part import SequencePart


HEADS = ("GMAModel", "GMAForCausalLM", "GMAForMaskedLM")
BY_TOKEN = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "labels", "seq_idx")
BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # of DataCollatorWithFlattening


def shard_batch(
    model: nn.Module, batch: dict[str, Any], group: dist.ProcessGroup | DeviceMesh | None = None
) -> dict[str, Any]:
    """
    Return this rank's part of a batch, as arguments of the model's forward.

    All ranks of the group must call the forward, and if one of them calls the backward, all must: the layers exchange
    states in both.

    The loss of a part is the sum of the losses of its tokens, times the number of ranks, divided by the number of
    tokens that the whole batch predicts. So the mean of the losses over the ranks is the loss of the batch, and the
    mean of the gradients is its gradient. `DistributedDataParallel` and `fully_shard` compute this mean.

    Args:
        model: `GMAModel`, `GMAForCausalLM` or `GMAForMaskedLM` without softmax layers; it may be wrapped, as by DDP.
        batch: arguments of the model's forward, the same on all ranks of the group: `input_ids` `[B, N]` or
            `inputs_embeds`, and any of `attention_mask`, `token_type_ids`, `position_ids`, `labels` (not shifted), and
            `seq_idx` or `cu_seq_lens_q`.
        group: the ranks that read the batch together, a process group or a `DeviceMesh` of one dimension; None for all
            processes.

    Returns:
        The tensors of this rank's tokens, `N // ranks` of each row, and one more on each of the first `N % ranks`
        ranks. They come with `position_ids` that count in the whole rows, `shift_labels` in a causal model,
        `num_items_in_batch` where there are labels, and a `SequencePart` as `sequence_part`.

    Raises:
        ValueError: for another head, softmax layers, an argument that has no entry for each token, fewer tokens in a
            row than ranks, and batches that differ between the ranks.
    """
    config, group = _config_of(model), _group_of(group)
    tokens = _check_batch(batch)
    size, length = dist.get_world_size(group), tokens.shape[1]
    if length < size:
        raise ValueError(
            f"`batch` must have at least as many tokens a row as there are ranks, {size}, but it has {length}."
        )
    _check_same(batch, tokens, group)

    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    documents = documents_of_call(config, tokens, mask, positions, None, batch)
    lengths = [length // size + (rank < length % size) for rank in range(size)]
    part = SequencePart(group, lengths, documents, tokens)
    whole = {name: batch[name] for name in BY_TOKEN if batch.get(name) is not None}
    if positions is None:
        whole["position_ids"] = _positions(documents, mask, tokens)
    if documents.ids is not None:
        whole["seq_idx"] = documents.ids
    if "labels" in whole and config.is_causal:
        whole["shift_labels"] = F.pad(whole["labels"][:, 1:], (0, 1), value=-100)
    mine = {name: x[:, part.start : part.stop].contiguous() for name, x in whole.items()}
    if "labels" in whole:
        targets = whole.get("shift_labels", whole["labels"])
        mine["num_items_in_batch"] = (targets != -100).sum() / size
    return mine | {"sequence_part": part}


def _config_of(model: nn.Module) -> Any:
    """Return the config of a model that can read a part of a sequence."""
    model = getattr(model, "module", model)
    if hasattr(model, "get_base_model"):  # PEFT's
        model = model.get_base_model()
    names = [kind.__name__ for kind in type(model).__mro__]
    if not set(names) & set(HEADS):
        raise ValueError(
            f"`model` must be a {', '.join(HEADS[:-1])} or {HEADS[-1]} for several processes to read one sequence, "
            f"but it is a {names[0]}."
        )
    others = sorted(set(model.config.layer_types) - {"gma"})
    if others:
        raise ValueError(
            f"`layer_types` must all be gma for several processes to read one sequence, but some are {others}, which "
            "would have to see the keys of all processes."
        )
    return model.config


def _group_of(group: dist.ProcessGroup | DeviceMesh | None) -> dist.ProcessGroup:
    if not dist.is_initialized():
        raise ValueError(
            "`group` must be one of torch.distributed, but that is not initialised: start the processes by torchrun, "
            "and call torch.distributed.init_process_group first."
        )
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"`group` must be a mesh of one dimension, but it has {group.ndim}: {group}.")
        return group.get_group()
    return dist.group.WORLD if group is None else group


def _check_batch(batch: dict[str, Any]) -> Tensor:
    """Return the tokens of a batch, ids or embeddings; raise a `ValueError` for a batch that cannot be cut."""
    given = {name: x for name, x in batch.items() if x is not None and name not in BORDERS}
    unknown = [name for name in given if name not in BY_TOKEN]
    if unknown:
        raise ValueError(
            f"`batch` must hold {', '.join(BY_TOKEN)} or cu_seq_lens_q, but it holds {unknown[0]!r} too: give what is "
            "no tensor by token to the forward itself."
        )
    found = [given[name] for name in ("input_ids", "inputs_embeds") if name in given]
    if len(found) != 1 or not isinstance(found[0], Tensor):
        raise ValueError(f"`batch` must hold one tensor `input_ids` or `inputs_embeds`, but it holds {[*given]}.")
    batch_size, length = found[0].shape[:2]
    for name, x in given.items():
        if x.ndim < 2 or x.shape[1] != length or x.shape[0] not in (1, batch_size):
            raise ValueError(
                f"`{name}` must be by token, [{batch_size}, {length}], to be cut, but its shape is {list(x.shape)}."
            )
    return found[0]


def _check_same(batch: dict[str, Any], tokens: Tensor, group: dist.ProcessGroup) -> None:
    """Refuse batches that differ between ranks, such as those of a loader that gives each rank other rows."""
    names = (*BY_TOKEN, "cu_seq_lens_q")
    sums = [tokens.new_tensor([*tokens.shape[:2]], dtype=torch.float64)]
    for name in names:
        x = batch.get(name)
        x = (
            tokens.new_zeros(1, dtype=torch.float64)
            if x is None
            else x.detach().to(tokens.device, torch.float64).flatten()
        )
        sums.append((x * torch.arange(1, len(x) + 1, device=x.device).sin()).sum().nan_to_num()[None])
    found = gather(torch.cat(sums), group).tolist()
    for rank, of_rank in enumerate(found):
        differ = [name for name, mine, first in zip(("rows", "tokens", *names), of_rank, found[0]) if mine != first]
        if differ:
            raise ValueError(
                f"`batch` must be the same on all ranks that read it together, but {', '.join(differ)} of rank {rank} "
                "differ from those of rank 0."
            )


def _positions(documents: Any, mask: Tensor | None, tokens: Tensor) -> Tensor:
    """Return the position of each token in its row, or in its document where rows are packed, `[B or 1, N]`."""
    if documents.ids is not None:
        return documents.places()
    if mask is not None:
        return positions_of_real_tokens(mask)
    return torch.arange(tokens.shape[1], device=tokens.device)[None]
