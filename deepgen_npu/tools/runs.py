"""Whole runs for `bench` and `verify`: from settings that can be saved to latents and an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .. import checks
from ..conditioning import Conditioning
from ..formatting import format_size
from ..pipeline import DeepGenPipeline


STAGES = ("encode", "denoise", "decode")

EVERY_STEP: Mapping[str, Any] = {"guidance_every": 1}
"""A setting that files leave out where it has no effect: older ones do not know it."""


@dataclass(frozen=True)
class RunSettings:
    """All that determines an image except the model, its dtype and the device.

    Attributes:
        references: Number of reference images, which are those of `reference_images`.
        guidance_every: As in `DeepGenPipeline`. Files that were saved before it have none: it is 1.
    """

    prompt: str
    height: int
    width: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    references: int = 0
    guidance_every: int = 1

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> RunSettings:
        """The settings that a file contains.

        Args:
            stored: By name; it may contain anything.

        Raises:
            ValueError, TypeError: Naming what is missing, unknown or of a wrong kind.
        """
        names = [field.name for field in fields(cls)]
        found = checks.Named(f"{len(stored)} keys")
        stored = {**EVERY_STEP, **stored}
        if stored.keys() != set(names):
            wrong = checks.shown(sorted(stored.keys() ^ set(names)))
            advice = f"Missing or unknown: {wrong}."
            raise ValueError(checks.must("settings", f"have the keys {', '.join(names)}", found, advice=advice))
        if not isinstance(stored["prompt"], str):
            raise TypeError(checks.must_be("prompt", "a string", stored["prompt"]))
        steps, guidance = checks.steps(stored["num_inference_steps"], stored["guidance_scale"])
        return cls(
            stored["prompt"],
            checks.positive("height", stored["height"], checks.MAX_SIDE),
            checks.positive("width", stored["width"], checks.MAX_SIDE),
            checks.seed(stored["seed"]),
            steps,
            guidance,
            checks.integer("references", stored["references"], 0, checks.MAX_REFERENCES),
            checks.guidance_every(stored["guidance_every"]),
        )

    def as_dict(self) -> dict[str, Any]:
        """For a file, as `of` reads it; without ``guidance_every`` where it is 1."""
        return dict(item for item in vars(self).items() if item not in EVERY_STEP.items())

    def __str__(self) -> str:
        task = f"editing with {self.references} reference(s)" if self.references else "generation"
        return (
            f"{task} at {format_size(self.width, self.height)}, {self.num_inference_steps} steps, "
            f"guidance {self.guidance_scale:g}{_in_every(self.guidance_every)}, seed {self.seed}"
        )


def _in_every(count: int) -> str:
    return f" in one of {count} steps" if count > 1 else ""


def run(
    pipe: DeepGenPipeline,
    settings: RunSettings,
    stage: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
    on_conditioning: Callable[[Conditioning], object] = lambda conditioning: None,
) -> tuple[Tensor, Image.Image]:
    """Make one image, from noise that is the same on every device.

    Args:
        pipe: The pipeline.
        settings: Of the run.
        stage: Called with each name of `STAGES`; the stage runs inside the context manager that it returns.
        on_conditioning: Called with the result of the first stage, after it.

    Returns:
        The final latents [1, C, H/8, W/8] in scaled space, and the image.
    """
    height, width = settings.height, settings.width
    references = reference_images(settings.references, height, width)
    noise = pipe.prepare_latents(1, height, width, seed=settings.seed)
    try:
        with stage("encode"):
            conditioning = pipe.encode(settings.prompt, references or None, "", height, width)
        on_conditioning(conditioning)
        with stage("denoise"):
            latents = pipe.denoise(
                conditioning,
                noise,
                settings.num_inference_steps,
                settings.guidance_scale,
                guidance_every=settings.guidance_every,
            )
        with stage("decode"):
            images = pipe.decode(latents, "pil")
    finally:
        pipe.placement.release()
    return latents, images[0]  # pyright: ignore[reportReturnType]


def reference_images(count: int, height: int, width: int) -> list[Image.Image]:
    """Images to edit: colour gradients under a checkerboard, by integer arithmetic the same on every machine."""
    rows, columns = np.mgrid[0:height, 0:width]
    images = []
    for number in range(count):
        cells = (rows // 32 + columns // 32 + number) % 2 * 96
        channels = (rows * 159 // height + cells, columns * 159 // width + cells, 40 * (number % 4) + cells)
        images.append(Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)))
    return images
