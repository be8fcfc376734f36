"""
Models of Transformers to GMA, by families: weights, positions, mixtures, what `gma-hf convert` writes, and
distillation.
"""

from typing import TYPE_CHECKING, Any

from .convert import convert_checkpoint


if TYPE_CHECKING:
    from .distillation import DistillationArguments, DistillationTrainer, distill

__all__ = ["DistillationArguments", "DistillationTrainer", "convert_checkpoint", "distill"]


def __getattr__(name: str) -> Any:
    """Import what needs Trainer, and with it the extra `train`, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import distillation

    return getattr(distillation, name)
