"""Models of Transformers to GMA, by families: weights, positions, mixtures, and what `gma-hf convert` writes."""

from .convert import convert_checkpoint


__all__ = ["convert_checkpoint"]
