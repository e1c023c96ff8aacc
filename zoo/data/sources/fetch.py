"""Bringing files: package clients as an ordinary user, and archives that are read without trusting them."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from zoo.errors import ZooError

STALL = 40.0  # seconds without a new byte on disk after which a client is given up
LONGEST = 3600.0  # seconds after which it is given up though bytes still trickle
BLOCK = 1 << 20
LARGEST_ARCHIVE = 8 << 30  # bytes that an archive may unpack to, wanted or not
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".deb")

# path inside an archive or folder -> path below the set's raw folder, or None for what isn't wanted
Wanted = Callable[[str], "str | None"]


class Unreachable(Exception):
    """One way of getting a set didn't work here and the next is tried; its text ends the last sentence."""


# Clients


def run_client(command: list[str], folder: Path, **environment: str) -> None:
    """Run a client that writes into `folder`; raise Unreachable if it isn't there, fails or stalls (STALL).

    Progress is measured by the bytes in `folder`, because a connection that hangs in name resolution or in a
    half-open socket escapes the clients' own time-outs. The client runs in a session of its own so that its
    children end with it.
    """
    log = folder / "client.log"
    with open(log, "wb") as output:
        try:
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise Unreachable(f"{command[0]} doesn't start ({error.strerror or error})") from None
        try:
            problem = _watch(child, folder)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if problem is None and child.returncode:
        problem = f"failed with status {child.returncode}: {_last_words(log)}"
    if problem is not None:
        raise Unreachable(f"{Path(command[0]).name} {problem}")


def _watch(child: subprocess.Popen, folder: Path) -> str | None:
    begin = moved = time.monotonic()
    size, pause = -1, 0.02
    while child.poll() is None:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
        now, current = time.monotonic(), _bytes_under(folder)
        if current != size:
            size, moved = current, now
        if now - moved > STALL:
            return f"brought nothing for {STALL:.0f} s"
        if now - begin > LONGEST:
            return f"didn't finish within {LONGEST / 60:.0f} minutes"
    return None


def _bytes_under(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:  # a temporary file that the client has just renamed
                continue
    return total


def _last_words(log: Path) -> str:
    """The line of a client's output that says most: the first that speaks of an error, else the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(E:|npm ERR|npm error|\w*Error\b|<urlopen error)", line)]
    return (telling or lines[-1:] or ["it said nothing"])[0][:200]


def _find_client(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unreachable(f"{name} isn't installed")
    return found


def from_apt(package: str) -> Callable[[Path], Path]:
    """A way: `package` from the archive that this Debian uses; unprivileged, and nothing is installed."""

    def get(folder: Path) -> Path:
        apt = _find_client("apt-get")
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": folder / "cache",
            "Dir::Log": folder,
            "APT::Sandbox::User": "",  # as root, apt would else drop to a user who can't write here
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 15,
            "Acquire::https::Timeout": 15,
        }
        ours = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        run_client([apt, "-q", *ours, "update"], folder)
        run_client([apt, "-q", *ours, "download", package], folder)
        if not list(folder.glob("*.deb")):
            raise Unreachable(f"apt-get download {package} left no file")
        return folder

    get.label = f"apt-get download {package}"
    return get


def from_npm(*packages: str) -> Callable[[Path], Path]:
    """A way: `npm pack` of exact versions (name@1.2.3); no project, no scripts, cache and prefix of ours."""

    def get(folder: Path) -> Path:
        npm = _find_client("npm")
        flags = "--ignore-scripts --logs-max=0 --no-update-notifier --no-audit --no-fund --loglevel=error"
        ours = ["--cache", str(folder / "cache"), "--prefix", str(folder / "prefix"), *flags.split()]
        limits = ["--fetch-retries=1", "--fetch-timeout=30000"]
        for package in packages:
            run_client([npm, "pack", package, "--pack-destination", str(folder), *ours, *limits], folder)
        if len(list(folder.glob("*.tgz"))) < len(packages):
            raise Unreachable(f"npm pack left fewer than {len(packages)} files")
        return folder

    get.label = f"npm pack {' '.join(packages)}"
    return get


def from_folder(path: Path) -> Callable[[Path], Path]:
    """A way: a folder of the system, such as the one a distribution's package fills."""

    def get(folder: Path) -> Path:
        if not path.is_dir():
            raise Unreachable("isn't there")
        return path

    get.label, get.local = str(path), True
    return get


def from_torchvision(call: str) -> Callable[[Path], Path]:
    """A way: torchvision's download, in a child process because its only time-out is a process-wide one."""
    code = (
        "import socket, sys; socket.setdefaulttimeout(15)\n"
        "import torchvision.datasets as datasets\n"
        "root = sys.argv[1]\n" + call
    )

    def get(folder: Path) -> Path:
        run_client([sys.executable, "-c", code, str(folder)], folder)
        return folder

    get.label = "torchvision's download"
    return get


# Reading archives and folders


def gather(source: Path, wanted: Wanted, target: Path, limit: int) -> set[str]:
    """Copy what `wanted` names from a folder, an archive (.deb, .tar*, .tgz) or a raw file into `target`.

    Only regular files are read, and they are written under names that `wanted` returns, never under the
    archive's own; an archive with an absolute name or a `..` in it is refused whole. gzipped single files are
    unpacked. `limit` caps the bytes written. Archives directly inside a folder are read too.
    Returns the relative names that were written. Raises ZooError for anything unreadable.
    """
    written: set[str] = set()
    for name, opened in _walk(source, wanted):
        relative = wanted(name)
        if relative is None or relative in written:
            continue
        with _open(opened, name, source) as stream:
            packed = name.endswith(".gz") and not relative.endswith(".gz")
            plain = gzip.GzipFile(fileobj=stream) if packed else stream
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(path, "wb") as file:
                    while block := plain.read(min(BLOCK, limit + 1)):
                        limit -= len(block)
                        if limit < 0:
                            raise ZooError(
                                f"{source} unpacks to more than the data set can have; it isn't the "
                                "file it should be, and nothing was kept of it"
                            )
                        file.write(block)
            except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError) as error:
                raise ZooError(f"{name} in {source} is damaged ({error}); get it again") from error
        written.add(relative)
    return written


def _open(opened: Callable[[], BinaryIO], name: str, source: Path) -> BinaryIO:
    try:
        return opened()
    except OSError as error:
        raise ZooError(f"{name} in {source} can't be read: {error.strerror or error}") from error


def _walk(source: Path, wanted: Wanted) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    if source.is_dir():
        for where, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(where) / name
                inner = _wanted_name(path, source, wanted)
                if inner is not None:
                    yield inner, (lambda path=path: open(path, "rb"))
                elif Path(where) == source and name.endswith(ARCHIVES):
                    yield from _members(path)
    elif not source.is_file():
        raise ZooError(f"{source} is neither a file nor a folder; give a .deb, a .tar or .tgz, or a folder of files")
    elif source.name.endswith(ARCHIVES):
        yield from _members(source)
    elif _wanted_name(source, source.parent, wanted) is not None:
        for path in sorted(source.parent.iterdir()):  # one raw file stands for those beside it
            inner = _wanted_name(path, source.parent, wanted) if path.is_file() else None
            if inner is not None:
                yield inner, (lambda path=path: open(path, "rb"))
    else:
        raise ZooError(
            f"{source} isn't one of the set's files, nor an archive; give a .deb, a .tar or .tgz, or a folder of files"
        )


def _wanted_name(path: Path, root: Path, wanted: Wanted) -> str | None:
    """The name by which a file below `root` is wanted; root's own name may be what tells."""
    inner = path.relative_to(root).as_posix()
    for name in (inner, f"{root.resolve().name}/{inner}"):
        if wanted(name) is not None:
            return name
    return None


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """The regular files of an archive, in its order; each must be read before the next is asked for."""
    total = 0
    try:
        with open(archive, "rb") as file, _open_tar(archive, file) as tar:
            for member in tar:
                name, total = member.name.removeprefix("./"), total + member.size
                if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                    raise ZooError(f"{archive} holds the unsafe name {member.name!r}; nothing was taken from it")
                if total > LARGEST_ARCHIVE:
                    raise ZooError(f"{archive} unpacks to more than {LARGEST_ARCHIVE >> 30} GiB and is refused")
                if member.isreg():  # links and devices are never followed nor made
                    yield name, (lambda member=member: tar.extractfile(member))
    except ZooError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError, ValueError) as error:
        raise ZooError(f"{archive} can't be read as an archive ({error}); get it again") from error


@contextlib.contextmanager
def _open_tar(archive: Path, file: BinaryIO) -> Iterator[tarfile.TarFile]:
    if archive.name.endswith(".deb"):
        name, size = _find_data(archive, file)
        if name.endswith(".zst"):  # not in this Python's library, but in dpkg's
            with _dpkg_tar(archive) as tar:
                yield tar
            return
        file = _Part(file, size)
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        yield tar


def _find_data(archive: Path, file: BinaryIO) -> tuple[str, int]:
    """Name and size of the data.tar.* in a Debian package, an `ar` archive; leaves the file there."""
    if file.read(8) != b"!<arch>\n":
        raise ZooError(f"{archive} isn't a Debian package; get it again")
    while len(header := file.read(60)) == 60:
        digits = header[48:58].strip()
        if header[58:] != b"`\n" or not digits.isdigit():
            raise ZooError(f"{archive} is damaged: its member table can't be read; get it again")
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(digits)
        if name.startswith("data.tar"):
            return name, size
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ZooError(f"{archive} is damaged: it holds no data.tar; get it again")


@contextlib.contextmanager
def _dpkg_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise ZooError(f"{archive} is packed with zstd, which needs dpkg-deb; install dpkg, or give the unpacked files")
    with subprocess.Popen(
        [tool, "--fsys-tarfile", str(archive.resolve())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            with tarfile.open(fileobj=child.stdout, mode="r|") as tar:
                yield tar
        finally:
            child.kill()


class _Part:
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data
