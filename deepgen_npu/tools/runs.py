"""Whole runs for `bench` and `verify`: from settings that can be written down to latents and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .. import checks
from ..pipeline import DeepGenPipeline


STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class RunSettings:
    """All that decides about a picture but the model, its dtype and the device.

    Attributes:
        references: Number of reference pictures; they are `reference_pictures`, the same on every machine.
    """

    prompt: str
    height: int
    width: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    references: int = 0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> RunSettings:
        """The settings that somebody wrote down.

        Raises:
            ValueError, TypeError: Naming what is missing, unknown or of a wrong kind.
        """
        names = [field.name for field in fields(cls)]
        if told.keys() != set(names):
            raise ValueError(
                f"settings has the keys {checks.shown(', '.join(sorted(told)))}; {', '.join(names)} are wanted."
            )
        if not isinstance(told["prompt"], str):
            raise TypeError(f"prompt is {checks.shown(told['prompt'])}; a string is wanted.")
        steps, guidance = checks.steps(told["num_inference_steps"], told["guidance_scale"])
        return cls(
            told["prompt"],
            checks.positive("height", told["height"], checks.MAX_SIDE),
            checks.positive("width", told["width"], checks.MAX_SIDE),
            checks.seed(told["seed"]),
            steps,
            guidance,
            checks.whole("references", told["references"], 0, checks.MAX_REFERENCES),
        )

    def __str__(self) -> str:
        task = f"editing with {self.references} reference(s)" if self.references else "generation"
        return (
            f"{task} at {self.width} x {self.height}, {self.num_inference_steps} steps, "
            f"guidance {self.guidance_scale:g}, seed {self.seed}"
        )


def run(
    pipe: DeepGenPipeline,
    settings: RunSettings,
    stage: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
) -> tuple[Tensor, Image.Image]:
    """Make one picture, from noise that is the same on every device.

    Args:
        stage: Called with each name of `STAGES`; the stage runs inside of what it returns.

    Returns:
        The final latents [1, C, H/8, W/8] in scaled space, and the picture.
    """
    height, width = settings.height, settings.width
    images = reference_pictures(settings.references, height, width)
    noise = pipe.prepare_latents(1, height, width, seed=settings.seed)
    try:
        with stage("encode"):
            conditioning = pipe.encode(settings.prompt, images or None, "", height, width)
        with stage("denoise"):
            latents = pipe.denoise(conditioning, noise, settings.num_inference_steps, settings.guidance_scale)
        with stage("decode"):
            pictures = pipe.decode(latents, "pil")
    finally:
        pipe.placement.release()
    return latents, pictures[0]  # pyright: ignore[reportReturnType]


def reference_pictures(count: int, height: int, width: int) -> list[Image.Image]:
    """Pictures to edit: colour gradients with a chequered pattern, by whole numbers the same everywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    pictures = []
    for number in range(count):
        cells = (rows // 32 + columns // 32 + number) % 2 * 96
        channels = (rows * 159 // height + cells, columns * 159 // width + cells, 40 * (number % 4) + cells)
        pictures.append(Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)))
    return pictures
