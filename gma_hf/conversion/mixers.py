"""Softmax layers of a GMA network become GMA layers, which start from what the softmax layers compute."""

import operator
from collections.abc import Iterable
from typing import Any

import torch

from ..model.attention_gma import GaussianMixtureAttention
from ..model.configuration_gma import MIXER_FIELDS
from ..model.modeling_gma import GMAPreTrainedModel
from ..model.softmax_gma import SoftmaxAttention
from .calibration import Batch, mixer_inputs
from .mixture_fit import Start, fit_mixture


# Every field of the mixer may be chosen but the routing width, which is that of the source's heads, whose queries and
# keys carry over.
CHOSEN = tuple(name for name in MIXER_FIELDS if name != "routing_dim")


def which_layers(layers: str | Iterable[int], num_layers: int) -> list[int]:
    """
    Return the indices that `layers` names: "all", "none", "every:N" (the N-th, the 2 N-th, ... layer), or the indices,
    in a list or as text ("0,2,4").

    Raises:
        ValueError: for another text, or an index that no layer has.
    """
    wrong = ValueError(
        f"`layers` must be 'all', 'none', 'every:N' with N from 1 to {num_layers}, or indices from 0 to "
        f"{num_layers - 1}, but it is {layers!r}."
    )
    if isinstance(layers, str):
        kind, _, step = layers.partition(":")
        if layers in ("all", "none"):
            return list(range(num_layers)) if layers == "all" else []
        if kind == "every" and step.isdecimal() and 1 <= int(step) <= num_layers:
            return list(range(int(step) - 1, num_layers, int(step)))
        layers = layers.split(",")
        if not all(index.isdecimal() for index in layers):
            raise wrong
        layers = [int(index) for index in layers]
    try:
        indices = sorted({operator.index(index) for index in layers})
    except TypeError as error:
        raise wrong from error
    if indices and not 0 <= indices[0] <= indices[-1] < num_layers:
        raise wrong
    return indices


@torch.no_grad()
def with_gma_layers(
    model: GMAPreTrainedModel, indices: list[int], batches: list[Batch] | None, **mixer: Any
) -> GMAPreTrainedModel:
    """
    Return a copy of a network whose softmax layers at `indices` are GMA layers. Their projections carry over, and with
    token batches their mixtures are fitted to what the softmax layers make of these (`fit_mixture`); without, the
    mixtures are random. Gates and convolutions start without an effect, since no softmax layer has any.

    Args:
        model: with softmax attention in those layers.
        indices: of layers.
        batches: from `token_batches`, or None.
        mixer: fields of `GMAConfig`, of `CHOSEN`.

    Raises:
        ValueError: for another field.
    """
    for name in mixer:
        if name not in CHOSEN:
            raise ValueError(f"Fields of the mixer may be {', '.join(CHOSEN)}, but one is {name!r}.")
    fields = model.config.to_dict() | mixer
    fields["layer_types"] = ["gma" if i in indices else kind for i, kind in enumerate(model.config.layer_types)]
    config = type(model.config).from_dict(fields)
    config._attn_implementation = model.config._attn_implementation
    converted = type(model)(config)
    converted.load_state_dict(model.state_dict(), strict=False)  # all but the attention of GMA layers
    converted.tie_weights()
    converted.to(dtype=model.dtype, device=model.device).train(model.training)
    if converted.can_generate():
        converted.generation_config = model.generation_config
    inputs = None if batches is None else mixer_inputs(model, indices, batches)
    for index in indices:
        new, old = (network.base_model.layers[index].attention for network in (converted, model))
        carry_projections(new, old)
        for addition in new.additions:
            addition.start_without_effect(getattr(new, addition.name))
        if inputs is not None:
            set_mixture(new, fit_mixture(old, inputs[index], config))
    return converted


def carry_projections(new: GaussianMixtureAttention, old: SoftmaxAttention) -> None:
    """Put the queries, keys and values of a softmax layer into a GMA layer."""
    projections = (old.q_proj, old.k_proj, old.v_proj)
    new.qkv_proj.weight.copy_(torch.cat([projection.weight for projection in projections]))
    new.qkv_proj.bias.copy_(torch.cat([projection.bias for projection in projections]))


def set_mixture(attention: GaussianMixtureAttention, start: Start) -> None:
    """Put a fitted mixture into a GMA layer, with the balance of queries and keys and the exponents of its heads."""
    width = attention.config.routing_dim
    balance = start.balance.repeat_interleave(width)
    factors = torch.cat([balance, 1 / balance, torch.ones_like(balance)])
    attention.qkv_proj.weight.mul_(factors[:, None])
    attention.qkv_proj.bias.mul_(factors)
    attention.mixture.set(start.mixture)
    if attention.read_exponent is not None:
        attention.read_exponent.set(start.read_exponent)
