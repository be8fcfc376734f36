"""What the tests of the fast functions against the definition share."""

from collections.abc import Callable

import pytest
import torch

from gma_hf.model.additions_gma import log_forget_gate


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
EXTREME = 1e4
GATES = {
    "mild": lambda logits: logits + 2,
    "closed": lambda logits: logits - EXTREME,
    "open": lambda logits: logits + EXTREME,
    "one closed": lambda logits: logits.index_fill(1, torch.tensor(logits.shape[1] // 2), -EXTREME) + 3,
    "mixed": lambda logits: logits + EXTREME * torch.randint(-1, 2, logits.shape),
}


@pytest.fixture(scope="session")
def log_decay():
    """`log_decay(gates, shape, mask=None)`: random log decays of a kind in `GATES`, `[B, H, N]`; None for "none"."""

    def make(gates: str, shape: tuple[int, int, int], mask: torch.Tensor | None = None) -> torch.Tensor | None:
        if gates == "none":
            return None
        batch, heads, length = shape
        return log_forget_gate(GATES[gates](torch.randn(batch, length, heads, dtype=torch.float64)), mask)

    return make


@pytest.fixture(scope="session")
def padding_mask():
    """
    `padding_mask(length)`: row 0 has padding at its start and inside; row 1 has none, or, of length 1, is nothing but
    padding.
    """

    def make(length: int) -> torch.Tensor:
        mask = torch.ones(2, length, dtype=torch.bool)
        mask[0, : length // 10] = False
        mask[0, length // 3 : length // 2] = False
        if length == 1:
            mask[1] = False
        return mask

    return make


@pytest.fixture(scope="session")
def leaves():
    """`leaves(arguments)`: copies to differentiate by, without None; numbers that float32 holds, in float64."""

    def make(arguments: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        given = {name: tensor for name, tensor in arguments.items() if tensor is not None}
        return {name: tensor.detach().float().double().requires_grad_() for name, tensor in given.items()}

    return make


@pytest.fixture(scope="session")
def gradients():
    """`gradients(outputs, inputs)`: those of a random combination of all `outputs`, for each of the `inputs`."""

    def compute(outputs: list[torch.Tensor], inputs: list[torch.Tensor], seed: int = 1) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        weights = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs)
        return torch.autograd.grad(sum((x.double() * w).sum() for x, w in zip(outputs, weights)), inputs)

    return compute


@pytest.fixture(scope="session")
def compare(assert_close, gradients):
    """
    `compare(fast, reference, arguments, dtypes)`: outputs and all gradients of `fast(**arguments)`, in each of
    `dtypes`, against those of the definition in float64.
    """

    def check(
        fast: Callable,
        reference: Callable,
        arguments: dict[str, torch.Tensor],
        dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCE),
    ) -> None:
        expected = reference(**arguments)
        expected_gradients = gradients(expected, list(arguments.values()))
        for dtype in dtypes:
            inputs = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in arguments.items()}
            actual = fast(**inputs)
            for index, (x, y) in enumerate(zip(actual, expected, strict=True)):
                assert x.dtype == dtype
                assert_close(x, y, TOLERANCE[dtype], f"output {index} in {dtype}")
            for name, x, y in zip(inputs, gradients(actual, list(inputs.values())), expected_gradients):
                assert_close(x, y, TOLERANCE[dtype], f"gradient of {name} in {dtype}", at_least=1.0)

    return check
