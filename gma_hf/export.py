"""
Write a model as one graph of tensors, for `torch.export` and ONNX. An encoder becomes one graph as a whole. A decoder
becomes the step that reads one token, with the state in and out. The graph runs without gma_hf.
"""

import os
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, PreTrainedModel

from .errors import extra
from .model.cache_gma import adopt, shapes_of


# Sizes of the example that is traced; any other works as well, 1 included
BATCH, LENGTH = 2, 9


class Encoder(nn.Module):
    """
    A bidirectional model, of any head, from tensors to tensors.

    Args:
        model: the model; its token types are an input only if it has any.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        names = ["input_ids", "attention_mask"]
        self.input_names = [*names, "token_type_ids"] if model.config.type_vocab_size else names
        with torch.no_grad():
            self.output_names = list(model(**self.example()["inputs"]).keys())

    def example(self) -> dict[str, dict[str, Tensor]]:
        """Return arguments of `forward` to trace it with."""
        size, kind = (BATCH, LENGTH), {"dtype": torch.long, "device": self.model.device}
        return {"inputs": {name: torch.ones(size, **kind) for name in self.input_names}}

    def dynamic_shapes(self) -> dict[str, dict[str, dict[int, Dim]]]:
        """Return the sizes that are left open: batch and length."""
        return {"inputs": {name: {0: Dim("batch"), 1: Dim("length")} for name in self.input_names}}

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return what the model gives (`output_names`) for `input_ids`, `attention_mask`, ... `[batch, N]`."""
        return self.model(**inputs).to_tuple()


class DecoderStep(nn.Module):
    """
    The reading of one token by a causal language model of GMA layers.

    The state is a dict of tensors, named as in `GMAState.tensors`: `layers.i.state` `[batch, heads, K, d_v + 1]` and,
    with a convolution, `layers.i.conv_tail` `[batch, W - 1, channels]`; with learned positions also `position`
    `[batch, 1]`, how many tokens were read. Zeros throughout are the state before the first token.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.input_names = ["input_ids", *self.initial_state()]
        self.output_names = ["logits", *(f"next.{name}" for name in self.initial_state())]

    def initial_state(self, batch: int = 1) -> dict[str, Tensor]:
        """Return the state of `batch` rows before the first token."""
        config, device, state = self.model.config, self.model.device, {}
        for index in range(config.num_hidden_layers):
            for name, shape in shapes_of(config).items():
                dtype = torch.float32 if name == "state" else self.model.dtype
                state[f"layers.{index}.{name}"] = torch.zeros(batch, *shape, dtype=dtype, device=device)
        if config.position_limit is not None:
            state["position"] = torch.zeros(batch, 1, dtype=torch.long, device=device)
        return state

    def example(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Return arguments of `forward` to trace it with."""
        ids = torch.ones(BATCH, 1, dtype=torch.long, device=self.model.device)
        return {"input_ids": ids, "state": self.initial_state(BATCH)}

    def dynamic_shapes(self) -> dict[str, dict]:
        """Return the sizes that are left open: the batch."""
        batch = {0: Dim("batch")}
        return {"input_ids": batch, "state": dict.fromkeys(self.initial_state(), batch)}

    def forward(self, input_ids: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits `[batch, vocabulary]` and the next state for a token per row, `[batch, 1]`, and the state."""
        config, position = self.model.config, state.get("position")
        cache = adopt(DynamicCache(config=config), config)
        for index, layer in enumerate(cache.layers):
            layer.update({name: state[f"layers.{index}.{name}"] for name in shapes_of(config)})
        logits = self.model(input_ids, position_ids=position, cache=cache, use_cache=True).logits
        after = {} if position is None else {"position": position + 1}
        for index, layer in enumerate(cache.layers):
            after |= {f"layers.{index}.{name}": tensor for name, tensor in layer.tensors.items()}
        return logits[:, -1], {name: after[name] for name in state}


def for_export(model: PreTrainedModel) -> Encoder | DecoderStep:
    """
    Return the module that is exported for `model`.

    Raises:
        ValueError: for a causal model without a language-model head, or with softmax layers, whose keys and values
            grow with each token.
    """
    if not model.config.is_causal:
        return Encoder(model)
    if not hasattr(model, "lm_head"):
        raise ValueError(
            f"`model` must be bidirectional or a GMAForCausalLM to be exported, but it is a causal "
            f"{type(model).__name__}."
        )
    if others := set(model.config.layer_types) - {"gma"}:
        raise ValueError(
            f"`model` must have GMA layers only to be exported as a decoder, but `layer_types` holds {min(others)!r}."
        )
    return DecoderStep(model)


def export(model: PreTrainedModel) -> ExportedProgram:
    """
    Return the program of `torch.export` for `model`, in inference, on its device. `Encoder` (bidirectional, batch and
    length open) and `DecoderStep` (causal, batch open) say what goes in and out.

    Raises:
        ValueError: for a model that cannot be exported, see `for_export`.
    """
    module = for_export(model.eval())
    return torch.export.export(module, (), kwargs=module.example(), dynamic_shapes=module.dynamic_shapes())


def export_onnx(model: PreTrainedModel, path: str | os.PathLike) -> None:
    """
    Write `model` as an ONNX file, with the inputs and outputs of `export` by name. The state that comes out has
    `next.` before its names. This needs `pip install gma-hf[onnx]`.

    Raises:
        ValueError: for a model that cannot be exported, see `for_export`.
        MissingExtra: without that extra.
    """
    with extra("onnx", "`export_onnx`"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    module = for_export(model.eval())
    with warnings.catch_warnings():
        # Of torch's own, by torch's own use of it
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", FutureWarning)
        torch.onnx.export(
            export(model),
            f=path,
            input_names=module.input_names,
            output_names=module.output_names,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
