"""Texts in files of strangers: lines and whole files, decoded strictly and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import ZooError

EXTENSIONS = frozenset((".txt",))
LONGEST = 1 << 20  # bytes of a line or of a file that is one text


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark and the line break at its end.

    Raises ZooError for a file that can't be read, is too long, isn't UTF-8 or has a NUL character.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST + 1)
    except OSError as error:
        raise ZooError(f"the text {shown(path)} can't be read ({error.strerror}); remove it or mend it") from error
    if len(data) > LONGEST:
        raise ZooError(f"the text {shown(path)} has more than {LONGEST:,} bytes; cut it into several files")
    return _decoded(data.removeprefix(b"\xef\xbb\xbf"), shown(path)).rstrip("\r\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its break) of each line of a file, one at a time.

    Raises ZooError, naming the line, as `read_text` does.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while data := file.readline(LONGEST + 1):
                number += 1
                where = f"{shown(path)}, line {number:,}"
                if len(data) > LONGEST:
                    raise ZooError(f"{where}: the line has more than {LONGEST:,} bytes; break it into several")
                yield number, _decoded(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, where)
    except OSError as error:
        raise ZooError(f"the text {shown(path)} can't be read ({error.strerror}); remove it or mend it") from error


def check_text(text: str, where: str) -> str:
    """The text. Raises ZooError for a NUL character and for half a character, which a JSON file can hold."""
    if "\0" in text:
        raise ZooError(f"{where}: the text has a NUL character; remove that character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ZooError(f"{where}: the text has half a character (a lone surrogate); remove it") from None
    return text


def _decoded(data: bytes, where: str) -> str:
    try:
        return check_text(data.decode(), where)
    except UnicodeDecodeError as error:
        bad = data[error.start]
        raise ZooError(f"{where}: the text isn't UTF-8 (byte {bad:#04x}); convert the file to UTF-8") from None


def shown(path: str | Path) -> str:
    """A path as text that can be printed, also where its bytes aren't UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
