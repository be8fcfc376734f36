"""
Conversion of models of Transformers to GMA, family by family: weights, positions and mixtures; and distillation of the
converted models.
"""

from typing import TYPE_CHECKING, Any

from .convert import convert_checkpoint


if TYPE_CHECKING:
    from .distillation import DistillationArguments, DistillationTrainer, distill

__all__ = ["DistillationArguments", "DistillationTrainer", "convert_checkpoint", "distill"]


def __getattr__(name: str) -> Any:
    """Import the parts that need Trainer, and so the extra `train`, only when they are used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import distillation

    return getattr(distillation, name)
