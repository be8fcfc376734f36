"""Configuration of the GMA model family."""

import difflib
import math
from dataclasses import field, fields

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .adapters_gma import tell_peft
from .compat_gma import allow_layer_type


LAYER_TYPES = ("gma", "full_attention", "sliding_attention")
CHOICES = {
    "norm_position": ("pre", "post"),
    "position_embedding": ("learned", "none"),
    "hidden_act": tuple(ACT2FN),
    "classifier_act": tuple(ACT2FN),
    "classifier_pooling": ("cls", "mean"),
    "mixer_backend": ("auto", "torch", "triton"),
}
allow_layer_type("gma")

# Every Auto class that opens a checkpoint as custom code, by the style that it makes sense for.
_AUTO_MAP = {
    "AutoConfig": "configuration_gma.GMAConfig",
    "AutoModel": "modeling_gma.GMAModel",
    "AutoModelForSequenceClassification": "modeling_gma.GMAForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gma.GMAForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_gma.GMAForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_gma.GMAForMultipleChoice",
}
_AUTO_MAP_CAUSAL = {"AutoModelForCausalLM": "modeling_gma.GMAForCausalLM"}
_AUTO_MAP_BIDIRECTIONAL = {"AutoModelForMaskedLM": "modeling_gma.GMAForMaskedLM"}


@strict
class GMAConfig(PreTrainedConfig):
    r"""
    Configuration of a GMA model: a GPT-2-style or BERT-style stack whose token mixer is Gaussian Mixture Attention.
    The default is the paper's causal mixer in a GPT-2-style network of GPT-2's size.

    Args:
        vocab_size (`int`): number of rows of the word embedding.
        hidden_size (`int`): width of the residual stream; a multiple of `num_attention_heads`.
        embedding_size (`int`, *optional*): width of the embeddings of words, positions and token types, which a linear
            map brings to `hidden_size` where that is another (ELECTRA; bidirectional only); `hidden_size` when `None`.
        num_hidden_layers (`int`): number of blocks.
        num_attention_heads (`int`): number of heads; the head width (and the value width d_v) is
            `hidden_size // num_attention_heads`.
        intermediate_size (`int`, *optional*): width of the MLP; `4 * hidden_size` when `None`.
        hidden_act (`str`): activation of the MLP and of the masked-LM head, a name that Transformers knows.
        hidden_dropout_prob (`float`): dropout on embeddings and on what each block adds to the residual stream.
        attention_probs_dropout_prob (`float`): dropout on attention weights in softmax layers. GMA forms no weights.
        classifier_dropout (`float`, *optional*): dropout before a classifier; `hidden_dropout_prob` when `None`.
        classifier_act (`str`): activation before the classifier of whole sequences in a bidirectional model.
        classifier_pooling (`"cls"` or `"mean"`): what such a classifier sees: one token, the first real one in a
            bidirectional model and the last one in a causal one, or the mean over the real tokens.
        max_position_embeddings (`int`): number of learned positions. With `position_embedding="none"` a config has no
            such attribute, since there is no limit.
        position_embedding (`"learned"` or `"none"`): absolute learned positions, or no positions at all.
        type_vocab_size (`int`): number of token types; 0 means no token type embedding.
        norm_position (`"pre"` or `"post"`): layer norm before each sublayer (GPT-2) or after it (BERT).
        layer_norm_eps (`float`): epsilon of the layer norms.
        initializer_range (`float`): standard deviation of the normal initialisation.
        is_causal (`bool`): a token reads itself and what is before it (GPT-2), or the whole sequence (BERT).
        use_cache (`bool`): whether a causal model returns its recurrent state by default.
        tie_word_embeddings (`bool`): whether the language-model head shares the word embedding.
        layer_types (`list[str]`, *optional*): per layer `"gma"`, `"full_attention"` (softmax) or
            `"sliding_attention"` (softmax in a window, causal only); all `"gma"` when `None`.
        sliding_window (`int`, *optional*): tokens that a `"sliding_attention"` layer sees, itself included.
        num_components (`int`): K, the Gaussian components of each head.
        routing_dim (`int`, *optional*): d_r, the width of queries and keys of a GMA head; the head width when `None`.
        variance_floor (`float`): eps_sigma in `sigma^2 = softplus(omega) + eps_sigma` (paper section 3.7).
        read_epsilon (`float`): eps in the read `O = GammaQ M / (GammaQ z + eps)`.
        chunk_size (`int`): tokens per chunk of the causal scan in PyTorch, at most 256; changes speed and memory, not
            the result. Our kernels have 64.
        routing_temperature (`float`, *optional*): what the scores are scaled by at the start of training (smaller:
            smoother responsibilities). It goes into the initial variances, or, with `normalize_routing`, into the
            temperatures. When `None`, 0.2 at routing width 32, and what spreads the scores as far at other widths.
        normalize_routing (`bool`): RMS-normalise queries and keys, which start as the same map, and multiply the
            scores by a learned temperature per head and side (reading, writing). Not in the paper; off by default.
        mixture_rate (`float`): how many times as fast as other weights the components (means, variances, priors,
            temperatures) learn under an optimiser of the Adam family: their parameters are kept divided by it. Not in
            the paper, but for 1.
        conv_kernel_size (`int`): taps of a depthwise convolution of q, k and v with a residual path (causal, or
            centred in a bidirectional model, then odd); 0 means none. Not in the paper; off by default.
        forget_gate (`bool`): one data-dependent decay in (0, 1) per head and token on the whole state, memory and
            mass alike. Causal only. Not in the paper; off by default.
        output_gate (`bool`): what a token reads is multiplied by `silu` of a linear map of the layer's input, before
            the output projection. Not in the paper; off by default.
        read_exponent (`float` or `"learned"`): p, by which a query weighs a component with `gamma_k z_k^(1 - p)`. 0 is
            the paper's read; with 1 each component answers with the mean of what was written into it, so that what is
            rare is not drowned by what is common. `"learned"` is one exponent per head and layer, spread over the
            heads at the start. Not in the paper, but for 0.
        mixer_backend (`"auto"`, `"torch"` or `"triton"`): what computes the causal mixer: PyTorch alone, or our
            Triton kernels (an NVIDIA GPU of compute capability 8.0 or more, up to 256 components, not float64). For
            half-precision inputs the kernels round some factors of their matrix products to 10 bits or more; for
            float32 they are as good as float32. `"auto"` takes the kernels where they take the inputs, else PyTorch.
            One token at a time and bidirectional models are always computed by PyTorch.

    Raises:
        ValueError: for a value that is not allowed; the sentence names the argument, its value and what is allowed.

    Example:

    ```python
    >>> from gma_hf import GMAConfig, GMAForCausalLM
    >>> config = GMAConfig.gpt2_style(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> model = GMAForCausalLM(config)
    ```
    """

    model_type = "gma"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "embeddings.word_embeddings": "embedding_rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    embedding_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    classifier_act: str = "tanh"
    classifier_pooling: str = "cls"
    max_position_embeddings: int | None = field(default_factory=lambda: 1024)  # no attribute of the class
    position_embedding: str = "learned"
    type_vocab_size: int = 0
    norm_position: str = "pre"
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    is_causal: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    layer_types: list[str] | tuple[str, ...] | None = None
    sliding_window: int | None = None
    num_components: int = 64
    routing_dim: int | None = None
    variance_floor: float | int = 1e-3
    read_epsilon: float | int = 1e-6
    chunk_size: int = 64
    routing_temperature: float | int | None = None
    normalize_routing: bool = False
    mixture_rate: float | int = 1.0
    conv_kernel_size: int = 0
    forget_gate: bool = False
    output_gate: bool = False
    read_exponent: float | int | str = 0.0
    mixer_backend: str = "auto"

    def __post_init__(self, **kwargs):
        for name in kwargs:
            similar = difflib.get_close_matches(name, _ALL_FIELDS, n=1, cutoff=0.88)
            if similar and name not in _ALL_FIELDS:
                raise ValueError(f"`{name}` is no field of GMAConfig, which may be `{similar[0]}`.")
        self.layer_types = ["gma"] * self.num_hidden_layers if self.layer_types is None else list(self.layer_types)
        self.settle()
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if self.routing_dim is None:
            self.routing_dim = self.head_dim
        if self.routing_temperature is None:
            self.routing_temperature = 0.2 * math.sqrt(32 / self.routing_dim)
        if self.classifier_dropout is None:
            self.classifier_dropout = self.hidden_dropout_prob
        super().__post_init__(**{**kwargs, "auto_map": self.auto_map})

    def __eq__(self, other: object) -> bool:
        def values(config: object) -> list:  # of which a config may have one less
            return [getattr(config, field.name, None) for field in fields(self)]

        return type(self) is type(other) and values(self) == values(other)

    def to_dict(self) -> dict:
        """Return the config as a dictionary. PEFT asks for it before it looks up what to adapt in such a model."""
        tell_peft(self.model_type)
        return super().to_dict()

    def settle(self) -> None:
        """
        Checks the values and makes `auto_map` fit them. Models call it too, since `from_pretrained(..., name=value)`
        sets attributes of a config that has been checked already.

        Raises:
            ValueError: for a value that is not allowed.
        """
        self._check_each()
        self._check_together()
        self.validate_layer_type()
        if self.position_embedding == "none":  # libraries take the attribute for a limit
            vars(self).pop("max_position_embeddings", None)
        # Only the class that is saved enters the map by itself, but a checkpoint is to open under every Auto class.
        self.auto_map = {**_AUTO_MAP, **(_AUTO_MAP_CAUSAL if self.is_causal else _AUTO_MAP_BIDIRECTIONAL)}

    def require_style(self, model_class: type, is_causal: bool) -> None:
        """Refuse a model of the other style, with a ValueError."""
        if self.is_causal != is_causal:
            raise ValueError(
                f"`is_causal` must be {is_causal} for {model_class.__name__}, but it is {self.is_causal}."
            )

    @property
    def position_limit(self) -> int | None:
        """Number of tokens that a sequence may have, or None where there are no positions."""
        return self.max_position_embeddings if self.position_embedding == "learned" else None

    @property
    def head_dim(self) -> int:
        """Width of a head: of its values, and of queries and keys in softmax layers."""
        return self.hidden_size // self.num_attention_heads

    @property
    def initial_variance(self) -> float:
        """sigma^2 at the start of training: 1, or what scales the scores by `routing_temperature`."""
        return 1.0 if self.normalize_routing else 1 / self.routing_temperature

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of what adds to the residual stream: in a pre-norm stack the stream grows with
        the depth unless these projections start smaller (GPT-2)."""
        return self.initializer_range / (math.sqrt(2 * self.num_hidden_layers) if self.norm_position == "pre" else 1)

    def _check_each(self) -> None:
        """Check each field for itself."""
        at_least_one = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
        at_least_one += ["num_components", "chunk_size"]
        if self.position_embedding == "learned":
            at_least_one.append("max_position_embeddings")
        widths = ("routing_dim", "intermediate_size", "embedding_size")
        at_least_one += [name for name in widths if getattr(self, name) is not None]
        for name in at_least_one:
            if (value := getattr(self, name, None)) is None or value < 1:
                raise ValueError(f"`{name}` must be at least 1, but it is {value}.")
        for name in ("variance_floor", "read_epsilon", "routing_temperature", "mixture_rate", "layer_norm_eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be greater than 0 and finite, but it is {value}.")
        if self.chunk_size > 256:
            raise ValueError(f"`chunk_size` must be at most 256, but it is {self.chunk_size}.")
        if self.read_exponent != "learned" and not (
            isinstance(self.read_exponent, (int, float)) and 0 <= self.read_exponent <= 1
        ):
            raise ValueError(
                f"`read_exponent` must be a number from 0 to 1, or 'learned', but it is {self.read_exponent!r}."
            )
        for name in ("type_vocab_size", "conv_kernel_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 (none) or more, but it is {getattr(self, name)}.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and less than 1, but it is {getattr(self, name)}.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, but it is {getattr(self, name)!r}.")

    def _check_together(self) -> None:
        """Check what one field allows of another."""
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` must be at least 0 and less than `vocab_size`, {self.vocab_size}, but it is "
                f"{self.pad_token_id}."
            )
        if self.routing_temperature is not None and self.variance_floor >= self.initial_variance:
            raise ValueError(
                f"`variance_floor` must be less than the variance at the start, {self.initial_variance}, but it is "
                f"{self.variance_floor}."
            )
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, but {self.hidden_size} is not a multiple "
                f"of {self.num_attention_heads}."
            )
        if self.is_causal and self.embedding_size not in (None, self.hidden_size):
            raise ValueError(
                f"`embedding_size` must be `hidden_size`, {self.hidden_size}, in a causal model, but it is "
                f"{self.embedding_size}."
            )
        if not self.is_causal and self.forget_gate:
            raise ValueError(
                "`forget_gate` must be False in a bidirectional model (`is_causal=False`), but it is True."
            )
        if not self.is_causal and self.mixer_backend not in ("auto", "torch"):
            raise ValueError(
                f"`mixer_backend` must be auto or torch in a bidirectional model (`is_causal=False`), but it is "
                f"{self.mixer_backend!r}."
            )
        if not self.is_causal and self.conv_kernel_size > 0 and self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"`conv_kernel_size` must be odd in a bidirectional model (`is_causal=False`), where the kernel is "
                f"centred, but it is {self.conv_kernel_size}."
            )

    def validate_layer_type(self) -> None:
        """Checks `layer_types` against the three that a GMA stack can hold (the base class does not know `"gma"`)."""
        for layer_type in self.layer_types:
            if layer_type not in LAYER_TYPES:
                raise ValueError(f"`layer_types` may hold {', '.join(LAYER_TYPES)}, but one is {layer_type!r}.")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` must have one entry per layer, but it has {len(self.layer_types)} and "
                f"`num_hidden_layers` is {self.num_hidden_layers}."
            )
        if "sliding_attention" in self.layer_types:
            if not self.is_causal:
                raise ValueError(
                    "`layer_types` may hold sliding_attention in a causal model only, but `is_causal` is False."
                )
            if self.sliding_window is None or self.sliding_window < 1:
                raise ValueError(
                    f"`sliding_window` must be at least 1 where `layer_types` holds sliding_attention, but it is "
                    f"{self.sliding_window}."
                )

    @classmethod
    def gpt2_style(cls, **kwargs) -> "GMAConfig":
        """A causal pre-norm stack with GPT-2's choices; `kwargs` are `GMAConfig` arguments and win."""
        choices = {"is_causal": True, "norm_position": "pre", "hidden_act": "gelu_new", "type_vocab_size": 0}
        choices |= {"vocab_size": 50257, "max_position_embeddings": 1024, "layer_norm_eps": 1e-5}
        return cls(**{**choices, **kwargs})

    @classmethod
    def recommended(cls, **kwargs) -> "GMAConfig":
        """
        What we know to be best over recall, perplexity and speed together: the paper's mixer with our additions, in a
        stack of `gpt2_style`, or with `is_causal=False` of `bert_style`. `kwargs` are `GMAConfig` arguments and win.
        """
        choices = {"normalize_routing": True, "mixture_rate": 4.0, "read_exponent": "learned", "output_gate": True}
        if not kwargs.get("is_causal", True):
            return cls.bert_style(**{**choices, "conv_kernel_size": 3, **kwargs})
        choices |= {"conv_kernel_size": 4, "forget_gate": True, "position_embedding": "none"}
        return cls.gpt2_style(**{**choices, **kwargs})

    @classmethod
    def bert_style(cls, **kwargs) -> "GMAConfig":
        """A bidirectional post-norm stack with BERT's choices; `kwargs` are `GMAConfig` arguments and win."""
        choices = {"is_causal": False, "norm_position": "post", "hidden_act": "gelu", "type_vocab_size": 2}
        choices |= {"vocab_size": 30522, "max_position_embeddings": 512, "layer_norm_eps": 1e-12}
        choices |= {"pad_token_id": 0, "use_cache": False}
        return cls(**{**choices, **kwargs})


_NAMES = [field.name for field in fields(GMAConfig)]
_ALL_FIELDS = (*_NAMES, "num_labels")
OWN_FIELDS = tuple(_NAMES[_NAMES.index("vocab_size") :])
MIXER_FIELDS = tuple(_NAMES[_NAMES.index("num_components") :])  # they stand last in the class

__all__ = ["GMAConfig"]
