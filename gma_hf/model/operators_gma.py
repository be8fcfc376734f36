"""
An operator of torch whose backward is written by hand: `torch.compile` takes it as one node, whatever the length, and
autograd keeps only what its backward asks for. A second derivative is refused.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


# A copy of these files that travels with a checkpoint registers operators of its own, whatever its folder is called
NAMESPACE = f"gma_{hashlib.sha256(__name__.encode()).hexdigest()[:12]}"


class CausalInputs(NamedTuple):
    """What an operator of the causal form takes. `weights`, `constant` and `centre` are those of `ScoreWeights`."""

    queries: Tensor  # [B, H, N, d_r]
    keys: Tensor  # [B, H, N, d_r]
    values: Tensor  # [B, H, N, d_v]
    weights: Tensor  # [2, H, 2 d_r, K]
    constant: Tensor  # [2, H, K]
    centre: Tensor  # [H, d_r]
    mask: Tensor | None  # [B, N], False where a token must not write
    log_decay: Tensor | None  # [B, H, N], at most 0
    document_ids: Tensor | None  # [B, N]
    read_exponent: Tensor | None  # [H]
    state: Tensor  # [B, H, K, d_v + 1]


class CausalGradients(NamedTuple):
    """The gradients of the inputs of the same names; what is not given has an empty one."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    constant: Tensor
    log_decay: Tensor
    read_exponent: Tensor
    state: Tensor


class BidirectionalInputs(NamedTuple):
    """What the operator of the bidirectional form takes; there may be fewer queries than keys, or more."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    constant: Tensor
    centre: Tensor
    mask: Tensor | None
    read_exponent: Tensor | None
    state: Tensor


class BidirectionalGradients(NamedTuple):
    """The gradients of the inputs of the same names; without a read exponent, its gradient is empty."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    constant: Tensor
    read_exponent: Tensor
    state: Tensor


class ConvolutionInputs(NamedTuple):
    """What the operator of the short convolution takes."""

    x: Tensor  # [B, N, C]
    weight: Tensor  # [C, W]
    mask: Tensor | None  # [B, N], False where a token is taken out
    order: Tensor | None  # [B, N], with a mask: which token comes n-th, the real ones first
    document_ids: Tensor | None  # [B, N]


class ConvolutionResults(NamedTuple):
    """The convolved tokens; the backward needs nothing but the inputs."""

    output: Tensor  # [B, N, C]


class ConvolutionGradients(NamedTuple):
    """The gradients of the inputs of the same names."""

    x: Tensor
    weight: Tensor


class Form(NamedTuple):
    """
    A computation as functions on named tensors. Its first results are its outputs, for the mixer two, what the tokens
    read and the last state; the others are for the backward. The functions that allocate also tell a compiler the
    shapes.
    """

    name: str
    inputs: type
    results: type
    gradients: type
    settings: str  # what comes after the inputs, in the language of torch's schemas
    new_results: Callable[..., tuple]  # (inputs, *settings) -> results, not yet filled
    forward: Callable[..., tuple]  # the same, filled
    new_gradients: Callable[..., tuple]  # (inputs) -> gradients, not yet filled
    backward: Callable[..., tuple]  # (*gradients of the outputs, inputs, results, *settings) -> gradients
    outputs: int = 2


class Operator:
    """
    A form as two operators of torch, `forward` and `backward`; called with the inputs and the settings, it gives the
    results.
    """

    def __init__(self, form: Form):
        self.form = form
        optional = form.inputs.__annotations__
        given = ", ".join(f"Tensor{'' if optional[name] is Tensor else '?'} {name}" for name in form.inputs._fields)
        made = ", ".join(f"Tensor made_{name}" for name in form.results._fields)
        grads = ", ".join(f"Tensor grad_{name}" for name in form.results._fields[: form.outputs])
        results, gradients = (", ".join(["Tensor"] * len(kind._fields)) for kind in (form.results, form.gradients))
        self.forward = torch.library.custom_op(
            f"{NAMESPACE}::{form.name}",
            self._forward,
            mutates_args=(),
            schema=f"({given}, {form.settings}) -> ({results})",
        )
        self.backward = torch.library.custom_op(
            f"{NAMESPACE}::{form.name}_backward",
            self._backward,
            mutates_args=(),
            schema=f"({grads}, {given}, {made}, {form.settings}) -> ({gradients})",
        )
        self.forward.register_fake(self._fake_forward)
        self.backward.register_fake(self._fake_backward)
        self.forward.register_autograd(self._differentiate, setup_context=self._keep)
        self.backward.register_autograd(refuse_second_derivative)

    def __call__(self, inputs: tuple, *settings: Any) -> Any:
        return self.form.results(*_as_tuple(self.forward(*inputs, *settings)))

    def _split(self, arguments: tuple) -> tuple[Any, tuple]:
        count = len(self.form.inputs._fields)
        return self.form.inputs(*arguments[:count]), arguments[count:]

    def _forward(self, *arguments):
        inputs, settings = self._split(arguments)
        with torch.autocast(device_type=inputs[0].device.type, enabled=False):
            return _as_schema(self.form.forward(inputs, *settings))

    def _fake_forward(self, *arguments):
        inputs, settings = self._split(arguments)
        return _as_schema(self.form.new_results(inputs, *settings))

    def _backward(self, *arguments):
        grads, arguments = arguments[: self.form.outputs], arguments[self.form.outputs :]
        inputs, rest = self._split(arguments)
        count = len(self.form.results._fields)
        results, settings = self.form.results(*rest[:count]), rest[count:]
        with torch.autocast(device_type=inputs[0].device.type, enabled=False):
            return tuple(self.form.backward(*grads, inputs, results, *settings))

    def _fake_backward(self, *arguments):
        return tuple(self.form.new_gradients(self._split(arguments[self.form.outputs :])[0]))

    def _keep(self, ctx, inputs, output) -> None:
        tensors, ctx.settings = self._split(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *_as_tuple(output))

    def _differentiate(self, ctx, *grads):
        kept = ctx.saved_tensors  # once: gradient checkpointing unpacks them only once
        inputs, results = self._split(kept)
        outputs = results[: self.form.outputs]
        grads = (torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, outputs))
        found = self.form.gradients(*self.backward(*grads, *kept, *ctx.settings))._asdict()
        of_inputs = (None if x is None else found.get(name) for name, x in inputs._asdict().items())
        return *of_inputs, *(None for _ in ctx.settings)


def _as_schema(tensors: tuple) -> Any:
    """Return results as torch wants them: a tensor where there is but one."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _as_tuple(results: Any) -> tuple:
    """Return the results of an operator as a tuple, see `_as_schema`."""
    return (results,) if isinstance(results, Tensor) else tuple(results)


def refuse_second_derivative(ctx, *grads: Tensor) -> None:
    """Refuse the derivative of an operator that is itself a backward by hand."""
    raise NotImplementedError(
        "GMA has no second derivative: `create_graph` must be False where a gradient passes through its mixer, but it "
        "is True."
    )
