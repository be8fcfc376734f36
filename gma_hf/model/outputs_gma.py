"""Outputs of the family: Transformers' own with the responsibilities of each GMA layer, where they are asked for."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

from .compat_gma import CACHE_NAME


# Of queries and of keys, `[batch, heads, N, K]`
Responsibilities = tuple[torch.Tensor, torch.Tensor]


@dataclass
class GMAModelOutput(BaseModelOutputWithPast):
    responsibilities: tuple[Responsibilities, ...] | None = None


@dataclass
class GMACausalLMOutput(CausalLMOutputWithPast):
    responsibilities: tuple[Responsibilities, ...] | None = None


@dataclass
class GMAMaskedLMOutput(MaskedLMOutput):
    responsibilities: tuple[Responsibilities, ...] | None = None


@dataclass
class GMASequenceClassifierOutput(SequenceClassifierOutputWithPast):
    responsibilities: tuple[Responsibilities, ...] | None = None


@dataclass
class GMATokenClassifierOutput(TokenClassifierOutput):
    responsibilities: tuple[Responsibilities, ...] | None = None


@dataclass
class GMAQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    responsibilities: tuple[Responsibilities, ...] | None = None


@dataclass
class GMAMultipleChoiceOutput(MultipleChoiceModelOutput):
    responsibilities: tuple[Responsibilities, ...] | None = None


def of_head(kind: type, network: GMAModelOutput, **own: Any) -> Any:
    """Return the output `kind` of a head: what is its `own`, and what the network gave beside its hidden states."""
    shared = {
        "hidden_states": network.hidden_states,
        "attentions": network.attentions,
        "responsibilities": network.responsibilities,
    }
    if kind in (GMACausalLMOutput, GMASequenceClassifierOutput):
        shared[CACHE_NAME] = getattr(network, CACHE_NAME)
    return kind(**own, **shared)
