"""
This package serves GMA models in vLLM. vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in
each of its processes; users need not import anything.
"""


def register() -> None:
    """Register with vLLM the model classes of GMA, and the backend that describes a step to their layers."""
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

    # The classes are registered by name, so that vLLM imports them only for a checkpoint that needs them
    ModelRegistry.register_model("GMAForCausalLM", f"{__name__}.models:ServedGMAForCausalLM")
    ModelRegistry.register_model("GMAModel", f"{__name__}.models:ServedGMAModel")
    if "GMA" not in MambaAttentionBackendEnum.__members__:  # vLLM may call `register` twice
        MambaAttentionBackendEnum.register("GMA", f"{__name__}.batches.GMABackend")
