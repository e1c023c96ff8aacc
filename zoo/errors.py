"""The one kind of error that people cause and that we explain in a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(ValueError):
    """What is wrong, where, the nearest valid name, and what to do, in one sentence."""


def nearest(word: str, known: Iterable[str], most: int = 12) -> str:
    """The end of a sentence about an unknown name: its close matches, or else what there is."""
    known = sorted(set(known))
    close = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    slip = difflib.get_close_matches(str(word), close, n=3, cutoff=0.85)            # where one is all but the same, the rest only confuse
    close = slip or close
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not known:
        return "; there is none"
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"; known: {', '.join(known[:most])}{more}"


class Terminated(SystemExit):
    """A signal ended a run between two steps; the text says where its state is saved, `code` is the exit code of the process."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code
