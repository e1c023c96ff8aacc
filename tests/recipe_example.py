"""What the tests of recipes share: a small recipe, the texts of those that ship, and a task made for one test."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from zoo import registry
from zoo.errors import ZooError
from zoo.recipe import list_recipes
from zoo.tasks.base import PretextTask

BASE = {
    "data": {"name": "digits"},
    "backbone": {"name": "test_resnet"},
    "task": {"name": "simclr"},
    "trainer": {"max_steps": 10},
}
NAMES = [name for name, _, _ in list_recipes()]
TEXTS = [path.read_text() for _, path, _ in list_recipes()]


@pytest.fixture
def probe(monkeypatch) -> Callable[[Callable], type]:
    """Makes a task called probe with the given constructor, which the registry knows until the test ends."""

    def make(init: Callable) -> type:
        task = type(
            "Probe",
            (PretextTask,),
            {"__init__": init, "name": "probe", "views": lambda *_: (), "forward": lambda *_: None},
        )
        monkeypatch.setitem(registry._here, "probe", task)
        return task

    return make


def sentence(call: Callable) -> str:
    """The one sentence in which `call` is refused."""
    with pytest.raises(ZooError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and "<class '" not in text
    return text


def short(value: object) -> str:
    """A parameter as pytest shows it."""
    return ascii(value)[:40]


@contextlib.contextmanager
def no_hang(seconds: int = 20) -> Iterator[None]:
    """Ends what would otherwise hold up the whole suite for minutes."""

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
