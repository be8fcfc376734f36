"""A recipe as a command: what is wrong with its input, or missing, ends it with one sentence."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import extra, refusals


def run(main: Callable[[], object]) -> None:
    """Call the main function of a recipe, or of a benchmark, with the arguments of this process."""
    with refusals(Path(sys.argv[0]).stem):
        main()


@contextmanager
def train_extra() -> Iterator[None]:
    """
    Import in the block what `pip install "gma-hf[train]"` installs.

    Raises:
        MissingExtra: if it is not installed. Where a recipe is run as a command, nothing could catch an error of its
            imports: there, the sentence ends the process at once.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    is_command = main is not None and main.name.startswith(f"{__package__}.")
    with refusals(Path(sys.argv[0]).stem) if is_command else nullcontext(), extra("train", "A recipe"):
        yield
