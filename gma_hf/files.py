"""Files and folders that appear whole: written beside their place, and moved there in one step."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(argument: str, path: Path, force: bool, is_folder: bool = False) -> None:
    """
    Refuse a file or folder that cannot be written, before anything is computed for it.

    Args:
        argument: its name, for the sentence: "--output".
        path: where it is to be.
        force: whether something of its kind that is there may be replaced.
        is_folder: whether it is a folder.

    Raises:
        ValueError: if the folder above does not exist or cannot be written to, or if something is there already.
    """
    above = path.absolute().parent
    if not above.is_dir():
        raise ValueError(f"{argument} must be in a folder that exists, but {str(path.parent)!r} does not.")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{argument} must be in a folder that can be written to, but {str(path.parent)!r} cannot.")
    if not path.exists():
        return
    if not (path.is_dir() if is_folder else path.is_file()):
        raise ValueError(f"{argument} must be a {'folder' if is_folder else 'file'}, but {str(path)!r} is none.")
    if not force:
        raise ValueError(f"{argument} must not exist without --force, but {str(path)!r} does.")


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yield a path beside `path` to write a file to; the file is moved to `path` when the block ends.

    The yielded path ends as `path` does, for writers that choose a format by the name. A file that stood at `path` is
    replaced in one step. If the block raises an error, the file at `path` is left as it was, and no other file is
    left behind. Each call yields a path of its own, so that threads and processes may write at the same time.

    Raises:
        FileNotFoundError: if the folder of `path` does not exist.
        ValueError: if there is something else than a file at `path`.
    """
    path = _place(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"A file can only take the place of a file, but {str(path)!r} is something else.")
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """
    Yield an empty folder beside `path` to write to; the folder is moved to `path` when the block ends.

    If the block raises an error, `path` is left as it was, and no other folder is left behind. Each call yields a
    folder of its own.

    Args:
        path: of the folder.
        replace: whether a folder that stands at `path` is replaced. It is moved away before the new one is moved to
            its place, and moved back if that fails.

    Raises:
        FileNotFoundError: if the folder above `path` does not exist.
        FileExistsError: if `path` exists and is not to be replaced.
        ValueError: if there is something else than a folder at `path`.
    """
    path = _place(path)
    if path.exists() and not replace:
        raise FileExistsError(f"There must be nothing yet at {str(path)!r}, but there is.")
    if path.exists() and not path.is_dir():
        raise ValueError(f"A folder can only take the place of a folder, but {str(path)!r} is something else.")
    temporary, before = (path.with_name(f".{secrets.token_hex(8)}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(before)
        try:
            temporary.rename(path)
        except BaseException:
            if before.exists():
                before.rename(path)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place(path: str | os.PathLike) -> Path:
    """Return the path itself or what it links to, in a folder that exists."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There must be a folder to write {path.name!r} to, but {str(path.parent)!r} is none.")
    return path


def _flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
