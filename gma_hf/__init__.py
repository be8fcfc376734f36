"""
Gaussian Mixture Attention for Hugging Face Transformers.

Importing this package makes the Auto classes of Transformers know the model type `"gma"`.
"""

from .starting import module_to_run, start_recipe


__version__ = "0.1.0"
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

_module = module_to_run()
if _module.startswith(f"{__name__}.recipes."):
    start_recipe(_module.rpartition(".")[2])

# Not yet for `python -m gma_hf`, whose --help needs nothing of it: `gma_hf.cli.loading.load` executes this file again
if _module != __name__:
    from .auto import register
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

    register()
