"""
Products of half-precision tiles of 16, 32 and 64 columns by Triton against those by torch: which come out wrong. With
bfloat16 tiles of fewer than 64 columns our scan kernels were wrong on an H200 (Triton 3.6), so that they take 64, see
`ChunkCalls`; this looks for the product that is to blame, by Triton alone, for a report to its authors.

    python -m benchmarks.hopper_products                     # on a Hopper GPU
    TRITON_INTERPRET=1 python -m benchmarks.hopper_products --dtype float16     # the script itself, on a CPU

It prints a line for each product, tile and number of warps, with the largest error over the largest number of the
result, and "wrong" where that is beyond the rounding of the dtype; then how many are wrong, and the machine.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from gma_hf.model.kernels_gma import IS_INTERPRETED, tl, triton
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine


ROWS = 64
CASES = {  # with X, Y [64, 64] and Z [64, columns]: the product of half-precision factors, which is the last
    "X Z": lambda x, y, z: x @ z,
    "X^T Z": lambda x, y, z: x.mT @ z,
    "(X Y) Z": lambda x, y, z: (x @ y).to(z.dtype) @ z,
    "(X Y)^T Z": lambda x, y, z: (x @ y).mT.to(z.dtype) @ z,
    "(X Y)^T Z, the first by way of memory": lambda x, y, z: (x @ y).mT.to(z.dtype) @ z,
    "Z Z^T": lambda x, y, z: z @ z.mT,
}


@dataclass
class Arguments:
    """What is multiplied."""

    dtype: Literal["bfloat16", "float16"] = field(default="bfloat16", metadata={"help": "Of the factors."})
    seed: int = field(default=0, metadata={"help": "Of the random factors."})


if triton is not None:

    @triton.jit
    def _product_kernel(
        x, y, z, scratch, result, CASE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr  # noqa: ANN001
    ):  # fmt: skip
        """The product of a case, by its place in `CASES`."""
        rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
        square = rows[:, None] * ROWS + rows[None, :]
        tall = rows[:, None] * COLUMNS + columns[None, :]
        left, right = tl.load(x + square), tl.load(z + tall)
        if CASE == 1:
            left = tl.trans(left)
        if CASE >= 2 and CASE <= 4:
            product = tl.dot(left, tl.load(y + square)).to(left.dtype)
            if CASE == 4:
                tl.store(scratch + square, product)
                tl.debug_barrier()
                product = tl.load(scratch + square)
            left = tl.trans(product) if CASE > 2 else product
        if CASE == 5:
            tl.store(result + square, tl.dot(right, tl.trans(right)))
        else:
            tl.store(result + tall, tl.dot(left, right))


def product_by_triton(case: int, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, warps: int) -> torch.Tensor:
    """Return the product of a case, float32."""
    columns = z.shape[1]
    result = torch.empty(ROWS, ROWS if case == 5 else columns, device=x.device)
    _product_kernel[(1,)](x, y, z, torch.empty_like(x), result, case, ROWS, columns, num_warps=warps, num_stages=1)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Multiply, compare, print."""
    (args,) = parse((Arguments,), arguments)
    if triton is None or not (IS_INTERPRETED or torch.cuda.is_available()):
        raise ValueError("`hopper_products` needs Triton and an NVIDIA GPU, but there is none.")
    device, dtype = "cpu" if IS_INTERPRETED else "cuda", getattr(torch, args.dtype)
    torch.manual_seed(args.seed)
    wrong = 0
    for case, (name, by_torch) in enumerate(CASES.items()):
        for columns in (16, 32, 64):
            for warps in (4, 8):
                x, y, z = (torch.randn(ROWS, n, device=device).to(dtype) for n in (ROWS, ROWS, columns))
                expected = by_torch(x.double(), y.double(), z.double())
                error = (product_by_triton(case, x, y, z, warps) - expected).abs().max() / expected.abs().max()
                is_wrong = not error < 4 * torch.finfo(dtype).eps
                wrong += is_wrong
                print(f"{name}: {columns} columns, {warps} warps, error {error:.1e}{', wrong' if is_wrong else ''}")
    print(f"{wrong} of {len(CASES) * 6} products in {args.dtype} are wrong on {machine(device)}")


if __name__ == "__main__":
    run(main)
