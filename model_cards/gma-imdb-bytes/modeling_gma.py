"""
The GMA network, bare and with a head per task. They share a file, since a checkpoint of any of them is to open under
every Auto class, and Transformers copies only the files that the one of the saved class imports.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_gma import (
    ForgetGate,
    GaussianMixture,
    GaussianMixtureAttention,
    QKVProjection,
    ShortConvolution,
    SoftmaxAttention,
)
from .blocks_gma import GMABlock, GMAClassificationHead, GMAEmbeddings, GMAPredictionHead
from .cache_gma import check_cache
from .configuration_gma import GMAConfig
from .identity_gma import identify
from .masking_gma import (
    check_mask_shape,
    create_masks,
    create_masks_for_generate,
    find_segments,
    first_of_segment,
    has_padding_on_the_right,
    last_real_token,
    positions_of_real_tokens,
)
from .outputs_gma import (
    GMACausalLMOutput,
    GMAMaskedLMOutput,
    GMAModelOutput,
    GMAMultipleChoiceOutput,
    GMAQuestionAnsweringOutput,
    GMASequenceClassifierOutput,
    GMATokenClassifierOutput,
)
from .segments_gma import encode_segments


# Tokens of a prompt that are read at once: longer ones are read in pieces, so that memory stays that of a piece.
PREFILL_CHUNK = 8192
# Time scales, in tokens, over which the heads of a layer forget at the start of training, shortest and longest.
FORGET_TIME_SCALES = (8.0, 400.0)


class GMAPreTrainedModel(PreTrainedModel):
    """Initialisation, and what Transformers asks about the family."""

    config_class = GMAConfig
    config: GMAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GMAEmbeddings", "GMABlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = ["mixture"]
    _can_record_outputs = {
        "hidden_states": GMABlock,
        "attentions": [GaussianMixtureAttention, SoftmaxAttention],
        "responsibilities": OutputRecorder(GaussianMixtureAttention, index=2),
    }

    def __init__(self, config: GMAConfig, *args, **kwargs):
        config.settle()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Called for modules that own parameters only: a projection that starts otherwise says so itself (`init_std`)
        super()._init_weights(module)
        if (std := getattr(module, "init_std", None)) is not None:
            init.normal_(module.weight, std=std)
        if isinstance(module, GaussianMixture):
            self._init_mixture(module)
        elif isinstance(module, QKVProjection):
            init.copy_(module.weight, module.initial_weight(self.config.initializer_range))
        elif isinstance(module, ShortConvolution):
            init.zeros_(module.weight)
        elif isinstance(module, ForgetGate):
            shortest, longest = (math.log(tokens) for tokens in FORGET_TIME_SCALES)
            time_scales = torch.linspace(shortest, longest, module.out_features).exp()
            init.copy_(module.bias, (-1 / time_scales).exp().logit())

    def _init_mixture(self, mixture: GaussianMixture) -> None:
        """Means of equal norm, since otherwise |mu|^2 decides and few components take everything; equal variances
        and priors; and scores small enough for the posterior to start smooth."""
        means = torch.randn(mixture.means.shape)
        init.copy_(mixture.means, nn.functional.normalize(means, dim=-1) * math.sqrt(means.shape[-1]))
        init.zeros_(mixture.prior_logits)
        if mixture.log_temperature is not None:
            init.constant_(mixture.log_temperature, math.log(self.config.routing_temperature))
        softplus = self.config.initial_variance - self.config.variance_floor
        init.constant_(mixture.raw_variances, softplus + math.log(-math.expm1(-softplus)))


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
        self.final_norm = None
        if config.norm_position == "pre":
            self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.identity = identify(config, self)  # what a state that leaves this process is recognised by
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value
        self.identity = identify(self.config, self)  # of the vocabulary as it is now

    @merge_with_config_defaults
    @capture_outputs
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
        output_responsibilities: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GMAModelOutput:
        """
        Args:
            input_ids: token ids `[batch, N]`; exactly one of `input_ids` and `inputs_embeds`. Or, in a bidirectional
                model without additions, a list of them, the segments of a document, with lists for `attention_mask`
                and `token_type_ids`: see `encode_segments`.
            attention_mask: `[batch, tokens read before + N]`, 1 at real tokens and 0 at padding, anywhere in the row;
                or a dict of masks by layer type, as `generate` makes it for static caches.
            token_type_ids: `[batch, N]`; zeros when None.
            position_ids: `[batch, N]`; when None they count the real tokens of the row. Where they restart, another
                document begins, which reads nothing of the one before; so it does at `cu_seq_lens_q`, and where
                `seq_idx` changes (`DataCollatorWithFlattening` gives these names).
            past_key_values: the states of what was read before (causal only).
            inputs_embeds: `[batch, N, hidden]`.
            use_cache: whether to return the states (causal only); the config's choice when None.
            output_attentions: whether to return the affinity of each layer, `[batch, heads, N, N]`.
            output_responsibilities: whether to return, for each GMA layer, the responsibilities of queries and of
                keys, a pair of `[batch, heads, N, K]`. Any head takes it too.

        Returns:
            `last_hidden_state` `[batch, N, hidden]`; `past_key_values`, `hidden_states`, `attentions`,
            `responsibilities` as asked for.

        Raises:
            ValueError: for a mask of the wrong shape, more tokens than learned positions, a cache of another config.
        """
        if isinstance(input_ids, (list, tuple)):
            others = {"position_ids": position_ids, "past_key_values": past_key_values, "inputs_embeds": inputs_embeds}
            others |= {"output_attentions": output_attentions, **kwargs}
            others |= {"output_responsibilities": output_responsibilities}
            hidden_states = encode_segments(self, input_ids, attention_mask, token_type_ids, others)
            return GMAModelOutput(last_hidden_state=hidden_states)
        _require_one_input(input_ids, inputs_embeds)
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        past_key_values = self._prepare_cache(past_key_values, use_cache, inputs_embeds.shape[0])
        segments = self._find_segments(inputs_embeds, attention_mask, position_ids, past_key_values, kwargs)
        masks = self._prepare_masks(inputs_embeds, attention_mask, position_ids, past_key_values, segments)
        position_ids = self.prepare_positions(inputs_embeds, attention_mask, position_ids, past_key_values, segments)

        hidden_states = self.embeddings(inputs_embeds, position_ids, token_type_ids)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_responsibilities is None:
            output_responsibilities = getattr(self.config, "output_responsibilities", False)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer.layer_type],
                past_key_values=past_key_values,
                output_attentions=output_attentions,
                output_responsibilities=output_responsibilities,
                segments=segments,
                **kwargs,
            )
        if self.final_norm is not None:
            hidden_states = self.final_norm(hidden_states)
        return GMAModelOutput(last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None)

    def _prepare_cache(self, cache: Cache | None, use_cache: bool, batch_size: int) -> Cache | None:
        if cache is not None:
            if not self.config.is_causal:
                raise ValueError("`past_key_values` must be None in a bidirectional model, but a cache is given.")
            check_cache(cache, self.config, batch_size)
        elif use_cache and self.config.is_causal:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            cache.identity = self.identity
        return cache

    def _find_segments(self, inputs_embeds, attention_mask, position_ids, cache, kwargs):
        """See `find_segments`. A compiled graph cannot ask whether positions restart, and softmax layers with a cache
        have no mask for it if they do: there each row is taken for one document."""
        if torch.compiler.is_compiling() and cache is not None and set(self.config.layer_types) != {"gma"}:
            return None
        seen = 0 if cache is None else cache.get_seq_length()
        borders = (kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx"))
        return find_segments(attention_mask, position_ids, *borders, inputs_embeds.shape[:2], seen)

    def _prepare_masks(self, inputs_embeds, attention_mask, position_ids, cache, segments):
        """A mask per layer type, unless `generate` has made them already."""
        if isinstance(attention_mask, dict):
            return attention_mask
        if attention_mask is not None:
            check_mask_shape(attention_mask, *inputs_embeds.shape[:2], cache)
        return create_masks(
            self.config,
            attention_mask,
            segments,
            inputs_embeds=inputs_embeds,
            past_key_values=cache,
            position_ids=position_ids,
        )

    def prepare_positions(self, inputs, attention_mask, position_ids=None, cache=None, segments=None):
        """Position ids, `[batch or 1, N]`, or None without learned positions; `inputs`: ids or embeddings."""
        if self.embeddings.position_embeddings is None:
            return None
        length = inputs.shape[1]
        if position_ids is None and segments is not None:
            position_ids = torch.arange(length, device=segments.device) - first_of_segment(segments)
        if position_ids is None:
            if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
                position_ids = positions_of_real_tokens(attention_mask)[:, -length:]
            else:
                seen = cache.get_seq_length() if cache is not None else 0
                position_ids = (torch.arange(length, device=inputs.device) + seen)[None]
        limit = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and (last := int(position_ids.max())) >= limit:
            raise ValueError(
                f"`input_ids` may reach position {limit - 1}, since `max_position_embeddings` is {limit}, but they "
                f"reach position {last}."
            )
        return position_ids


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


def _require_style(model_class: type, config: GMAConfig, is_causal: bool) -> None:
    if config.is_causal != is_causal:
        raise ValueError(f"`is_causal` must be {is_causal} for {model_class.__name__}, but it is {config.is_causal}.")


class GMAForCausalLM(GMAPreTrainedModel, GenerationMixin):
    """The causal GMA network with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.word_embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    create_masks_for_generate = staticmethod(create_masks_for_generate)

    def __init__(self, config: GMAConfig):
        _require_style(type(self), config, is_causal=True)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> GMACausalLMOutput:
        """
        Args:
            labels: `[batch, N]`, shifted inside; -100 is left out of the loss.
            logits_to_keep: the last so many positions (0: all), or the positions, as Transformers defines it.
            Others: see `GMAModel.forward`.

        Returns:
            `logits` `[batch, positions kept, vocabulary]`, `loss` when labels are given, `past_key_values`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return GMACausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            responsibilities=outputs.responsibilities,
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        # Transformers gives padding on the right position 0, and what is generated after it position 1
        attention_mask = model_kwargs.get("attention_mask")
        if attention_mask is not None and attention_mask.ndim == 2:
            return positions_of_real_tokens(attention_mask)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def _prefill(self, input_ids, generation_config, model_kwargs, **kwargs):
        """As in Transformers; a long prompt is read in pieces unless the user says in which."""
        in_window = "sliding_attention" in self.config.layer_types
        is_pure = set(self.config.layer_types) == {"gma"}
        is_padded_right = has_padding_on_the_right(model_kwargs.get("attention_mask"))
        is_long = input_ids.shape[1] > PREFILL_CHUNK and model_kwargs.get("past_key_values") is not None
        if is_long and generation_config.prefill_chunk_size is None and (is_pure or not is_padded_right):
            generation_config.prefill_chunk_size = PREFILL_CHUNK
        in_chunks = generation_config.prefill_chunk_size is not None
        if is_padded_right and in_chunks and is_pure:
            # Only the logits of the last chunk come back, and a short row has its last real token in an earlier one.
            # A state does not mind where padding is, so that for this call it goes to the left
            input_ids, model_kwargs = self._padded_left(input_ids, model_kwargs)
        elif is_padded_right and (in_chunks or in_window):
            # Keys and values stay where they are, and a window would count the padding before what is generated
            raise ValueError(
                "`attention_mask` must have its padding on the left where `layer_types` holds sliding_attention, or "
                "any softmax layer and `prefill_chunk_size` is given, but a row ends with padding."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)

    def _assisted_decoding(self, input_ids, *args, **kwargs):
        """As in Transformers, which takes the logits of the last columns for those of the last tokens."""
        if has_padding_on_the_right(kwargs.get("attention_mask")):
            raise ValueError(
                "`attention_mask` must have its padding on the left in assisted and prompt-lookup decoding, but the "
                "row ends with padding."
            )
        return super()._assisted_decoding(input_ids, *args, **kwargs)

    @staticmethod
    def _padded_left(input_ids, model_kwargs):
        """The tokens of this call with the padding of each row in front, in whatever inputs there are."""
        mask, length = model_kwargs["attention_mask"], input_ids.shape[1]
        order = mask[:, -length:].long().argsort(dim=1, stable=True)
        moved = {"attention_mask": torch.cat([mask[:, :-length], mask[:, -length:].gather(1, order)], dim=1)}
        for name in ("position_ids", "token_type_ids", "inputs_embeds"):
            if (x := model_kwargs.get(name)) is not None:
                index = order[..., None].expand(-1, -1, x.shape[-1]) if x.ndim == 3 else order
                moved[name] = x.expand(len(order), *x.shape[1:]).gather(1, index)
        return input_ids.gather(1, order), {**model_kwargs, **moved}

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs):
        """As in Transformers; a row with padding on the right goes on from the logits of its last real token."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        if has_padding_on_the_right(attention_mask):
            embeds = inputs.get("inputs_embeds")
            length = (inputs["input_ids"] if embeds is None else embeds).shape[1]
            inputs["logits_to_keep"] = last_real_token(attention_mask[:, -length:])[:, None]
        return inputs


class GMAForMaskedLM(GMAPreTrainedModel):
    """The bidirectional GMA network with a masked-language-model head."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}
    _tp_plan = {"decoder": "colwise_gather_output"}

    def __init__(self, config: GMAConfig):
        _require_style(type(self), config, is_causal=False)
        super().__init__(config)
        self.model = GMAModel(config)
        self.head = GMAPredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
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
        **kwargs: Unpack[TransformersKwargs],
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
        )
        logits = self.decoder(self.head(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return GMAMaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            responsibilities=outputs.responsibilities,
        )


def _real_tokens(config: GMAConfig, input_ids, attention_mask, length: int) -> torch.Tensor | None:
    """Which tokens of this call are real: by the mask, else by the padding token, else all (None)."""
    if attention_mask is not None:
        return attention_mask[:, -length:]
    if input_ids is not None and config.pad_token_id is not None:
        return input_ids != config.pad_token_id
    return None


class GMAForSequenceClassification(GMAPreTrainedModel):
    """The GMA network with a classification (or regression) head over whole sequences."""

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
        **kwargs: Unpack[TransformersKwargs],
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
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        mask = _real_tokens(self.config, input_ids, attention_mask, hidden_states.shape[1])
        logits = self.classifier(hidden_states, mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return GMASequenceClassifierOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            responsibilities=outputs.responsibilities,
        )


class GMAForTokenClassification(GMAPreTrainedModel):
    """The GMA network with a classification head over tokens."""

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
        **kwargs: Unpack[TransformersKwargs],
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
            **{"use_cache": False, **kwargs},
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return GMATokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            responsibilities=outputs.responsibilities,
        )


class GMAForQuestionAnswering(GMAPreTrainedModel):
    """The GMA network with a head for the start and the end of an answer."""

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
        **kwargs: Unpack[TransformersKwargs],
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
            **{"use_cache": False, **kwargs},
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return GMAQuestionAnsweringOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            responsibilities=outputs.responsibilities,
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> GMAMultipleChoiceOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `[batch, choices, N]`.
            inputs_embeds: `[batch, choices, N, hidden]`.
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
            **{"use_cache": False, **kwargs},
        )
        hidden_states = outputs.last_hidden_state
        mask = _real_tokens(self.config, input_ids, attention_mask, hidden_states.shape[1])
        logits = self.classifier(hidden_states, mask).view(-1, num_choices)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return GMAMultipleChoiceOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            responsibilities=outputs.responsibilities,
        )


# Checkpoints carry this code, so that they open without this package installed (`trust_remote_code=True`).
GMAConfig.register_for_auto_class()
GMAModel.register_for_auto_class("AutoModel")
GMAForCausalLM.register_for_auto_class("AutoModelForCausalLM")
GMAForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
GMAForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
GMAForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
GMAForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
GMAForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")


__all__ = [
    "GMAPreTrainedModel",
    "GMAModel",
    "GMAForCausalLM",
    "GMAForMaskedLM",
    "GMAForSequenceClassification",
    "GMAForTokenClassification",
    "GMAForQuestionAnswering",
    "GMAForMultipleChoice",
]
