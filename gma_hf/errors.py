"""Errors as one sentence: what other libraries say, what a missing extra needs, and how a program ends."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO


REFUSED, INTERRUPTED = 2, 130  # exit statuses


class MissingExtra(ImportError):
    """A library that an extra of gma_hf installs cannot be imported."""


def first_line(error: BaseException) -> str:
    """Return what an error says, without the advice that Transformers adds in further lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def first_sentence(error: BaseException) -> str:
    """Return what an error says up to its first full stop and without it, to stand within a sentence."""
    return first_line(error).split(". ")[0].rstrip(" .:")


def sentence(error: BaseException) -> str:
    """Return what an error says as one line; of an error of the operating system, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)!r} cannot be read or written: {error.strerror}."
    return first_line(error)


@contextmanager
def refusals(program: str = "gma-hf") -> Iterator[None]:
    """
    End the process with one sentence where the block raises an error that is due to its input.

    Wrong values, files that cannot be read or written, libraries that are missing and a reader of the output that has
    left (`| head`) end it as wrong usage does, with the sentence `program: ...` on the standard error and exit status
    2; Ctrl-C ends it with 130. Any other error is a fault of the program and keeps its traceback.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # a reader that has left shows here at the latest, and not when the interpreter ends
    except KeyboardInterrupt:
        _end(program, "interrupted.", INTERRUPTED)
    except (ValueError, OSError, MissingExtra) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            _drop(sys.stdout)
            _end(program, "what reads the output has left before its end.", REFUSED)
        _end(program, sentence(error), REFUSED, error)


def _end(program: str, says: str, status: int, cause: BaseException | None = None) -> NoReturn:
    """End the process with a sentence; with `2>&1 | head`, there may be nobody to read that either."""
    try:
        print(f"{program}: {says}", file=sys.stderr)
    except BrokenPipeError:
        _drop(sys.stderr)
    raise SystemExit(status) from cause


def _drop(stream: TextIO) -> None:
    """Drop what is left in the buffer of a stream whose pipe is broken: the interpreter would write it at its end."""
    with suppress(OSError, ValueError):  # in tests it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """
    Import in the block what an extra of gma_hf installs; where that is missing, say how to install it.

    Args:
        name: the extra, as in `pip install "gma-hf[name]"`.
        what: what needs it, at the beginning of the sentence: "`gma-hf report`".

    Raises:
        MissingExtra: if a module that is not ours cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if isinstance(error, MissingExtra) or (error.name or "").partition(".")[0] == __package__:
            raise
        raise MissingExtra(
            f'{what} needs `pip install "gma-hf[{name}]"` (in a checkout: `pip install -e ".[{name}]"`): '
            f"{first_sentence(error)}."
        ) from error
