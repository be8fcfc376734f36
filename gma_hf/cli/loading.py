"""What happens before a command runs: torch and Transformers are imported, and wrong input gets its sentence."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

from ..errors import refusals


# What libraries log when they are merely installed, by the logger that says it
NOT_OURS = {
    "torchao": ("Failed to load ",),
    "torch.utils._pytree": ("Calling register_constant() on Enum subclasses is deprecated",),
}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return `function` as a command of `gma-hf`: the package is loaded first, and wrong input gets a sentence."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with refusals():
            load()
            function(*args, **kwargs)

    return run


def load() -> None:
    """Execute the package gma_hf where `gma_hf_cli` has postponed that, without what other libraries complain of."""
    for name, beginnings in NOT_OURS.items():
        logging.getLogger(name).addFilter(_Without(beginnings))
    package = sys.modules[__package__.partition(".")[0]]
    if not hasattr(package, "__version__"):
        package.__spec__.loader.exec_module(package)


def version() -> str:
    """Return the version of gma_hf, without loading the package where it is installed."""
    package = sys.modules[__package__.partition(".")[0]]
    if not hasattr(package, "__version__"):
        try:
            return installed_version("gma-hf")
        except PackageNotFoundError:
            load()
    return package.__version__


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
