"""The one kind of error that people cause and that we explain in a sentence."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable

# in quotes or not; with a single slash too, as pathlib leaves it, but then folder:/srv is a path
ADDRESS = re.compile(
    r"""(?<![\w+.-])(?!(?:folder|shards):/(?!/))(?:(?<=(['"]))(?P<quoted>[\w+.-]+:/.*?)(?=\1)|(?P<plain>[\w+.-]+:/\S*))"""
)
HOST = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:@]*)(:\d*)?")  # and a port
# what torch and timm raise when they are given what they can't take
UNFIT = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError, MemoryError)


class ZooError(ValueError):
    """What is wrong, where, the nearest valid name, and what to do, in one sentence, in which no address has a password
    or a query.
    """

    def __init__(self, text: str):
        super().__init__(ADDRESS.sub(_masked, text))


def _masked(found: re.Match) -> str:
    text = found["quoted"] or found["plain"]
    address = text.rstrip(",;:.)")  # the sentence goes on
    return bare_address(address) + text[len(address) :]


def bare_address(address: str) -> str:
    """An address without the user, password, query and fragment in it; of one that can't be told apart, no more than
    the scheme.
    """
    scheme, slashes, rest = (
        re.fullmatch(r"(?s)(.*?:)(/*)(.*)", address).groups() if ":" in address else ("", "", address)
    )
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    after = rest[len(host) :]
    host = host.rpartition("@")[2]
    if not HOST.fullmatch(host) or (":" in host and "@" in after):  # a password with a / in it
        return f"{scheme}{slashes}..."
    return scheme + slashes + host + re.split("[?#]", after, maxsplit=1)[0]


def because(error: BaseException) -> str:
    """The end of a sentence: somebody else's error on one line, at most 200 characters of it. One without words is told
    by the line that raised it.
    """
    text = (
        str(error).strip()
        or next((frame.line for frame in reversed(traceback.extract_tb(error.__traceback__))), None)
        or ""
    )
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def nearest(word: str, known: Iterable[str], most: int = 12) -> str:
    """The end of a sentence about an unknown name: its close matches, or else what there is."""
    known = sorted(set(known))
    close = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    slip = difflib.get_close_matches(
        str(word), close, n=3, cutoff=0.85
    )  # where one is all but the same, the rest only confuse
    close = slip or close
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not known:
        return "; there is none"
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"; known: {', '.join(known[:most])}{more}"


class Terminated(SystemExit):
    """A signal ended a run between two steps; the text says where its state is saved, `code` is the exit code of the
    process.
    """

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code
