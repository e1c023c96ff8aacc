"""Plugins, tried in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from zoo.registry import TaskEntry, list_tasks


def check_tasks(entries: list[TaskEntry] | None = None, timeout: float = 60) -> list[TaskEntry]:
    """Import tasks (by default every listed one), each in a process of its own, and say in `problem` what went wrong.
    `timeout` is in seconds, for each task.
    """
    entries = list_tasks() if entries is None else entries
    running: set[subprocess.Popen] = set()
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        return list(
            pool.map(lambda entry: replace(entry, problem=entry.problem or _trial(entry, timeout, running)), entries)
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(running):  # only if we were interrupted: they wouldn't hear of it
            _kill(child.pid)


def _trial(entry: TaskEntry, timeout: float, running: set[subprocess.Popen]) -> str | None:
    """What goes wrong when a task is imported, found out in a child process, which is in `running` as long as it
    runs.
    """
    if entry.origin == "this session":
        return None
    code = f"from zoo.registry import _load, task_entry; _load(task_entry({entry.name!r})); print('imported')"
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
    last = (
        err.strip().splitlines()[-1]
        if err.strip()
        else f"importing it ends the process, with exit code {child.returncode}"
    )
    return (
        last
        if (last := last.removeprefix("zoo.errors.ZooError: ")).startswith("the task")
        else f"{entry.origin}: {last}"
    )


def _kill(pid: int) -> None:
    """A child and what it started, which would hold its pipes open."""
    for kill in (os.killpg, os.kill):  # it may not have its own group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
