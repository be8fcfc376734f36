"""Content of the table of a family, and the refusal of sources that no table can describe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ...model.modeling_gma import GMAForQuestionAnswering, GMAForTokenClassification, GMAPreTrainedModel


@dataclass(frozen=True)
class Head:
    """What a source's class becomes: the GMA class, and its modules beside the bare network."""

    gma_class: type[GMAPreTrainedModel]
    modules: dict[str, str] = field(default_factory=dict)
    # Modules that the GMA class has no place for; they are named in a warning.
    dropped: tuple[str, ...] = ()
    # A weight that the source's forward does not use, unless it is tied to one that it does.
    unused: str | None = None
    # Fields of the source's config that must have one value.
    requires: dict[str, Any] = field(default_factory=dict)


# As all families have them
TOKEN_CLASSIFIER = Head(GMAForTokenClassification, {"classifier": "classifier"})
QUESTION_ANSWERING = Head(GMAForQuestionAnswering, {"qa_outputs": "qa_outputs"})


@dataclass(frozen=True)
class Family:
    """
    An architecture of Transformers: how its config, its network and its heads become those of GMA.

    Module names are those of Transformers 5 and of this package; `{i}` is the index of a layer. A module that becomes
    several is cut along its outputs (GPT-2's queries, keys and values).
    """

    name: str
    prefix: str  # of the bare network in a model with a head
    network: dict[str, str]
    layer: dict[str, str | tuple[str, ...]]
    heads: dict[str, Head]
    to_gma_config: Callable[[PreTrainedConfig], dict[str, Any]]
    unused_positions: Callable[[PreTrainedConfig], int] = lambda config: 0  # rows before the first token's position
    # By which the queries of a layer are multiplied where the source scales its scores otherwise than 1 / sqrt(width)
    query_factor: Callable[[PreTrainedConfig, int], float] = lambda config, layer: 1.0


def refuse(config: PreTrainedConfig, **allowed: Any) -> None:
    """
    Refuse a source whose config has another value than the one allowed.

    Raises:
        ValueError: that names the field and both values.
    """
    for name, value in allowed.items():
        if (actual := getattr(config, name, value)) != value:
            raise ValueError(
                f"`source` must have `{name}={value!r}` in its config to be converted, but there it is {actual!r}."
            )
