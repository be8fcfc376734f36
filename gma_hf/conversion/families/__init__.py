"""
Tables of which module of a source becomes which module of a GMA network, family by family. A new family is a table
here and its sizes in tests/conversion/conftest.py.
"""

from transformers import PreTrainedConfig

from .bert import BERT, CAMEMBERT, DISTILBERT, ELECTRA, ROBERTA, XLM_ROBERTA
from .gpt import GPT2, GPT_NEO, OPT


# By their `model_type` in Transformers
FAMILIES = {
    "gpt2": GPT2,
    "gpt_neo": GPT_NEO,
    "opt": OPT,
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "camembert": CAMEMBERT,
    "electra": ELECTRA,
    "distilbert": DISTILBERT,
}

ROTATES = "its attention rotates queries and keys by their positions, and components stand still"
# What the config of a source that has no table may hold, and why it will have none
OBSTACLES = {
    "is_encoder_decoder": "its decoder attends to an encoder",
    "relative_attention": "its attention adds relative positions to scores between tokens, which GMA never forms",
    "rope": ROTATES,
    "rotary": ROTATES,
}


def unsupported(config: PreTrainedConfig, class_name: str, source: str = "it") -> ValueError:
    """Return the refusal of a source that has no table here, with the reason where its config holds one."""
    if config.model_type in FAMILIES:
        classes = ", ".join(FAMILIES[config.model_type].heads)
        return ValueError(f"`source` must be one of {classes}, but {source} is a {class_name}.")
    held = [name for name, value in config.to_dict().items() if value]
    reasons = [reason for start, reason in OBSTACLES.items() if any(name.startswith(start) for name in held)]
    why = f": {reasons[0]}" if reasons else ""
    names = ", ".join(FAMILIES)
    return ValueError(
        f"`source` must be of type {names}, but {source} is a {class_name} of type {config.model_type!r}{why}."
    )


__all__ = ["FAMILIES", "unsupported"]
