"""
Gaussian Mixture Attention for Hugging Face Transformers.

Importing this package makes the Auto classes of Transformers know the model type `"gma"`.
"""

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

from .conversion import convert_checkpoint
from .hub.publish import publish
from .model.configuration_gma import GMAConfig
from .model.modeling_gma import (
    GMAForCausalLM,
    GMAForMaskedLM,
    GMAForMultipleChoice,
    GMAForQuestionAnswering,
    GMAForSequenceClassification,
    GMAForTokenClassification,
    GMAModel,
    GMAPreTrainedModel,
)
from .state import GMAState


__version__ = "0.1.0"

AutoConfig.register("gma", GMAConfig)
AutoModel.register(GMAConfig, GMAModel)
AutoModelForCausalLM.register(GMAConfig, GMAForCausalLM)
AutoModelForMaskedLM.register(GMAConfig, GMAForMaskedLM)
AutoModelForSequenceClassification.register(GMAConfig, GMAForSequenceClassification)
AutoModelForTokenClassification.register(GMAConfig, GMAForTokenClassification)
AutoModelForQuestionAnswering.register(GMAConfig, GMAForQuestionAnswering)
AutoModelForMultipleChoice.register(GMAConfig, GMAForMultipleChoice)

__all__ = [
    "GMAConfig",
    "GMAForCausalLM",
    "GMAForMaskedLM",
    "GMAForMultipleChoice",
    "GMAForQuestionAnswering",
    "GMAForSequenceClassification",
    "GMAForTokenClassification",
    "GMAModel",
    "GMAPreTrainedModel",
    "GMAState",
    "convert_checkpoint",
    "publish",
]
