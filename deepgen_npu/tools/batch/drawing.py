"""A row and a pipeline to images in the output folder."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...editing import Drawing
from ...errors import DeepGenError
from ...image_files import open_image, open_mask
from ...image_request import ImageRequest
from ...memory import OutOfDeviceMemory
from ...pipeline import DeepGenPipeline
from .. import doctor
from .folder import OutputFolder
from .manifest import ERROR, Entry
from .names import image_files
from .rows import Row
from .survey import Job


ROW_ERRORS = (ValueError, TypeError, ArithmeticError, OutOfDeviceMemory, MemoryError)
"""What is the fault of a row: the next one may be right. `FloatingPointError` of NaN latents is arithmetic."""

MOST_OUT_OF_MEMORY = 3
"""Rows without enough memory, one after the other, after which it is not theirs."""


class RunError(DeepGenError, RuntimeError):
    """The fault of a run, whatever the row."""


@dataclass(frozen=True)
class Loaded:
    """A row with its images read, or why they cannot be.

    Attributes:
        row: The row.
        request: With its images; None if they cannot be read.
        error: Why not.
    """

    row: Row
    request: ImageRequest | None = None
    error: str = ""


@dataclass(frozen=True)
class Drawn:
    """The images of a row, or why there are none.

    Attributes:
        images: In the order of their seeds.
        kept: What an edit in place left alone, for each image.
        size: (height, width) to draw at, as of `ImageRequest`.
        seconds: That it took.
        error: Why there are none.
    """

    images: Sequence[Image.Image] = field(default=(), repr=False)
    kept: Sequence[Mapping[str, Any] | None] = ()
    size: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    error: str = ""


@dataclass
class Painter:
    """Draws rows. `load` and `save` may run in other threads while a row is drawn.

    Attributes:
        pipe: The pipeline.
        folder: Where images go.
        run: What decides about all images, for their fingerprints.
        parameters: What is the same for all images, for the text of PNGs.
        device: Name of the card or processor.
    """

    pipe: DeepGenPipeline
    folder: OutputFolder
    run: Mapping[str, Any]
    parameters: Mapping[str, Any]
    device: str

    def __post_init__(self) -> None:
        self._out_of_memory = 0

    def load(self, row: Row) -> Loaded:
        """Read the images that a row names; with VLM and connector on another card than the DiT, encode them, too.

        On the card that draws, encoding could only wait for its turn.
        """
        try:
            references = [open_image(Path(name)) for name in row.images]
            mask = open_mask(Path(row.mask)) if row.mask else None
            asked = row.keep_unchanged, row.follow_input, row.height, row.width
            request = ImageRequest(self.pipe.sizes, references, mask, *asked)
            if self._has_second_card and not request.in_place:
                # It stays in the pipeline's cache. Without memory for it, drawing finds none either, and counts that.
                with contextlib.suppress(OutOfDeviceMemory):
                    self.pipe.encode_prompt(row.prompt, request.shown or None, row.negative_prompt, *request.size)
        except (*ROW_ERRORS, OSError) as error:
            return Loaded(row, error=str(error) or type(error).__name__)
        return Loaded(row, request)

    def draw(self, loaded: Loaded) -> Drawn:
        """Draw the images of a row, each from its own seed, one at a time. They share one encoding.

        Raises:
            RunError: When several rows have not found enough memory.
        """
        if loaded.request is None:
            return Drawn(error=loaded.error)
        start = time.perf_counter()
        request, row = loaded.request, loaded.row
        images, kept = [], []
        try:
            for seed in row.seeds:
                ((image, found),) = request.draw(self._drawing(row, request.references[1:], seed))
                images.append(image)
                kept.append(None if found is None else found.as_dict())
        except ROW_ERRORS as error:
            self._count_memory(error)
            return Drawn(error=str(error) or type(error).__name__)
        finally:
            self.pipe.placement.release()
        self._out_of_memory = 0
        return Drawn(images, kept, request.size, time.perf_counter() - start)

    def save(self, job: Job, drawn: Drawn) -> Entry:
        """Write the images of a row; its line of the manifest, also for what is the row's own fault.

        Raises:
            OSError: When they cannot be written: the fault of the run.
        """
        row = job.row
        place: dict[str, Any] = {"node": socket.gethostname(), "device": self.device}
        if drawn.error:
            return Entry(row.number, row.id, ERROR, error=drawn.error, extra=row.extra, **place)
        for number, (image, name) in enumerate(zip(drawn.images, image_files(row.id, row.n), strict=True)):
            self.folder.save_image(image, name, self._text(job, drawn, number))
        kept = drawn.kept if any(drawn.kept) else ()
        return job.line(drawn.images, seconds=round(drawn.seconds, 3), kept=kept, **place)

    def facts(self) -> dict[str, Any]:
        """Where and with what it draws, for ``run.json``."""
        return {
            "node": socket.gethostname(),
            "device": self.device,
            "place": self.parameters["device"],
            "dtype": self.parameters["dtype"],
            "versions": doctor.versions(),
        }

    @cached_property
    def _has_second_card(self) -> bool:
        devices = {name: part.device for name, part in self.pipe.memory().items()}
        return devices["vlm"] != devices["transformer"]

    def _drawing(self, row: Row, others: Sequence[Image.Image], seed: int) -> Drawing:
        def noise(height: int, width: int) -> Tensor:
            return self.pipe.prepare_latents(1, height, width, seed=seed)

        texts = [row.prompt], row.negative_prompt
        run = row.num_inference_steps, row.guidance_scale
        return Drawing(self.pipe, *texts, others, 1, noise, *run, guidance_every=row.guidance_every)

    def _count_memory(self, error: BaseException) -> None:
        if not isinstance(error, (OutOfDeviceMemory, MemoryError)):
            return
        self._out_of_memory += 1
        if self._out_of_memory >= MOST_OUT_OF_MEMORY:
            raise RunError(f"{self._out_of_memory} rows, one after the other, found too little memory. {error}")

    def _text(self, job: Job, drawn: Drawn, number: int) -> dict[str, Any]:
        """What a PNG says: as those of ``generate``, and what a later batch needs to know."""
        row, settings = job.row, job.row.settings()
        files = [Path(name).name for name in settings.pop("images")]
        mask = settings.pop("mask")
        shown = {name: settings.pop(name) for name in ("prompt", "negative_prompt")}
        return {
            **self.parameters,
            **shown,
            "input_images": files,
            "mask": Path(mask).name if mask else None,
            "keep_unchanged": row.keep_unchanged,
            "height": drawn.size[0],
            "width": drawn.size[1],
            "seed": row.seeds[number],
            "noise": "cpu",
            "num_inference_steps": row.num_inference_steps,
            "guidance_scale": row.guidance_scale,
            **({"guidance_every": row.guidance_every} if row.guidance_every > 1 else {}),
            "index": number,
            **({"kept": drawn.kept[number]} if drawn.kept[number] else {}),
            "batch": {"id": row.id, "fingerprint": job.fingerprint, "settings": {**settings, **self.run}},
        }
