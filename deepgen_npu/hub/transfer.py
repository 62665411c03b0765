"""Bytes over HTTP: one listing or many files, in threads that can be left at any moment.

Everything that may wait (a name, a connection, a slow server) happens in daemon threads. The calling thread only polls
them, ten times a second, so that Ctrl-C acts at once whatever they wait for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urljoin, urlsplit

import requests

from ..checks import Named, must, must_be
from ..errors import DownloadError
from .files import BadAnswer, HubFile, content_id, unfinished_path


CONNECT_SECONDS, SILENT_SECONDS = 15, 20
"""Timeouts; requests restarts the second one for every piece that it receives."""

STALLED_SECONDS = 90
"""Timeout without as much as a chunk for any file: a server that sends single bytes never meets the other two."""

CHUNK = 1 << 15
"""Bytes of a piece."""

WORKERS = 4
"""Files that are fetched at the same time."""

ATTEMPTS, MIN_PROGRESS = 4, 1 << 20
"""Failures of a file in a row that end the download, unless at least that many bytes came between two."""

MAX_REDIRECTS = 8
MAX_LISTING_BYTES = 16 << 20

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of failures that may be temporary."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Refused(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, url: str, code: str | None = None) -> None:
        super().__init__(f"HTTP status {status} for {url.split('?')[0]}")  # behind ? may be a signature
        self.status = status
        self.code = code


class _Stopped(Exception):
    """Ends a thread whose result is no longer needed."""


class Watch:
    """What threads have done, for the thread that polls them.

    Attributes:
        stop: Set when the threads must end.
        have: Bytes of each file that are on disk.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.have: dict[str, int] = {}
        self._last = time.monotonic()
        self._few = 0

    def alive(self) -> None:
        """Called for each piece of work that a hub cannot slow down."""
        if self.stop.is_set():
            raise _Stopped
        self._last, self._few = time.monotonic(), 0

    def received(self, count: int) -> None:
        """Called for each piece that a hub sent, with its bytes."""
        if self.stop.is_set():
            raise _Stopped
        self._few += count
        if self._few >= CHUNK:
            self.alive()

    def check(self) -> None:
        """Raise a timeout when nothing has moved for too long."""
        if time.monotonic() - self._last > STALLED_SECONDS:
            raise requests.Timeout(f"the transfer stalled for {STALLED_SECONDS} seconds")


def in_threads(jobs: Sequence[Callable[[], T]], watch: Watch, poll: Callable[[], None] = lambda: None) -> list[T]:
    """The results of functions, run a few at a time. The first error, or Ctrl-C, stops them all.

    Args:
        jobs: The functions.
        watch: Through which they are stopped.
        poll: Called several times a second, in the thread of the caller.
    """
    waiting: queue.SimpleQueue[tuple[int, Callable[[], T]]] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for job in enumerate(jobs):
        waiting.put(job)

    def work() -> None:
        while not watch.stop.is_set():
            try:
                number, job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results.put((number, job(), None))
            except BaseException as error:
                results.put((number, None, error))
                return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(WORKERS, len(jobs)))]
    done: dict[int, T] = {}
    watch.alive()
    try:
        for thread in threads:
            thread.start()
        while len(done) < len(jobs):
            poll()
            with contextlib.suppress(queue.Empty):
                number, result, error = results.get(timeout=0.1)
                if error is not None:
                    raise error
                done[number] = result
                continue
            watch.check()
    except BaseException:
        watch.stop.set()
        until = time.monotonic() + 0.5  # to finish a write; a thread that waits for a server is left behind
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        raise
    return [done[number] for number in range(len(jobs))]


class Client:
    """Requests to one hub.

    Args:
        endpoint: Its address. The secret is sent to that origin only, never to where it redirects.
        secret: Headers that identify the user.
        watch: Receives the progress.
    """

    def __init__(self, endpoint: str, secret: dict[str, str], watch: Watch) -> None:
        try:
            scheme, host, _ = _origin(endpoint)
        except ValueError:
            scheme = host = None
        if scheme not in ("http", "https") or not host:
            raise DownloadError(must_be("the address of the hub", "a URL that begins with https://", endpoint))
        self.endpoint = endpoint.rstrip("/")
        self._secret = secret
        self.watch = watch

    @contextlib.contextmanager
    def open(self, url: str, **headers: str) -> Iterator[requests.Response]:
        """The answer after all redirects, unread."""
        plain = {"User-Agent": "deepgen", "Accept-Encoding": "identity", **headers}
        secret = self._secret
        with requests.Session() as session:
            for _ in range(MAX_REDIRECTS + 1):
                if _origin(url) != _origin(self.endpoint):
                    secret = {}
                answer = session.get(
                    url,
                    headers={**plain, **secret},
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_SECONDS, SILENT_SECONDS),
                    auth=lambda request: request,  # otherwise requests replaces our header by a netrc file
                )
                with contextlib.closing(answer):
                    self.watch.received(0)
                    if answer.status_code in (301, 302, 303, 307, 308):
                        url = _follow(url, answer.headers.get("Location"))
                        continue
                    if answer.status_code >= 400:
                        raise Refused(answer.status_code, url, answer.headers.get("X-Error-Code"))
                    if answer.status_code not in (200, 206):
                        raise BadAnswer(must_be(f"the status of {url}", "200", answer.status_code))
                    yield answer
                    return
        raise BadAnswer(f"there are more than {MAX_REDIRECTS} redirects in a row")

    def read(self, url: str) -> bytes:
        """A short answer."""
        content = bytearray()
        with self.open(url) as answer:
            for piece in answer.iter_content(CHUNK):
                self.watch.received(len(piece))
                content += piece
                if len(content) > MAX_LISTING_BYTES:
                    raise BadAnswer(must(url, f"have at most {MAX_LISTING_BYTES} bytes", Named("more")))
        return bytes(content)

    def fetch(self, url: str, file: HubFile, place: Path) -> None:
        """Fetch one file to its place, continuing what an earlier attempt left next to it.

        The content gets its name only after it was compared with the list of the hub.

        Raises:
            BadAnswer: The content is not what was listed; nothing of it is kept.
            requests.RequestException, Refused: It cannot be fetched; what was received is kept.
        """
        unfinished = unfinished_path(place, file)
        try:
            with _claimed(unfinished) as stream:
                self._complete(url, file, stream)
            unfinished.replace(place)
        finally:
            with contextlib.suppress(OSError):
                if unfinished.stat().st_size == 0:
                    unfinished.unlink()

    def _complete(self, url: str, file: HubFile, stream: BinaryIO) -> None:
        fresh = stream.seek(0, os.SEEK_END) == 0
        while True:
            if stream.seek(0, os.SEEK_END) != file.size or (fresh and not file.size):
                self._receive_all(url, file, stream)
            found = content_id(stream, file, self.watch.alive)
            if found == file.id:
                return
            stream.truncate(0)
            if fresh:
                kind = "SHA-256" if file.sha256 else "blob id"
                raise BadAnswer(must_be(f"the {kind} of {file.name}", f"{file.id}, as listed", Named(found)))
            fresh = True  # the part of an earlier attempt may be what is wrong

    def _receive_all(self, url: str, file: HubFile, stream: BinaryIO) -> None:
        failures, before = 0, stream.seek(0, os.SEEK_END)
        while True:
            error: Exception
            try:
                self._receive(url, file, stream)
                if stream.tell() == file.size:
                    return
                error = requests.ConnectionError(f"{file.name} ended after {stream.tell()} of {file.size} bytes")
            except requests.RequestException as failure:
                error = failure
            except Refused as refused:
                if refused.status == 416:
                    stream.truncate(0)
                elif refused.status not in RETRIED:
                    raise
                error = refused
            size = stream.seek(0, os.SEEK_END)
            failures = 1 if size >= before + MIN_PROGRESS else failures + 1
            before = size
            if failures >= ATTEMPTS:
                raise error
            logger.info("%s stopped at %d bytes and continues: %s", file.name, size, error)
            if self.watch.stop.wait(0.5 * 2 ** (failures - 1)):
                raise _Stopped

    def _receive(self, url: str, file: HubFile, stream: BinaryIO) -> None:
        have = stream.seek(0, os.SEEK_END)
        if have > file.size:
            have = stream.truncate(0)
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self.open(url, **headers) as answer:
            if answer.status_code == 200:
                have = 0
                length = answer.headers.get("Content-Length", "")
                if length.isdecimal() and "Content-Encoding" not in answer.headers and int(length[:20]) != file.size:
                    raise BadAnswer(must(file.name, f"have {file.size} bytes, as listed", Named(length[:20])))
            elif answer.headers.get("Content-Range") != f"bytes {have}-{file.size - 1}/{file.size}":
                stream.truncate(0)
                raise requests.ConnectionError(f"the answer is not the requested range of {file.name}")
            stream.seek(have)
            stream.truncate()
            for piece in answer.iter_content(CHUNK):
                if have + len(piece) > file.size:
                    stream.truncate(0)
                    raise BadAnswer(must(file.name, f"have {file.size} bytes, as listed", Named("more")))
                stream.write(piece)
                have += len(piece)
                self.watch.have[file.name] = have
                self.watch.received(len(piece))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _follow(url: str, location: str | None) -> str:
    """The address that a redirect leads to."""
    schemes = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
    try:
        target = urljoin(url, location or "")
        parts = urlsplit(target)
        _origin(target)  # raises if the port is invalid
    except ValueError:
        target, parts = "", urlsplit("")
    if not location or not parts.hostname or parts.scheme not in schemes:
        raise BadAnswer(must_be("the target of a redirect", f"a URL of {' or '.join(schemes)}", location))
    return target


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[BinaryIO]:
    """The file at a path, made where there is none, for reading and writing by one process.

    A link or anything else in its place is removed first, never followed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_nlink > 1:
            path.unlink()
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b") as stream:
        with contextlib.suppress(ImportError):  # on Windows, where two at once end in a wrong id
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DownloadError(
                    f"{path} is being written by another download. Wait for it, or stop it, then run this one again."
                ) from None
        yield stream
