"""Starting a command line as several processes, by torchrun and as srun would."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

LIMIT = 240  # seconds; a machine may be busy, and a hang is a failure
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def plain(**more: str) -> dict[str, str]:
    """The environment without what a launcher left in it, and a thread for each process."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {
        key: value
        for key, value in os.environ.items()
        if key not in ours and not key.startswith(("SLURM_", "TORCHELASTIC_"))
    } | {"OMP_NUM_THREADS": "1", **more}


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each; whatever hangs is killed, and the test fails."""
    try:
        said = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, said, strict=True)]


def start(words: list[str], **more: str) -> subprocess.Popen:
    return subprocess.Popen(words, env=plain(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def torchrun(*words: str) -> tuple[int, str, str]:
    """`torchrun WORDS` on this machine, at a port that is free."""
    return finish([start([*TORCHRUN, "--master-port", str(free_port()), *words])])[0]


def srun(nodes: int, each: int, *words: str) -> list[tuple[int, str, str]]:
    """What `srun --nodes NODES --ntasks-per-node EACH WORDS` starts: a process for each task with SLURM's variables,
    here all on one machine.
    """
    port, count = str(free_port()), nodes * each
    return finish(
        [
            start(
                list(words),
                SLURM_JOB_ID="1",
                SLURM_JOB_NAME="zoo",
                SLURM_NTASKS=str(count),
                SLURM_STEP_NUM_TASKS=str(count),
                SLURM_NTASKS_PER_NODE=str(each),
                SLURM_NNODES=str(nodes),
                SLURM_STEP_NUM_NODES=str(nodes),
                SLURM_PROCID=str(rank),
                SLURM_LOCALID=str(rank % each),
                SLURM_NODEID=str(rank // each),
                SLURM_NODELIST="127.0.0.1",
                MASTER_PORT=port,
            )
            for rank in range(count)
        ]
    )


def read_srun(words: list[str]) -> tuple[int, int, list[str]]:
    """Machines, tasks on each, and the command of a line that begins with srun. Raises AssertionError for an option
    that nobody knows.
    """
    rest, found = words[1:], {"--nodes": 1, "--ntasks-per-node": 1}
    while rest[0].startswith("-"):
        if rest[0] == "--kill-on-bad-exit":
            rest = rest[1:]
            continue
        assert rest[0] in found, f"nobody knows what to do with this option of srun: {rest[0]}"
        found[rest[0]], rest = int(rest[1]), rest[2:]
    return found["--nodes"], found["--ntasks-per-node"], rest


def command(words: list[str]) -> list[str]:
    """`zoo ...` as it runs with this Python, installed or not."""
    assert words[0] == "zoo"
    return [sys.executable, "-m", "zoo.cli", *words[1:]]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def may_make_hosts() -> bool:
    """Whether this process may make network namespaces, which are as good as hosts."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "zoo-try"], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", "zoo-try"], capture_output=True)
    return made
