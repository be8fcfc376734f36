"""Where a model computes and in which dtype, as an argument of a command or a recipe says it."""

import torch


DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_device(name: str, argument: str = "--device") -> torch.device:
    """
    Return the device of a name; "auto" is the GPU if there is one.

    Raises:
        ValueError: for a device that this machine does not have, under the name of the argument.
    """
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        if found == "meta":  # which torch has for shapes alone
            raise RuntimeError
        return torch.empty(0, device=found).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise ValueError(
            f"{argument} must be auto or a device of this machine, as cpu or cuda:0, but it is {name!r}."
        ) from error


def choose_dtype(name: str, argument: str = "--dtype") -> torch.dtype | None:
    """
    Return the dtype of a name; "auto" is None, that of the checkpoint.

    Raises:
        ValueError: for a name that is none of `DTYPES`, under the name of the argument.
    """
    if name not in DTYPES:
        raise ValueError(f"{argument} must be one of {', '.join(DTYPES)}, but it is {name!r}.")
    return None if name == "auto" else getattr(torch, name)
