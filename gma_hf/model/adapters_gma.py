"""What PEFT adapts in a GMA model when its user names no modules."""

import sys


# The projections of GMA layers and of softmax layers; a stack without softmax layers has the first and the last alone
_PROJECTIONS = ["qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
_TARGETS = {
    "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING": ["qkv_proj", "k_proj", "v_proj", "down_proj"],
    "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING": ["down_proj"],
    "TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING": ["attention_norm", "mlp_norm"],
}


def tell_peft(model_type: str) -> None:
    """
    Name the default target modules of a model type to PEFT, if it has been imported. PEFT has a table of them for each
    method, to which a new architecture adds its own row.
    """
    constants = sys.modules.get("peft.utils.constants")
    for name, table in vars(constants).items() if constants else ():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            table.setdefault(model_type, list(_TARGETS.get(name, _PROJECTIONS)))
