"""Recipes as commands: wrong input or a missing library ends them with one sentence."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from ..errors import extra, refusals


def run(main: Callable[[], object]) -> None:
    """
    Call the main function of a recipe, or of a benchmark, with the arguments of this process.

    A process that is one of several leaves its group at the end: gloo's threads may abort one that ends with it.
    """
    with refusals(Path(sys.argv[0]).stem):
        main()
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def train_extra() -> Iterator[None]:
    """
    Import in the block what `pip install "gma-hf[train]"` installs.

    Raises:
        MissingExtra: if it is not installed; a recipe that is run as a command then ends with this sentence.
    """
    with extra("train", "A recipe"):
        import accelerate  # noqa: F401  Trainer's

        yield
