"""
GMA models in vLLM. vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its
processes; nothing else has to be imported.
"""


def register() -> None:
    """Make vLLM know the model classes of GMA, and how it describes a batch to their recurrent layers."""
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

    # By name, so that vLLM imports them only for a checkpoint that needs them
    ModelRegistry.register_model("GMAForCausalLM", f"{__name__}.models:ServedGMAForCausalLM")
    ModelRegistry.register_model("GMAModel", f"{__name__}.models:ServedGMAModel")
    if "GMA" not in MambaAttentionBackendEnum.__members__:  # it may be called twice
        MambaAttentionBackendEnum.register("GMA", f"{__name__}.batches.GMABackend")
