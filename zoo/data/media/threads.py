"""Threads that decode, and never hold up the end of a process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Threads:
    """Daemon threads for `submit`, until `close` or until nobody holds this any more.

    One that hangs in a dead network drive holds up neither the error nor the end of the process; those of
    concurrent.futures are waited for.
    """

    def __init__(self, count: int, name: str):
        todo: SimpleQueue = SimpleQueue()
        self._todo = todo
        self.close = weakref.finalize(self, _end, todo, count)
        for _ in range(count):
            Thread(target=_work, args=(todo,), name=name, daemon=True).start()

    def submit(self, function: Callable, *given: Any) -> Future:
        future: Future = Future()
        self._todo.put((future, function, given))
        return future


def _work(todo: SimpleQueue) -> None:
    while (job := todo.get()) is not None:
        future, function, given = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*given))
            except BaseException as error:  # raised again where the result is asked for
                future.set_exception(error)
        del job, future, function, given  # what they hold may be what keeps this alive


def _end(todo: SimpleQueue, count: int) -> None:
    for _ in range(count):
        todo.put(None)
