"""A loopback server that imitates what a download needs of Hugging Face and of ModelScope."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from deepgen_npu.errors import DownloadError


COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
DATA = {
    "model_index.json": b'{"_class_name": "X"}',
    "vae/config.json": b'{"z_dim": 16}',
    "tokenizer/merges.txt": b"a b\n",
    WEIGHTS: random.Random(0).randbytes(60_000),
}
"""A small model to serve."""
EACH_SOURCE = pytest.mark.parametrize("source", ["huggingface", "modelscope"])


@dataclass(frozen=True)
class Request:
    """One request that reached the server; ``file`` is the repository file it asks for, ``user`` the secret."""

    method: str
    path: str
    file: str | None = None
    range: str | None = None
    user: str | None = None


@dataclass(repr=False)
class Hub:
    """What the server offers, how it misbehaves, and its requests.

    Attributes:
        model_id: The only repository.
        files: Its content by path.
        log: Every request, in order of arrival.
        stop_at: For a file, the offset at which the connection is dropped, and how often.
        status: For a route ("info", "sizes", "file"), an HTTP status to answer instead.
        relist: Changes a listing's JSON before it is sent.
        headers: Added to those of the answers with a file's content, or in their place; None removes one.
        listing_headers: The same, of the answers with a listing.
        contents: For a file, what is sent instead of the listed content.
        drip: For a file, the number of bytes after which it sends one byte a second; for "info", the same of a
            listing. A negative one blocks before the headers.
    """

    model_id: str
    files: dict[str, bytes]
    url: str = ""
    log: list[Request] = field(default_factory=list)
    stop_at: dict[str, tuple[int, int]] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    relist: Callable[[Any], Any] = lambda listing: listing
    headers: dict[str, str | None] = field(default_factory=dict)
    listing_headers: dict[str, str | None] = field(default_factory=dict)
    ignores_ranges: bool = False
    contents: dict[str, bytes] = field(default_factory=dict)
    drip: dict[str, int] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)

    def __repr__(self) -> str:
        return f"Hub({self.url})"

    def requested(self, *methods: str) -> list[str]:
        """The repository files that were requested, with repeats."""
        counted = methods or ("GET", "HEAD")
        return [item.file for item in self.log if item.file and item.method in counted]

    def etag(self, path: str) -> str:
        return hashlib.sha256(self.files[path]).hexdigest()

    def blob_id(self, path: str) -> str:
        content = self.files[path]
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def entry(self, path: str, sizes: bool = True) -> dict[str, Any]:
        """A file as the two Hugging Face listings show it; safetensors are LFS files there."""
        size, digest = len(self.files[path]), self.etag(path)
        shown: dict[str, Any] = {"type": "file", "path": path, "rfilename": path}
        if sizes:
            shown |= {"size": size, "oid": self.blob_id(path), "blobId": self.blob_id(path)}
            if path.endswith(".safetensors"):
                large = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
                shown["lfs"] = large
        return shown


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has disconnected
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        repo = self.hub.model_id
        file = None
        if path.startswith(f"/{repo}/resolve/"):
            file = path.removeprefix(f"/{repo}/resolve/").split("/", 1)[1]
        elif path == f"/api/v1/models/{repo}/repo":
            file = query["FilePath"][0]
        self.hub.log.append(Request(self.command, self.path, file, self.headers.get("Range"), self._user()))

        refused = self.hub.status.get("file" if file else "info")
        if refused is None and "blobs" in query:
            refused = self.hub.status.get("sizes")
        if refused is not None:
            self._refuse(refused)
        elif file is not None:
            self._send_file(file)
        elif path.startswith(f"/api/models/{repo}/tree/"):
            self._send_json([self.hub.entry(name) for name in self.hub.files])
        elif path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
            listing = [self.hub.entry(name, "blobs" in query) for name in self.hub.files]
            self._send_json({"id": repo, "sha": COMMIT, "siblings": listing, "tags": []})
        elif path == f"/api/v1/models/{repo}/repo/files":
            listing = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(content)}
                | {"Sha256": self.hub.etag(name), "Revision": COMMIT}
                for name, content in self.hub.files.items()
            ]
            self._send_json({"Code": 200, "Success": True, "Data": {"Files": listing}})
        elif path == f"/api/v1/models/{repo}/revisions":
            branches = {"Branches": [{"Revision": "master", "CreatedAt": 0}], "Tags": []}
            self._send_json({"Code": 200, "Success": True, "Data": {"RevisionMap": branches}})
        elif path == f"/api/v1/models/{repo}":
            self._send_json({"Code": 200, "Success": True, "Data": {"Name": repo}})
        else:
            self._refuse(404)

    def _user(self) -> str | None:
        return self.headers.get("Authorization") or self.headers.get("Cookie")

    def _refuse(self, status: int) -> None:
        code = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}.get(status)
        body = json.dumps({"error": "refused", "Code": status, "Message": "refused"}).encode()
        self._start(status, len(body), {"X-Error-Code": code} if code else {})
        if self.command == "GET":
            self.wfile.write(body)

    def _send_json(self, value: object) -> None:
        value = self.hub.relist(value)
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self._send("info", 200, body, {"Content-Type": "application/json", **self.hub.listing_headers})

    def _send_file(self, name: str) -> None:
        if name not in self.hub.files:
            self._refuse(404)
            return
        content = self.hub.contents.get(name, self.hub.files[name])
        first, last = 0, len(content) - 1
        headers: dict[str, str | None] = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{self.hub.entry(name).get("lfs", {}).get("oid", self.hub.blob_id(name))}"'
        status = 200
        bounds = self.headers.get("Range")
        if bounds and not self.hub.ignores_ranges:
            start, _, end = bounds.removeprefix("bytes=").partition("-")
            first, last = int(start), int(end) if end else last
            if first >= len(content):
                self._refuse(416)
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status = 206
        body = content[first : last + 1]
        offset, times = self.hub.stop_at.get(name, (0, 0))
        if self.command == "GET" and times and first + len(body) > offset:
            self.hub.stop_at[name] = (offset, times - 1)
            self._start(status, len(body), headers | self.hub.headers)
            self.wfile.write(body[: max(0, offset - first)])
            self.close_connection = True
            return
        self._send(name, status, body, headers | self.hub.headers)

    def _send(self, what: str, status: int, body: bytes, headers: dict[str, str | None]) -> None:
        at_once = self.hub.drip.get(what, len(body))
        if at_once < 0:
            self.hub.closing.wait()
        self._start(status, len(body), headers)
        if self.command == "HEAD":
            return
        self.wfile.write(body[:at_once])
        for byte in body[at_once:]:
            if self.hub.closing.wait(1):
                self.close_connection = True
                return
            self.wfile.write(bytes([byte]))

    def _start(self, status: int, length: int, headers: dict[str, str | None]) -> None:
        self.send_response(status if "Location" not in headers else 302)
        shown = {"Content-Length": str(length), **headers}
        for key, value in shown.items():
            if value is not None:
                self.send_header(key, value)
        if shown["Content-Length"] is None:
            self.send_header("Connection", "close")
        self.end_headers()


@contextmanager
def serve(model_id: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve one repository on a free port of 127.0.0.1 until the block ends."""
    hub = Hub(model_id, files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def assert_clear(error: DownloadError) -> None:
    """Printable, of bounded length, and nothing that a hub sends makes a line of its own, least of all a command."""
    text = str(error)
    lines = text.splitlines()
    assert all(line.isprintable() for line in lines), ascii(text)
    assert 40 < len(text) < 1200
    if len(lines) > 1:
        about, command, then = lines
        assert about.endswith(" log in:") and command in ("    hf auth login", "    modelscope login")
        assert then.startswith("Then run the download again")
