"""GPT-2 and BERT families to GMA: weights, mixtures, and what `gma-hf convert` writes."""

from .convert import convert_checkpoint


__all__ = ["convert_checkpoint"]
