"""The Auto classes of Transformers, told of the model type `"gma"`."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .model.configuration_gma import GMAConfig
from .model.modeling_gma import (
    GMAForCausalLM,
    GMAForMaskedLM,
    GMAForMultipleChoice,
    GMAForQuestionAnswering,
    GMAForSequenceClassification,
    GMAForTokenClassification,
    GMAModel,
)


def register() -> None:
    """Make the Auto classes know our config and models."""
    AutoConfig.register("gma", GMAConfig)
    AutoModel.register(GMAConfig, GMAModel)
    AutoModelForCausalLM.register(GMAConfig, GMAForCausalLM)
    AutoModelForMaskedLM.register(GMAConfig, GMAForMaskedLM)
    AutoModelForSequenceClassification.register(GMAConfig, GMAForSequenceClassification)
    AutoModelForTokenClassification.register(GMAConfig, GMAForTokenClassification)
    AutoModelForQuestionAnswering.register(GMAConfig, GMAForQuestionAnswering)
    AutoModelForMultipleChoice.register(GMAConfig, GMAForMultipleChoice)
