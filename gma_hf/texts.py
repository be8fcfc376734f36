"""Text files: read as UTF-8, or refused in a sentence that says what they are instead."""

import codecs
from collections.abc import Iterator
from pathlib import Path


PIECE = 1 << 20
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, name: str) -> str:
    """
    Return the content of a text file.

    Args:
        path: of the file.
        name: what the caller calls the file, for the sentence: "--calibration".

    Raises:
        ValueError: if the file is not in UTF-8 or holds nothing but white space.
    """
    return "".join(pieces(path, name))


def check_text(path: Path, name: str) -> None:
    """Refuse, as `read_text` does, a file of any size without keeping it."""
    for _ in pieces(path, name):
        pass


def pieces(path: Path, name: str) -> Iterator[str]:
    """Yield the content of a text file piece by piece; see `read_text` for the errors."""
    decoder, is_blank, start = codecs.getincrementaldecoder("utf-8")(), True, 0
    with path.open("rb") as file:
        while True:
            read = file.read(PIECE)
            if start == 0:
                _refuse_utf16(read, path, name)
            try:
                piece = decoder.decode(read, final=not read)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{name} must be a text in UTF-8, but {str(path)!r} is not; if it is in Latin-1, "
                    f"`iconv -f LATIN1 -t UTF-8` makes it so."
                ) from error
            is_blank = is_blank and not piece.strip()
            yield piece
            start += len(read)
            if not read:
                break
    if is_blank:
        raise ValueError(f"{name} must hold some text, but {str(path)!r} does not.")


def _refuse_utf16(beginning: bytes, path: Path, name: str) -> None:
    """Refuse what begins with the mark of UTF-16, or holds the zeros that UTF-16 is full of."""
    if beginning[:2] in UTF16 or b"\0" in beginning[:4096]:
        raise ValueError(
            f"{name} must be a text in UTF-8, but {str(path)!r} is not; if it is in UTF-16, "
            f"`iconv -f UTF-16 -t UTF-8` makes it so."
        )
