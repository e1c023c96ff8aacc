"""Carriers: how the files of a hub travel. A folder or file://, https://, and hf://organisation/name@revision.

A carrier only brings bytes, never more than it was told to expect; whether they are the right ones is decided by the
hub, by sha256. Nothing here imports torch.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import BinaryIO, Protocol

from zoo.errors import ZooError, bare_address
from zoo.paths import expanded, explain
from zoo.strict import Missing, open_plain

BLOCK = 1 << 20
STALL = 20.0  # seconds without a byte after which a connection is given up
SLOWEST, PATIENCE = 256, 60.0  # bytes per second, over at least so many seconds, below which it is given up too
TRIES, MOST_TRIES = 5, 100  # without any progress; in all
LONGEST_WAIT = 60.0  # seconds that a server may ask us to wait
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one in a moment
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HF = re.compile(rf"hf://({PART})/({PART})(?:@({PART}))?")


class Carrier(Protocol):
    address: str  # as it is shown and remembered
    remote: bool  # reached over a network
    single: bool  # holds one checkpoint instead of an index and many

    def read(self, path: str, limit: int) -> bytes:
        """A small file whole. Raises ZooError when it is larger than `limit` bytes, Missing when it isn't there."""

    def fetch(self, path: str, part: Path, size: int) -> None:
        """Complete the file `part`, of which some bytes may be there from before, to `size` bytes."""


def open_carrier(address: str | Path) -> Carrier:
    """The carrier of a hub's address. Opens nothing yet. Raises ZooError for an address that is none."""
    text = str(address)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Folder(expanded(text))
    if scheme == "file":
        parts = urllib.parse.urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ZooError(f"{text} names another machine; a file:// hub has three slashes, as in file:///srv/hub")
        return Folder(expanded(urllib.request.url2pathname(parts.path)))
    if scheme in ("https", "http"):
        return Web(text)
    if scheme == "hf":
        return HuggingFace(text)
    raise ZooError(
        f"{text} is no address of a hub; use a folder, file:///..., https://... or hf://organisation/name@revision"
    )


# ---- folders -------------------------------------------------------------------------------------


class Folder:
    remote = single = False

    def __init__(self, folder: Path):
        self.folder = folder
        self.address = str(folder)

    def read(self, path: str, limit: int) -> bytes:
        with open_plain(self.folder, path) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ZooError(f"{self.folder / path} is larger than the {limit:,} bytes it may have")
        return data

    def fetch(self, path: str, part: Path, size: int) -> None:
        with open_plain(self.folder, path) as source, open(part, "wb") as target:
            there = os.fstat(source.fileno()).st_size
            if there != size:
                raise ZooError(
                    f"{self.folder / path} has {there:,} bytes where its card says {size:,}; it was truncated or "
                    "altered"
                )
            try:
                while (left := size - target.tell()) > 0 and (block := source.read(min(BLOCK, left))):
                    target.write(block)
                target.flush()
            except OSError as error:
                raise explain(error, part, size) from error


# ---- https ---------------------------------------------------------------------------------------


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def check_url(url: str, before: str | None = None) -> None:
    """Raises ZooError unless a hub, or a redirect coming from `before`, may lead to `url`.

    https everywhere; plain http only to and from this machine itself; and nothing from outside is sent to this machine.
    """
    came = "" if before is None else f"{_shown(before)} redirects to "
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is no number raises here
    except ValueError:
        raise ZooError(f"{came}{_shown(url)} is no valid address") from None
    if parts.username or parts.password:
        raise ZooError(f"{came}an address with a password in it, which would end up in logs; leave it out")
    loopback = _is_loopback(host)
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise ZooError(f"{came}{_shown(url)}: only https:// is followed (http:// only to this machine itself)")
    if before is not None and loopback and not _is_loopback(urllib.parse.urlsplit(before).hostname):
        raise ZooError(f"{came}{_shown(url)}, which is this machine itself; that is not followed")


def _shown(url: str) -> str:
    """An address fit for a message: no password, no query, no control characters, not endless."""
    return re.sub(r"[^\x21-\x7e]", "?", bare_address(url))[:200]


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections, max_repeats = 5, 2

    def http_error_302(self, request, response, code, message, headers):
        target = headers.get("location") or headers.get("uri")
        if target:
            try:
                target = urllib.parse.urljoin(request.full_url, target)
            except ValueError:
                raise ZooError(
                    f"{_shown(request.full_url)} redirects to {_shown(target)}, which is no valid address"
                ) from None
            check_url(target, request.full_url)
        return super().http_error_302(request, response, code, message, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Passing(Exception):
    """A failure after which another try makes sense, after `wait` seconds (None: as usual)."""

    def __init__(self, text: str, wait: float | None = None):
        super().__init__(text)
        self.wait = wait


class Web:
    """A hub on a web server; static files are enough. Dropped connections are resumed where they broke."""

    remote, single = True, False

    def __init__(self, address: str):
        check_url(address)
        parts = urllib.parse.urlsplit(address)
        if parts.query or parts.fragment:
            raise ZooError(f"{_shown(address)}: a hub's address has no ? and no #")
        self.address = address.rstrip("/")
        # built by hand: urllib's own opener would also follow file:, ftp: and data:
        self.opener = urllib.request.OpenerDirector()
        proxies = {} if _is_loopback(parts.hostname) else None
        for handler in (
            urllib.request.ProxyHandler(proxies),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
        ):
            self.opener.add_handler(handler)

    def read(self, path: str, limit: int) -> bytes:
        file = io.BytesIO()
        self._transfer(path, file, limit, None)
        return file.getvalue()

    def fetch(self, path: str, part: Path, size: int) -> None:
        try:
            with open(part, "r+b" if part.exists() else "w+b") as file:
                if file.seek(0, os.SEEK_END) > size:
                    file.truncate(0)
                    file.seek(0)
                if file.tell() < size:
                    self._transfer(path, file, size, size)
        except OSError as error:  # of the file: those of the connection are dealt with inside
            raise explain(error, part, size) from error

    def _transfer(self, path: str, file: BinaryIO, limit: int, exact: int | None) -> None:
        """Append to `file` until it is whole, starting again after failures as long as there is progress."""
        url = f"{self.address}/{urllib.parse.quote(path)}"
        furthest, stuck = file.tell(), 0
        for _ in range(MOST_TRIES):
            wait = None
            try:
                self._once(url, file, limit, exact)
                return
            except _Passing as error:
                problem, wait = str(error), error.wait
            if file.tell() > furthest:
                furthest, stuck = file.tell(), 0
            else:
                stuck += 1
            if stuck >= TRIES:
                break
            time.sleep(0.25 * 2**stuck if wait is None else wait)
        raise ZooError(f"{_shown(url)} can't be had ({problem}); what has arrived is kept, so try again later")

    def _once(self, url: str, file: BinaryIO, limit: int, exact: int | None) -> None:
        """One request. Returns when the file is whole; raises _Passing when another try may do better."""
        headers = {"User-Agent": "pretext-zoo", "Accept-Encoding": "identity"}
        if file.tell():
            headers["Range"] = f"bytes={file.tell()}-"
        try:
            response = self.opener.open(urllib.request.Request(url, headers=headers), timeout=STALL)
        except urllib.error.HTTPError as error:
            with error:
                raise _answer(error, url, file) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_reason(error)) from None
        except ZooError:  # of ours, about a redirect
            raise
        except ValueError as error:  # a host, or a path, that can be none: also one that a server sends on to
            raise ZooError(
                f"{_shown(url)} leads to an address that is none ({error}); percent-encode what isn't plain letters"
            ) from None
        with response:
            announced = _announced(response, url, file)
            if announced is not None and exact is not None and announced != exact:
                raise ZooError(
                    f"{_shown(url)} has {announced:,} bytes where {exact:,} are expected; the hub is damaged or was "
                    "changed"
                )
            if announced is not None and announced > limit:
                raise ZooError(f"{_shown(url)} has {announced:,} bytes, more than the {limit:,} it may have")
            _receive(response, url, file, limit, announced)
            whole = announced if announced is not None else exact
            if whole is not None and file.tell() < whole:
                raise _Passing(f"the connection ended after {file.tell():,} of {whole:,} bytes")


def _answer(error: urllib.error.HTTPError, url: str, file: BinaryIO) -> Exception:
    if error.code in (404, 410):
        return Missing(f"{_shown(url)} is not there (the server answers {error.code})")
    if error.code == 416:  # what we hold isn't the beginning of what is there
        file.seek(0)
        file.truncate()
        return _Passing("the server has no more of it")
    if error.code not in PASSING:
        return ZooError(f"{_shown(url)} can't be had: the server answers {error.code}")
    after = error.headers.get("Retry-After", "")
    wait = float(after) if re.fullmatch(r"\d{1,6}", after) else None
    if wait is not None and wait > LONGEST_WAIT:
        return ZooError(f"{_shown(url)} can't be had now: the server asks to come back in {wait:.0f} s")
    return _Passing(f"the server answers {error.code}", wait)


def _announced(response: http.client.HTTPResponse, url: str, file: BinaryIO) -> int | None:
    """Bytes that the whole file has by the server's word, or None. Puts `file` where the answer continues it."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ZooError(
            f"{_shown(url)} comes compressed though it was asked for as it is; the server has to serve plain files"
        )
    if file.tell() and not (
        response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-")
    ):
        file.seek(0)  # the server starts at the beginning
        file.truncate()
        if response.status == 206:
            raise _Passing("the server answers with another part than asked for")
    length = response.headers.get("Content-Length", "")
    return file.tell() + int(length) if re.fullmatch(r"\d{1,40}", length) else None


def _receive(response: http.client.HTTPResponse, url: str, file: BinaryIO, limit: int, announced: int | None) -> None:
    begin, start = time.monotonic(), file.tell()
    while announced is None or file.tell() < announced:
        try:
            block = response.read1(min(BLOCK, limit + 1 - file.tell()))
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_reason(error)) from None
        if not block:
            return
        if file.tell() + len(block) > limit:
            raise ZooError(f"{_shown(url)} sends more than the {limit:,} bytes it may have")
        file.write(block)
        passed = time.monotonic() - begin
        if passed > PATIENCE and file.tell() - start < SLOWEST * passed:
            raise ZooError(f"{_shown(url)} arrives at less than {SLOWEST} bytes per second; try again later")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"nothing arrived for {STALL:.0f} s"
    return " ".join(str(reason).split())[:120] or type(reason).__name__


# ---- Hugging Face --------------------------------------------------------------------------------


class HuggingFace:
    """One checkpoint in a model repository of the Hugging Face Hub, through its own client."""

    remote = single = True

    def __init__(self, address: str):
        # checked before the client sees it: a revision with ../ in it would write outside of the client's cache
        match = HF.fullmatch(address)
        if match is None or ".." in address:
            raise ZooError(
                f"{_shown(address)} is no address of a checkpoint; it looks like hf://organisation/name@revision"
            )
        self.address, self.repository, self.revision = address, f"{match[1]}/{match[2]}", match[3]

    def read(self, path: str, limit: int) -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            file = self._download(path, Path(folder), limit)
            if file.stat().st_size > limit:
                raise ZooError(f"{path} of {self.address} is larger than the {limit:,} bytes it may have")
            return file.read_bytes()

    def fetch(self, path: str, part: Path, size: int) -> None:
        os.replace(self._download(path, part.parent, size, exact=True), part)

    def _download(self, path: str, folder: Path, limit: int, exact: bool = False) -> Path:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            there = huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(self.repository, path, revision=self.revision)
            ).size
            if there is not None and (there > limit or (exact and there != limit)):
                raise ZooError(f"{path} of {self.address} has {there:,} bytes where {limit:,} are expected")
            return Path(
                huggingface_hub.hf_hub_download(self.repository, path, revision=self.revision, local_dir=folder)
            )
        except ZooError:
            raise
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise Missing(f"{self.address} has no {path}, doesn't exist, or needs a login (hf auth login)") from error
        except Exception as error:  # the client raises its own and its transport's errors, of no common kind
            raise ZooError(f"{path} of {self.address} can't be had: {' '.join(str(error).split())[:200]}") from error
