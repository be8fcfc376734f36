"""
The GMA network, bare and with a head per task. They share a file, since a checkpoint of any of them is to open under
every Auto class, and Transformers copies only the files that the one of the saved class imports.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .blocks_gma import GMABlock, GMAClassificationHead, GMAEmbeddings, GMAPredictionHead, MixerOutput
from .cache_gma import adopt, check_cache
from .compat_gma import CACHE_NAME, CACHE_NAMES, one_cache, register_class_names, slice_logits_to_keep
from .configuration_gma import GMAConfig
from .documents_gma import ONE_EACH, Documents, documents_of_call, positions_of_real_tokens
from .generation_gma import PREFILL_CHUNK, GMAGenerationMixin, can_read_in_pieces, read_in_pieces
from .identity_gma import identify
from .outputs_gma import (
    GMACausalLMOutput,
    GMAMaskedLMOutput,
    GMAModelOutput,
    GMAMultipleChoiceOutput,
    GMAQuestionAnsweringOutput,
    GMASequenceClassifierOutput,
    GMATokenClassifierOutput,
    of_head,
)
from .pieces_gma import encode_pieces
from .softmax_gma import softmax_masks


if TYPE_CHECKING:  # some releases of Transformers copy the files that this one names, and not those of theirs in turn
    from .adapters_gma import tell_peft  # noqa: F401
    from .additions_gma import Addition  # noqa: F401
    from .attention_gma import GaussianMixture  # noqa: F401
    from .backend_torch_gma import torch_problem  # noqa: F401
    from .backend_triton_gma import triton_problem  # noqa: F401
    from .convolution_gma import convolve  # noqa: F401
    from .equations_gma import routing_dtype  # noqa: F401
    from .kernels_chunks_gma import ChunkCalls  # noqa: F401
    from .kernels_convolution_gma import launch_convolution  # noqa: F401
    from .kernels_gma import has_kernels  # noqa: F401
    from .kernels_routing_gma import RoutingGradients  # noqa: F401
    from .kernels_scan_gma import ScanGradients  # noqa: F401
    from .kernels_token_gma import step  # noqa: F401
    from .mixing_gma import mix_causal  # noqa: F401
    from .operators_gma import CausalInputs  # noqa: F401
    from .torch_bidirectional_gma import BidirectionalResults  # noqa: F401
    from .torch_causal_gma import CausalResults  # noqa: F401
    from .torch_routing_gma import Workspace  # noqa: F401


class GMAPreTrainedModel(PreTrainedModel):
    """Initialisation, and what Transformers asks about the family."""

    config_class = GMAConfig
    config: GMAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GMAEmbeddings", "GMABlock", "GaussianMixture"]
    _skip_keys_device_placement = [*CACHE_NAMES]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = ["mixture"]
    task_loss: str | None = None  # the loss of a head and of its subclasses, by its name in Transformers

    def __init__(self, config: GMAConfig, *args, **kwargs):
        config.settle()
        super().__init__(config, *args, **kwargs)
        if self.task_loss is not None and getattr(config, "loss_type", None) is None:
            self.loss_type = self.task_loss

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # A module that starts otherwise than others of its kind says so itself, by `start` or `init_std`
        super()._init_weights(module)
        if (std := getattr(module, "init_std", None)) is not None:
            init.normal_(module.weight, std=std)
        if hasattr(module, "start"):
            module.start()


class GMAModel(GMAPreTrainedModel):
    """
    The GMA network without a head.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: GMAConfig):
        super().__init__(config)
        self.embeddings = GMAEmbeddings(config)
        self.layers = nn.ModuleList([GMABlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        is_pre = config.norm_position == "pre"
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if is_pre else None
        self.gradient_checkpointing = False
        self.identity = identify(config, self)  # what a state that leaves this process is recognised by
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value
        self.identity = identify(self.config, self)  # of the vocabulary as it is now

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_responsibilities: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> GMAModelOutput:
        """
        Args:
            input_ids: token ids `[batch, N]`; exactly one of `input_ids` and `inputs_embeds`. Or, in a bidirectional
                model without additions, a list of them, the pieces of a document, with lists for `attention_mask` and
                `token_type_ids`: see `encode_pieces`.
            attention_mask: `[batch, tokens read before + N]`, 1 at real tokens and 0 at padding, anywhere in the row;
                or a dict of masks by layer type, as `generate` makes it for static caches.
            token_type_ids: `[batch, N]`; zeros when None.
            position_ids: `[batch, N]`; when None they count the real tokens of the row. Where they restart, another
                document begins, which reads nothing of the one before; so it does at `cu_seq_lens_q`, and where
                `seq_idx` changes (`DataCollatorWithFlattening` gives these names).
            past_key_values: another name of `cache`.
            inputs_embeds: `[batch, N, embedding width]`.
            use_cache: whether to return the states (causal only); the config's choice when None.
            output_attentions: whether to return the affinity of each layer, `[batch, heads, N, N]`.
            output_hidden_states: whether to return the hidden states before and after each layer.
            output_responsibilities: whether to return, for each GMA layer, the responsibilities of queries and of
                keys, a pair of `[batch, heads, N, K]`. Any head takes it too.
            cache: the states of what was read before (causal only).

        Returns:
            `last_hidden_state` `[batch, N, hidden]`; as asked for, cache, hidden states, attentions, responsibilities.

        Raises:
            ValueError: for a mask of the wrong shape, more tokens than learned positions, a cache of another config.
        """
        cache = one_cache(cache, past_key_values)
        if isinstance(input_ids, (list, tuple)):
            others = {"position_ids": position_ids, CACHE_NAME: cache, "inputs_embeds": inputs_embeds, **kwargs}
            others |= {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
            others |= {"output_responsibilities": output_responsibilities}
            pieces = encode_pieces(self, input_ids, attention_mask, token_type_ids, others)
            return GMAModelOutput(last_hidden_state=pieces)
        _require_one_input(input_ids, inputs_embeds)
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = self._prepare_cache(cache, use_cache, inputs_embeds.shape[0])
        documents = self._prepare_documents(inputs_embeds, attention_mask, position_ids, cache, kwargs)
        position_ids = self.prepare_positions(inputs_embeds, attention_mask, position_ids, cache, documents)

        wanted = {"output_attentions": output_attentions, "output_responsibilities": output_responsibilities}
        wanted = {name: getattr(self.config, name, False) if x is None else x for name, x in wanted.items()}
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        before, mixers = [], []
        hidden_states = self.embeddings(inputs_embeds, position_ids, token_type_ids)
        for layer in self.layers:
            before.append(hidden_states)
            mixers.append(MixerOutput(*layer(hidden_states, documents=documents, cache=cache, **wanted, **kwargs)))
            hidden_states = mixers[-1].hidden_states
        if self.final_norm is not None:
            hidden_states = self.final_norm(hidden_states)
        return GMAModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*before, hidden_states) if output_hidden_states else None,
            attentions=_of_layers([x.affinity for x in mixers], wanted["output_attentions"]),
            responsibilities=_of_layers([x.responsibilities for x in mixers], wanted["output_responsibilities"]),
            **{CACHE_NAME: cache if use_cache else None},
        )

    def _prepare_cache(self, cache: Cache | None, use_cache: bool, batch_size: int) -> Cache | None:
        is_checkpointed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if cache is not None:
            if not self.config.is_causal:
                raise ValueError(f"`{CACHE_NAME}` must be None in a bidirectional model, but a cache is given.")
            if is_checkpointed:  # which would write the state again when it computes a layer again
                raise ValueError(
                    f"`{CACHE_NAME}` must be None while a model trains with gradient checkpointing, but a cache is "
                    "given."
                )
            check_cache(adopt(cache, self.config), self.config, batch_size)
        elif use_cache and self.config.is_causal and not is_checkpointed:
            cache = adopt(DynamicCache(config=self.config), self.config)
        if cache is not None:
            cache.identity = self.identity
        return cache

    def _prepare_documents(self, inputs_embeds, attention_mask, position_ids, cache, packing) -> Documents:
        """Return padding and packing of the tokens of this call, and the masks of softmax layers."""
        seen = None if cache is None else cache.get_seq_length()
        documents = documents_of_call(self.config, inputs_embeds, attention_mask, position_ids, seen, packing)
        if set(self.config.layer_types) == {"gma"}:
            return documents
        masks = attention_mask  # made by `generate` already
        if not isinstance(masks, dict):
            masks = softmax_masks(self.config, documents, inputs_embeds, attention_mask, cache, position_ids)
        return Documents(documents.mask, documents.ids, masks)

    def prepare_positions(self, inputs, attention_mask, position_ids=None, cache=None, documents=ONE_EACH):
        """Return position ids, `[batch or 1, N]`, or None without learned positions; `inputs`: ids or embeddings."""
        limit, length = self.config.position_limit, inputs.shape[1]
        if limit is None:
            return None
        if position_ids is None:
            position_ids = documents.places()
        if position_ids is None and getattr(attention_mask, "ndim", None) == 2:
            position_ids = positions_of_real_tokens(attention_mask)[:, -length:]
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(length, device=inputs.device) + seen)[None]
        if not torch.compiler.is_compiling() and (last := int(position_ids.max())) >= limit:
            raise ValueError(
                f"`input_ids` may reach position {limit - 1}, since `max_position_embeddings` is {limit}, but they "
                f"reach position {last}."
            )
        return position_ids


def _of_layers(found: list, is_wanted: bool) -> tuple | None:
    """Return what layers gave, without those that gave nothing, if it was asked for."""
    return tuple(x for x in found if x is not None) if is_wanted else None


def _require_one_input(input_ids, inputs_embeds) -> None:
    given = [x for x in (input_ids, inputs_embeds) if x is not None]
    if len(given) != 1:
        raise ValueError(
            f"Exactly one of `input_ids` and `inputs_embeds` must be given, but {'both' if given else 'neither'} are."
        )
    if 0 in given[0].shape[:2]:
        raise ValueError(
            f"`input_ids` (or `inputs_embeds`) must hold at least one token, but its shape is {list(given[0].shape)}."
        )


class GMAForCausalLM(GMAPreTrainedModel, GMAGenerationMixin):
    """The causal GMA network with a language-model head."""

    task_loss = "ForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.word_embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: GMAConfig):
        config.require_style(type(self), is_causal=True)
        super().__init__(config)
        self.model = GMAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        prefill_chunk_size: int | None = None,
        **kwargs,
    ) -> GMACausalLMOutput:
        """
        Args:
            labels: `[batch, N]`, shifted inside; -100 is left out of the loss.
            logits_to_keep: the last so many positions (0: all), or the positions, as Transformers defines it.
            prefill_chunk_size: tokens that are read at once where nothing is asked for but some logits and the cache.
            Others: see `GMAModel.forward`.

        Returns:
            `logits` `[batch, positions kept, vocabulary]`, `loss` when labels are given, the cache.
        """
        cache = one_cache(cache, past_key_values)
        inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
        inputs["inputs_embeds"] = inputs_embeds
        size = prefill_chunk_size or PREFILL_CHUNK
        if can_read_in_pieces(self.config, inputs, logits_to_keep, size, cache=cache, labels=labels, **kwargs):
            kept = read_in_pieces(self.model, inputs, attention_mask, cache, logits_to_keep, size)
            return GMACausalLMOutput(logits=self.lm_head(kept), **{CACHE_NAME: cache})
        outputs = self.model(
            **inputs, attention_mask=attention_mask, cache=cache, use_cache=use_cache, **kwargs, return_dict=True
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return of_head(GMACausalLMOutput, outputs, loss=loss, logits=logits)


class GMAForMaskedLM(GMAPreTrainedModel):
    """The bidirectional GMA network with a masked-language-model head."""

    task_loss = "ForMaskedLM"
    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}
    _tp_plan = {"decoder": "colwise_gather_output"}

    def __init__(self, config: GMAConfig):
        config.require_style(type(self), is_causal=False)
        super().__init__(config)
        self.model = GMAModel(config)
        self.head = GMAPredictionHead(config)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> GMAMaskedLMOutput:
        """
        Args:
            labels: `[batch, N]`, -100 where a token is not to be predicted.
            Others: see `GMAModel.forward`.

        Returns:
            `logits` `[batch, N, vocabulary]`, and `loss` when labels are given.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
            return_dict=True,
        )
        logits = self.decoder(self.head(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return of_head(GMAMaskedLMOutput, outputs, loss=loss, logits=logits)


def _real_tokens(config: GMAConfig, input_ids, attention_mask, length: int) -> torch.Tensor | None:
    """Which tokens of this call are real: by the mask, else by the padding token, else all (None)."""
    if attention_mask is not None:
        return attention_mask[:, -length:]
    if input_ids is not None and config.pad_token_id is not None:
        return input_ids != config.pad_token_id
    return None


class GMAForSequenceClassification(GMAPreTrainedModel):
    """The GMA network with a classification (or regression) head over whole sequences."""

    task_loss = "ForSequenceClassification"
    # Its loss is a mean over the batch at hand, which Trainer has to average over accumulated batches
    accepts_loss_kwargs = False

    def __init__(self, config: GMAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GMAModel(config)
        self.classifier = GMAClassificationHead(config, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> GMASequenceClassifierOutput:
        """
        Args:
            labels: `[batch]` class indices, or floats for regression and multi-label (`config.problem_type`).
            Others: see `GMAModel.forward`.

        Returns:
            `logits` `[batch, labels]`, and `loss` when labels are given.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        mask = _real_tokens(self.config, input_ids, attention_mask, hidden_states.shape[1])
        logits = self.classifier(hidden_states, mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return of_head(GMASequenceClassifierOutput, outputs, loss=loss, logits=logits)


class GMAForTokenClassification(GMAPreTrainedModel):
    """The GMA network with a classification head over tokens."""

    task_loss = "ForTokenClassification"
    # Its loss is a mean over the batch at hand, which Trainer has to average over accumulated batches
    accepts_loss_kwargs = False

    def __init__(self, config: GMAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GMAModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> GMATokenClassifierOutput:
        """
        Args:
            labels: `[batch, N]` class indices, -100 to leave a token out.
            Others: see `GMAModel.forward`.

        Returns:
            `logits` `[batch, N, labels]`, and `loss` when labels are given.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{"use_cache": False, **kwargs, "return_dict": True},
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return of_head(GMATokenClassifierOutput, outputs, loss=loss, logits=logits)


class GMAForQuestionAnswering(GMAPreTrainedModel):
    """The GMA network with a head for the start and the end of an answer."""

    task_loss = "ForQuestionAnswering"

    def __init__(self, config: GMAConfig):
        super().__init__(config)
        self.model = GMAModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> GMAQuestionAnsweringOutput:
        """
        Args:
            start_positions, end_positions: `[batch]`, first and last token of the answer.
            Others: see `GMAModel.forward`.

        Returns:
            `start_logits` and `end_logits` `[batch, N]`, and `loss` when both positions are given.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{"use_cache": False, **kwargs, "return_dict": True},
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return of_head(
            GMAQuestionAnsweringOutput, outputs, loss=loss, start_logits=start_logits, end_logits=end_logits
        )


class GMAForMultipleChoice(GMAPreTrainedModel):
    """The GMA network with a head that scores each of several continuations."""

    # Its loss is a mean over the batch at hand, which Trainer has to average over accumulated batches
    accepts_loss_kwargs = False

    def __init__(self, config: GMAConfig):
        super().__init__(config)
        self.model = GMAModel(config)
        self.classifier = GMAClassificationHead(config, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> GMAMultipleChoiceOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `[batch, choices, N]`.
            inputs_embeds: `[batch, choices, N, embedding width]`.
            labels: `[batch]`, the index of the right choice.

        Returns:
            `logits` `[batch, choices]`, and `loss` when labels are given.
        """
        _require_one_input(input_ids, inputs_embeds)
        num_choices = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds = (
            None if x is None else x.flatten(0, 1)
            for x in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        )
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{"use_cache": False, **kwargs, "return_dict": True},
        )
        hidden_states = outputs.last_hidden_state
        mask = _real_tokens(self.config, input_ids, attention_mask, hidden_states.shape[1])
        logits = self.classifier(hidden_states, mask).view(-1, num_choices)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return of_head(GMAMultipleChoiceOutput, outputs, loss=loss, logits=logits)


# By the Auto class that opens it, the class for each task, and what Transformers' table of such classes is called by
_TASKS = {
    "AutoModel": (GMAModel, "MODEL"),
    "AutoModelForCausalLM": (GMAForCausalLM, "MODEL_FOR_CAUSAL_LM"),
    "AutoModelForMaskedLM": (GMAForMaskedLM, "MODEL_FOR_MASKED_LM"),
    "AutoModelForSequenceClassification": (GMAForSequenceClassification, "MODEL_FOR_SEQUENCE_CLASSIFICATION"),
    "AutoModelForTokenClassification": (GMAForTokenClassification, "MODEL_FOR_TOKEN_CLASSIFICATION"),
    "AutoModelForQuestionAnswering": (GMAForQuestionAnswering, "MODEL_FOR_QUESTION_ANSWERING"),
    "AutoModelForMultipleChoice": (GMAForMultipleChoice, "MODEL_FOR_MULTIPLE_CHOICE"),
}
# Checkpoints carry this code, so that they open without this package installed (`trust_remote_code=True`).
GMAConfig.register_for_auto_class()
for _auto_class, (_model_class, _) in _TASKS.items():
    _model_class.register_for_auto_class(_auto_class)
register_class_names(GMAConfig.model_type, {table: kind.__name__ for kind, table in _TASKS.values()})


__all__ = ["GMAPreTrainedModel", *(kind.__name__ for kind, _ in _TASKS.values())]
