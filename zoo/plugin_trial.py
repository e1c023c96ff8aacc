"""Plugins, tried in processes of their own: `zoo list tasks|data|backbones --check`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from zoo import plugins, registry
from zoo.plugins import Plugin
from zoo.registry import TaskEntry

Entry = TypeVar("Entry", TaskEntry, Plugin)


def check_tasks(entries: Sequence[TaskEntry] | None = None, timeout: float = 60) -> list[TaskEntry]:
    """Import tasks (by default every listed one), each in a process of its own, and say in `problem` what went wrong.
    `timeout` is in seconds, for each task.
    """
    return _check(registry.list_tasks() if entries is None else entries, plugins.TASKS, timeout)


def check_plugins(entries: Sequence[Plugin], timeout: float = 60) -> list[Plugin]:
    """The same for data sets or backbones of other packages, all of one group. A data set is imported and its `info`
    checked, a backbone is imported; neither is loaded or built.
    """
    return _check(entries, entries[0].group, timeout) if entries else []


def use(group: str, name: str) -> None:
    """Import one plugin, as a verb that names it would. Raises ZooError."""
    if group == plugins.TASKS:
        registry.find_task(name)
    elif group == plugins.DATA:
        from zoo.data import plugged as data

        data.plugged_info(data.find(name))
    else:
        from zoo.backbones.names import find_plugged
        from zoo.backbones.plugged import plugged_function

        plugged_function(find_plugged(name))


def _check(entries: Sequence[Entry], group: str, timeout: float) -> list[Entry]:
    running: set[subprocess.Popen] = set()
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())

    def tried(entry: Entry) -> Entry:
        return replace(entry, problem=entry.problem or _trial(group, entry, timeout, running))

    try:
        return list(pool.map(tried, entries))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(running):  # there are some only after an interruption, of which they don't hear
            _kill(child.pid)


def _trial(group: str, entry: TaskEntry | Plugin, timeout: float, running: set[subprocess.Popen]) -> str | None:
    """What goes wrong when a plugin is imported, found out in a child process, which is in `running` as long as it
    runs.
    """
    if entry.origin == "this session":
        return None
    code = f"from zoo.plugin_trial import use; use({group!r}, {entry.name!r}); print('imported')"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    running.add(child)
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(child.pid)
        child.communicate()
        return f"{entry.origin}: importing it takes more than {timeout:g} seconds"
    finally:
        running.discard(child)
    if child.returncode == 0 and out.rstrip().endswith("imported"):
        return None
    if not err.strip():
        return f"{entry.origin}: importing it ends the process, with exit code {child.returncode}"
    last = err.strip().splitlines()[-1].removeprefix("zoo.errors.ZooError: ")
    return last if last.startswith(f"the {plugins.WORDS[group]} ") else f"{entry.origin}: {last}"


def _kill(pid: int) -> None:
    """A child and what it started, which would hold its pipes open."""
    for kill in (os.killpg, os.kill):  # it may not have its own group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
