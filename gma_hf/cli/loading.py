"""What happens before a command runs: torch and Transformers are imported, and wrong input gets its sentence."""

import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

from ..errors import refusals
from ..starting import quieten


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return `function` as a command of `gma-hf`: the package is loaded first, and wrong input gets a sentence."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with refusals():
            load()
            function(*args, **kwargs)

    return run


def load() -> None:
    """Execute the package gma_hf where that was postponed, without what other libraries complain of."""
    quieten()
    package = sys.modules[__package__.partition(".")[0]]
    if not hasattr(package, "GMAConfig"):
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
