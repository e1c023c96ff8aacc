"""The command line: words -> verbs. Nothing here imports torch until a verb needs it.

Exit codes: 0 done; 1 a check failed (`zoo verify`, `zoo reproduce`) or a defect of ours, with its traceback; 2
something that the caller can put right, in one sentence; 130 interrupted; 143 terminated. With --json, standard output
holds the JSON and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from zoo import plugins
from zoo.errors import Terminated, ZooError, nearest
from zoo.parser import Parser, build_parser

# what a person can put right about a path or a disk
REFUSALS = {
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
}


# ---- running -------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run a command line (by default the process's own) and return its exit code. Raises what is a defect of ours."""
    received: list[int] = []
    for stream in (sys.stdout, sys.stderr) if words is None else ():
        if hasattr(stream, "reconfigure"):  # names of files may be more than the terminal has letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals(received):
            status = _run(sys.argv[1:] if words is None else list(words))
    except ZooError as error:
        print(f"zoo: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns an interruption into sys.exit(1)
        if isinstance(error, Terminated) or (isinstance(error, KeyboardInterrupt) and error.args):
            print(f"zoo: {error}", file=sys.stderr)  # where the state was saved
            return 130 if isinstance(error, KeyboardInterrupt) else error.code
        if isinstance(error, KeyboardInterrupt) or received:
            number = received[0] if received else signal.SIGINT
            print(f"zoo: {signal.Signals(number).name} received, so this ended early", file=sys.stderr)
            return 128 + number
        if error.code:
            raise
        status = 0  # argparse's --help
    except BrokenPipeError:  # zoo list | head
        status = 0
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        print(f"zoo: {error.filename or 'what this was to write'} can't be used: {error.strerror}", file=sys.stderr)
        return 2
    try:
        if sys.stdout is not None:  # as it is where it was closed
            sys.stdout.flush()  # here, since a complaint at the interpreter's end can't be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"zoo: standard output can't be written: {error.strerror}", file=sys.stderr)
        return 2
    return status


@contextlib.contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """SIGTERM unwinds the stack as SIGINT does, so that files are closed and locks freed; a second signal ends the
    process at once.
    """

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(words: list[str]) -> int:
    top, known = build_parser()
    if not words or (words[0] not in known and not words[0].startswith("-")):
        if words:
            raise ZooError(f"{words[0]!r} is not a verb of zoo{nearest(words[0], known)}")
        top.print_help()
        return 0
    keys: list[str] = []
    if words[0] in ("pretrain", "import"):
        words, keys = _take_keys(words)
    _check_options(words, top, known)
    given = top.parse_args(words)
    if given.version:
        from zoo import __version__

        print(__version__)
        return 0
    given.rest = keys
    if given.verb == "pretrain" and given.recipe is None:
        if not given.help:
            raise ZooError("zoo pretrain needs a recipe; see zoo list recipes")
        known["pretrain"].print_help()
        print("\nzoo pretrain RECIPE --help lists the keys of one recipe.")
        return 0
    # what a library prints under --json is for people, and standard output is for the reader of the JSON
    with (
        contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext(),
        _offline(given.offline),
        plugins.naming_damage(),
    ):
        result = given.function(given)
    if given.json:
        text = json.dumps(result, ensure_ascii=False, default=str)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # JSON has its own way to write other letters
            text = json.dumps(result, default=str)
        print(text)
    return given.status


@contextlib.contextmanager
def _offline(asked: bool) -> Iterator[None]:
    """ZOO_OFFLINE for the time of one verb, and of the processes that it starts."""
    before = os.environ.get("ZOO_OFFLINE")
    if asked:
        os.environ["ZOO_OFFLINE"] = "1"
    try:
        yield
    finally:
        if asked:
            os.environ.pop("ZOO_OFFLINE") if before is None else os.environ.update(ZOO_OFFLINE=before)


def _take_keys(words: list[str]) -> tuple[list[str], list[str]]:
    """Recipe keys (--group.key VALUE, --seed VALUE, or with =) taken out of the words, so that argparse never guesses
    about them.
    """
    plain, keys, rest = [], [], iter(words)
    for word in rest:
        name = word.partition("=")[0]
        if not word.startswith("--") or not ("." in name or name == "--seed"):
            plain.append(word)
            continue
        keys.append(word)
        if "=" not in word and (value := next(rest, None)) is not None:
            keys.append(value)
    return plain, keys


def _check_options(words: list[str], top: Parser, known: dict[str, Parser]) -> None:
    """An unknown option is named together with the nearest, before argparse misses some other word."""
    parser = known.get(words[0], top)
    options = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        if re.match("--?[A-Za-z]", name) and name not in options:
            keys = " (keys of a recipe are written --group.key)" if words[0] == "pretrain" else ""
            raise ZooError(f"{parser.prog} doesn't take {name}{keys}{nearest(name, options)}")


if __name__ == "__main__":
    sys.exit(main())
