"""Objectives of a distillation: what a converted model learns of its source, and figures of how near it is."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from ..errors import extra
from ..model.attention_gma import MixerOutput
from ..model.modeling_gma import GMAForCausalLM, GMAForMaskedLM, GMAModel, GMAPreTrainedModel
from .teacher import Teacher, pool, real_tokens


with extra("train", "Distillation"):
    from scipy.stats import spearmanr

Inputs = dict[str, Tensor]
TOKEN_WEIGHT = 0.5  # of the hidden states of the tokens, beside the embedding of the text


class Comparison(NamedTuple):
    """The loss of a batch, and what the figures are computed from, of each example: `[B, ...]` each."""

    loss: Tensor
    of_examples: tuple[Tensor, ...]


class Objective:
    """
    Say what is learned of a source, and how near a model is to it.

    `metrics` has the name of each figure, and what it says.
    """

    metrics: dict[str, str] = {}

    @contextmanager
    def attached(self, model: GMAPreTrainedModel) -> Iterator[None]:
        """Keep what the objective changes in a model during a step, forward and backward."""
        yield

    def collator(self, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Any:
        """Return what makes batches of examples."""
        return default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer)

    def compare(self, model: nn.Module | None, inputs: Inputs, teacher: Teacher) -> Comparison:
        """Compare a model with its teacher, or, with None, the teacher with itself, on a batch."""
        raise NotImplementedError

    def figures(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the figures, from what `compare` gave of all examples, as the predictions of Trainer."""
        raise NotImplementedError


class LayerObjective(Objective):
    """
    What each softmax layer gives for its own hidden states: the GMA layer in its place reads the same. The figures are
    the mean squared errors of the layers over the variance of what the softmax layer gave: 1 for a layer that gives
    its mean. The loss is their mean.
    """

    def __init__(self, model: GMAPreTrainedModel, default: Objective):
        self.layers = [i for i, layer in enumerate(model.base_model.layers) if layer.layer_type == "gma"]
        self.metrics = {f"layer_{i}": f"error of layer {i} over the variance of its source's" for i in self.layers}
        self.collator = default.collator
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.mask: Tensor | None = None
        self.errors: dict[int, Tensor] = {}

    @contextmanager
    def attached(self, model: GMAPreTrainedModel) -> Iterator[None]:
        hooks = []
        for index in self.layers:  # until the backward has ended, which may run a checkpointed layer again
            attention = model.base_model.layers[index].attention
            hooks.append(attention.register_forward_pre_hook(partial(self._feed, index)))
            hooks.append(attention.register_forward_hook(partial(self._compare, index)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.seen, self.errors = {}, {}

    def compare(self, model: nn.Module | None, inputs: Inputs, teacher: Teacher) -> Comparison:
        self.seen, self.mask = teacher.attention(inputs, self.layers), real_tokens(inputs)
        model(**{name: x for name, x in inputs.items() if name != "labels"})
        errors = torch.stack([self.errors[index] for index in self.layers])
        return Comparison(errors.mean(), (errors.expand(len(self.mask), -1),))

    def _feed(self, index: int, module: nn.Module, args: tuple) -> tuple:
        return (self.seen[index][0], *args[1:])

    def _compare(self, index: int, module: nn.Module, args: tuple, output: tuple) -> MixerOutput:
        self.errors[index] = relative_error(output[0], self.seen[index][1], self.mask)
        return MixerOutput(output[0].detach(), *output[1:])  # the rest of the network has nothing to learn of it

    def figures(self, prediction: EvalPrediction) -> dict[str, float]:
        return dict(zip(self.metrics, prediction.predictions[0].mean(axis=0).tolist()))


class LanguageModelObjective(Objective):
    """The source's distribution over tokens, and the task's own loss."""

    metrics = {
        "perplexity": "perplexity of the validation text",
        "divergence": "Kullback-Leibler divergence from the source's distribution, nats per token",
        "agreement": "share of tokens where the likeliest token is the source's",
    }

    def __init__(self, is_causal: bool, source_weight: float):
        if not 0 <= source_weight <= 1:
            raise ValueError(f"`source_weight` must be from 0 to 1, but it is {source_weight}.")
        self.is_causal = is_causal
        self.source_weight = source_weight

    def collator(self, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Any:
        if self.is_causal or tokenizer is None:
            return default_data_collator
        return DataCollatorForLanguageModeling(tokenizer, seed=seed)

    def compare(self, model: nn.Module | None, inputs: Inputs, teacher: Teacher) -> Comparison:
        labels, theirs = inputs["labels"], teacher.logits(inputs)
        read = {name: x for name, x in inputs.items() if name != "labels"}
        ours = theirs if model is None else model(**read).logits
        if self.is_causal:
            ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
        is_asked = labels != -100
        row, labels = is_asked.nonzero()[:, 0], labels[is_asked]
        ours, theirs = (x[is_asked].float().log_softmax(dim=-1) for x in (ours, theirs))
        cross_entropy = F.nll_loss(ours, labels, reduction="none")
        divergence = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=-1)
        agrees = (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float()
        of_tokens = torch.stack([cross_entropy, divergence, agrees, torch.ones_like(agrees)], dim=-1)
        sums = of_tokens.new_zeros(len(is_asked), of_tokens.shape[-1]).index_add(0, row, of_tokens)
        count = max(len(row), 1)
        loss = self.source_weight * divergence.sum() / count + (1 - self.source_weight) * cross_entropy.sum() / count
        return Comparison(loss, (sums,))

    def figures(self, prediction: EvalPrediction) -> dict[str, float]:
        *sums, count = prediction.predictions[0].astype("float64").sum(axis=0)
        cross_entropy, divergence, agreement = (float(x / count) for x in sums)
        return {"perplexity": math.exp(cross_entropy), "divergence": divergence, "agreement": agreement}


class EmbeddingObjective(Objective):
    """
    The source's embedding of a text, made of the last hidden states of its tokens, of length one; its similarities
    with the others of the batch; and the hidden states themselves.
    """

    metrics = {
        "spearman": "Spearman correlation of the cosine similarities of pairs of texts with the source's; each text "
        "is paired with the next one, and with one from elsewhere",
        "cosine": "mean cosine similarity with the source's embedding",
    }

    def __init__(self, pooling: str):
        if pooling not in ("mean", "cls"):
            raise ValueError(f"`pooling` must be mean or cls, but it is {pooling!r}.")
        self.pooling = pooling

    def compare(self, model: nn.Module | None, inputs: Inputs, teacher: Teacher) -> Comparison:
        theirs, their_states = teacher.embeddings(inputs, self.pooling)
        mask = real_tokens(inputs)
        if model is None:
            ours, states = theirs, their_states
        else:
            states = model(**{name: x for name, x in inputs.items() if name != "labels"}).last_hidden_state
            ours = pool(states, mask, self.pooling)
        similarity = F.mse_loss(ours @ ours.T, theirs @ theirs.T)
        of_tokens = relative_error(states, their_states, mask)
        loss = 1 - cosine(ours, theirs).mean() + similarity + TOKEN_WEIGHT * of_tokens
        return Comparison(loss, (ours.float(), theirs.float()))

    def figures(self, prediction: EvalPrediction) -> dict[str, float]:
        ours, theirs = map(torch.as_tensor, prediction.predictions)
        figures = {"spearman": math.nan, "cosine": float(cosine(ours, theirs).mean())}
        if len(ours) > 2:  # else there is one pair alone, which has no rank
            shifts = (1, len(ours) // 2)
            similarities = [torch.cat([cosine(x, x.roll(-shift, 0)) for shift in shifts]) for x in (ours, theirs)]
            figures["spearman"] = float(spearmanr(*similarities).statistic)
        return figures


def objective_for(model: GMAPreTrainedModel, source_weight: float, pooling: str) -> Objective:
    """
    Return what a model learns of its source as a whole, by its head.

    Raises:
        ValueError: for a head that there is no objective for, and for wrong arguments of its objective.
    """
    if isinstance(model, (GMAForCausalLM, GMAForMaskedLM)):
        return LanguageModelObjective(model.config.is_causal, source_weight)
    if isinstance(model, GMAModel) and not model.config.is_causal:
        return EmbeddingObjective(pooling)
    raise ValueError(
        "`source` must be a language model (causal or masked) or an encoder without a head to be distilled, but it "
        f"becomes a {type(model).__name__}."
    )


def relative_error(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error of `[B, N, hidden]` over the variance of what it should be, at real tokens."""
    error, spread = (ours - theirs)[mask], theirs[mask].var(dim=0).sum()
    return error.square().sum(dim=-1).mean() / spread


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine similarities of embeddings `[B, hidden]` of length one."""
    return (x * y).sum(dim=-1)
