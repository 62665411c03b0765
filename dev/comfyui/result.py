"""What one prompt did, as seen by the client that queued it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image


class Progress(NamedTuple):
    """One step of a progress bar; `state` is set only by the newer `progress_state` messages."""

    node: str
    value: float
    max: float
    state: str = ""


@dataclass(frozen=True)
class Preview:
    """An image sent while a node was running; the old frame type carries no metadata."""

    image: Image.Image
    metadata: dict[str, Any] | None = None
    node: str | None = None


@dataclass(frozen=True)
class OutputFile:
    """One file a node reported, with the bytes the server serves for it."""

    node: str
    key: str
    filename: str
    subfolder: str
    type: str
    data: bytes = field(repr=False)

    @property
    def image(self) -> Image.Image:
        image = Image.open(io.BytesIO(self.data))
        image.load()
        return image

    @property
    def text(self) -> dict[str, str]:
        """Text chunks of a PNG file: `prompt` and what `extra_pnginfo` held."""
        return dict(getattr(self.image, "text", {}))


@dataclass
class RunResult:
    """Everything known about one prompt.

    `status` is "success", "error" or "interrupted". `executed` has the ids of the nodes that
    ran, in order; `cached` those whose results were reused. `progress` has the classic
    `progress` messages (`ProgressBar`), `progress_states` the per-node states, which are the
    only messages of `ComfyAPI.execution.set_progress`.
    """

    prompt_id: str
    status: str = ""
    history: dict[str, Any] = field(default_factory=dict, repr=False)
    files: list[OutputFile] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    progress_states: list[Progress] = field(default_factory=list, repr=False)
    previews: list[Preview] = field(default_factory=list, repr=False)
    error: dict[str, Any] | None = None
    interrupted: bool = False
    node_errors: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list, repr=False)
    queued_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    node_started_at: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "success"

    @property
    def finished(self) -> bool:
        return self.finished_at is not None

    @property
    def outputs(self) -> dict[str, Any]:
        return self.history.get("outputs", {})

    @property
    def images(self) -> list[Image.Image]:
        return [file.image for file in self.files if file.key == "images"]

    def images_of(self, node: str) -> list[Image.Image]:
        return [f.image for f in self.files if f.node == str(node) and f.key == "images"]

    @property
    def seconds(self) -> float:
        """From the start of the execution to its end, without the time in the queue."""
        if self.finished_at is None:
            return 0.0
        return self.finished_at - (self.started_at or self.queued_at)

    @property
    def error_text(self) -> str:
        """Message of the node that failed, one line for assertions and reports."""
        if self.error is None:
            return ""
        fields = ("node_type", "exception_type", "exception_message")
        return ": ".join(str(self.error.get(name, "")).strip() for name in fields)
