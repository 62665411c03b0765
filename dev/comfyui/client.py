"""Queue prompts on a running server and record all it says about them."""

from __future__ import annotations

import io
import json
import struct
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import websocket
from PIL import Image

from .result import OutputFile, Preview, Progress, RunResult
from .server import ComfyServer, ServerError


Prompt = Mapping[str, Any]

# Binary frames start with one of these as a big-endian 32-bit number.
PREVIEW = 1
PREVIEW_WITH_METADATA = 4


class PromptRejected(RuntimeError):
    """The server refused a prompt; `errors` has `error` and `node_errors`."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(json.dumps(errors, indent=1)[:4000])
        self.errors = errors


class Job:
    """A queued prompt; its result fills up while any method of the client waits."""

    def __init__(self, client: Client, result: RunResult, on_progress: Callable[[Progress], None] | None) -> None:
        self.client = client
        self.result = result
        self.on_progress = on_progress

    @property
    def id(self) -> str:
        return self.result.prompt_id

    def wait_until(self, condition: Callable[[RunResult], bool], timeout: float = 60.0) -> RunResult:
        """Read messages until the condition holds; an earlier end of the prompt is an error."""
        deadline = time.monotonic() + timeout
        while not condition(self.result):
            if self.result.finished:
                raise AssertionError(f"prompt ended as {self.result.status} before the condition")
            self.client.read_message(deadline)
        return self.result

    def interrupt(self, timeout: float = 60.0) -> None:
        """Cancel this prompt; one that still waits in the queue is cancelled once it starts."""
        self.wait_until(lambda r: r.started_at is not None, timeout)
        self.client.server.post("/interrupt", {"prompt_id": self.id})

    def wait(self, timeout: float = 120.0) -> RunResult:
        deadline = time.monotonic() + timeout
        while not self.result.finished:
            self.client.read_message(deadline)
        self.client.complete(self.result)
        return self.result


class Client:
    """One web socket session; use it as a context manager.

    Args:
        server: a running server.
        preview_metadata: announce support for previews with metadata, as the newer front ends
            do. Without it the server sends the old preview frames.
    """

    def __init__(self, server: ComfyServer, preview_metadata: bool = True) -> None:
        self.server = server
        self.id = uuid.uuid4().hex
        self.server_features: dict[str, Any] = {}
        self._jobs: dict[str, Job] = {}
        self._running: Job | None = None
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}/ws?clientId={self.id}",
            timeout=30,
            http_no_proxy=["127.0.0.1"],
        )
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": preview_metadata}}
        self._socket.send(json.dumps(flags))
        deadline = time.monotonic() + 30
        while not self.server_features:
            self.read_message(deadline)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Definitions of all nodes, or of one: {} if the server does not know it."""
        return self.server.get(f"/object_info/{urllib.parse.quote(node)}" if node else "/object_info").json()

    def start(
        self,
        prompt: Prompt,
        extra_data: Mapping[str, Any] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Job:
        """Queue a prompt in API format; raises PromptRejected if it is not valid.

        The server runs a prompt of which only some outputs are valid, and says so in
        `RunResult.node_errors`.
        """
        payload = {"prompt": prompt, "client_id": self.id, "extra_data": dict(extra_data or {})}
        queued_at = time.monotonic()
        response = self.server.request("/prompt", payload)
        if response.status == 400:
            raise PromptRejected(response.json())
        if response.status != 200:
            raise ServerError(f"/prompt: HTTP {response.status}\n{self.server.log_tail()}")
        answer = response.json()
        result = RunResult(answer["prompt_id"], queued_at=queued_at)
        result.node_errors = answer.get("node_errors") or {}
        job = Job(self, result, on_progress)
        self._jobs[job.id] = job
        return job

    def run(
        self,
        prompt: Prompt,
        extra_data: Mapping[str, Any] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float = 120.0,
    ) -> RunResult:
        return self.start(prompt, extra_data, on_progress).wait(timeout)

    def validate(self, prompt: Prompt) -> dict[str, Any] | None:
        """Errors of a prompt as the server reports them (`error`, `node_errors`), else None.

        The server cannot check without queueing: a valid prompt is taken back at once, but its
        first nodes may have run by then.
        """
        try:
            job = self.start(prompt)
        except PromptRejected as rejected:
            return rejected.errors
        self.server.post("/queue", {"delete": [job.id]})
        queue = self.server.get("/queue").json()
        known = self.server.get(f"/history/{job.id}").json()
        if known or any(job.id == item[1] for items in queue.values() for item in items):
            self.server.post("/interrupt", {"prompt_id": job.id})
            job.wait()
        errors = job.result.node_errors
        return {"error": None, "node_errors": errors} if errors else None

    def interrupt(self) -> None:
        """Cancel whatever runs now."""
        self.server.interrupt()

    def free(self) -> None:
        self.server.free()

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        query = {"filename": filename, "subfolder": subfolder, "type": type}
        return self.server.get("/view?" + urllib.parse.urlencode(query)).body

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.server.get(f"/history/{prompt_id}").json().get(prompt_id, {})

    def read_message(self, deadline: float) -> None:
        """Take in one message, or return without one after a second."""
        self._socket.settimeout(max(0.05, min(1.0, deadline - time.monotonic())))
        try:
            kind, data = self._socket.recv_data()
        except websocket.WebSocketTimeoutException:
            self.server.check_alive()
            if time.monotonic() > deadline:
                log = self.server.log_tail()
                raise TimeoutError(f"ComfyUI {self.server.version} is silent\n{log}") from None
            return
        except (websocket.WebSocketException, OSError) as error:
            raise ServerError(f"web socket: {error}\n{self.server.log_tail()}") from error
        if kind == websocket.ABNF.OPCODE_TEXT:
            message = json.loads(data)
            self._take_event(message["type"], message.get("data") or {})
        elif kind == websocket.ABNF.OPCODE_BINARY:
            self._take_frame(data)

    def _take_event(self, kind: str, data: dict[str, Any]) -> None:
        now = time.monotonic()
        if kind == "feature_flags":
            self.server_features = data
        job = self._jobs.get(data.get("prompt_id", ""))
        if job is None:
            return
        result = job.result
        result.events.append((kind, data))
        if kind == "execution_start":
            result.started_at = now
            self._running = job
        elif kind == "execution_cached":
            result.cached = [str(node) for node in data["nodes"]]
        elif kind == "executing":
            if data["node"] is None:
                result.finished_at = now
            elif data["node"] not in result.node_started_at:
                result.node_started_at[data["node"]] = now
                result.executed.append(data["node"])
        elif kind == "progress":
            progress = Progress(str(data["node"]), data["value"], data["max"])
            result.progress.append(progress)
            if job.on_progress:
                job.on_progress(progress)
        elif kind == "progress_state":
            for node, state in data["nodes"].items():
                progress = Progress(node, state["value"], state["max"], state["state"])
                # Each message repeats the states of all nodes: keep the changes.
                last = [p for p in result.progress_states if p.node == node][-1:]
                if last != [progress]:
                    result.progress_states.append(progress)
        elif kind == "execution_error":
            result.error = data
        elif kind == "execution_interrupted":
            result.interrupted = True

    def _take_frame(self, data: bytes) -> None:
        (kind,) = struct.unpack_from(">I", data)
        if kind == PREVIEW:
            job, metadata, frame = self._running, None, data[8:]
        elif kind == PREVIEW_WITH_METADATA:
            (size,) = struct.unpack_from(">I", data, 4)
            metadata = json.loads(data[8 : 8 + size])
            job, frame = self._jobs.get(metadata.get("prompt_id", "")), data[8 + size :]
        else:
            return
        if job is None:
            return
        image = Image.open(io.BytesIO(frame))
        image.load()
        node = metadata["node_id"] if metadata else (job.result.executed or [None])[-1]
        job.result.previews.append(Preview(image, metadata, node))

    def complete(self, result: RunResult) -> None:
        """Fill in what only the history of an ended prompt has."""
        result.history = self.history(result.prompt_id)
        status = result.history.get("status") or {}
        result.status = "interrupted" if result.interrupted else status.get("status_str", "")
        result.files = self.files_of(result.history)
        self._jobs.pop(result.prompt_id, None)

    def files_of(self, history: Mapping[str, Any]) -> list[OutputFile]:
        files = []
        for node, output in history.get("outputs", {}).items():
            for key, items in output.items():
                for item in items if isinstance(items, list) else []:
                    if not isinstance(item, dict) or "filename" not in item:
                        continue
                    kind = item.get("type", "output")
                    place = (item["filename"], item.get("subfolder", ""), kind)
                    files.append(OutputFile(node, key, *place, data=self.view(*place)))
        return files
