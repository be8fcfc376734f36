"""Outputs of the family: Transformers' own with the responsibilities of each GMA layer, where they are asked for."""

from dataclasses import dataclass

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
