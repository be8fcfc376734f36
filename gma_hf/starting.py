"""How our programs start: `gma-hf`, `python -m gma_hf` and `python -m gma_hf.recipes.NAME`."""

import logging
import sys
from types import TracebackType

from .errors import refusals


# What libraries log when they are merely installed, by the logger that says it
NOT_OURS = {
    "torchao": ("Failed to load ",),
    "torch.utils._pytree": ("Calling register_constant() on Enum subclasses is deprecated",),
}


def module_to_run() -> str:
    """Return the module that `python -m` is about to run, while Python still looks for it; else nothing."""
    if sys.argv[:1] != ["-m"]:
        return ""
    return sys.orig_argv[-len(sys.argv)].removeprefix("-m")


def start_recipe(program: str) -> None:
    """Let the imports of a recipe say nothing of other libraries, and end in a sentence as the recipe itself does."""
    quieten()

    def end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        try:
            with refusals(program):
                raise error
        except SystemExit:
            raise
        except BaseException:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = end


def quieten() -> None:
    """Let nothing be logged of `NOT_OURS`."""
    for name, texts in NOT_OURS.items():
        logging.getLogger(name).addFilter(_Without(texts))


class _Without(logging.Filter):
    """Lets every record through but those that hold one of some texts."""

    def __init__(self, texts: tuple[str, ...]):
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in self.texts)

    def __eq__(self, other: object) -> bool:  # so that a logger takes each only once
        return isinstance(other, _Without) and other.texts == self.texts

    __hash__ = logging.Filter.__hash__
