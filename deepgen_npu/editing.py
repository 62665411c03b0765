"""Edits that keep the rest: what a pipeline draws of an image, and what becomes of it (see `edits`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from .checks import must_be, type_of
from .edits.fitting import Fit, padded
from .edits.masks import as_mask
from .edits.region import Region, plan
from .edits.run import EditedImage, edit_regions
from .images import unit_pixels


if TYPE_CHECKING:
    import numpy as np

    from .conditioning import Conditioning
    from .sizes import SizeRules

Mask: TypeAlias = "Image.Image | np.ndarray | Tensor"
"""What `edits.masks.as_mask` takes."""


class Stages(Protocol):
    """The three stages of `DeepGenPipeline`."""

    def encode(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None,
        negative_prompt: str | None,
        height: int,
        width: int,
        num_images_per_prompt: int,
    ) -> Conditioning:
        """Stage 1."""
        ...

    def denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        callback_on_step_end: Any,
        *,
        guidance_every: int,
    ) -> Tensor:
        """Stage 2."""
        ...

    def decode(self, latents: Tensor, output_type: str) -> Any:
        """Stage 3."""
        ...


@dataclass(frozen=True)
class EditPlan:
    """An image, and what of it is to be drawn.

    Attributes:
        image: [3, H, W] in [0, 1].
        regions: What is drawn, in that order; none if a mask is empty.
        mask: What may be changed, [H, W]; None for all.
        keep_unchanged: Whether what an edit left alone stays as it is.
    """

    image: Tensor
    regions: Sequence[Region]
    mask: Tensor | None
    keep_unchanged: bool

    @classmethod
    def of(
        cls,
        sizes: SizeRules,
        image: Image.Image,
        mask: Mask | None,
        keep_unchanged: bool,
        size: tuple[int, int] | None = None,
    ) -> EditPlan:
        """Plan an edit.

        Args:
            sizes: Of the checkpoint.
            image: To edit.
            mask: See `edits.masks.as_mask`; None for none.
            keep_unchanged: See the attribute.
            size: (height, width) to draw at; the image, or each region with its context, is padded to it. None for
                the size that suits it best, at about the trained area.
        """
        if not isinstance(keep_unchanged, bool):
            raise TypeError(must_be("keep_unchanged", "true or false", type_of(keep_unchanged)))
        pixels = unit_pixels(image)
        height, width = pixels.shape[-2:]
        if mask is not None:
            values = as_mask(mask, height, width)
            return cls(pixels, plan(values, sizes, size), values, keep_unchanged)
        fit = Fit.padded(height, width, *(size or sizes.least_padding(height, width)))
        return cls(pixels, [Region.whole(height, width, fit)], None, keep_unchanged)

    def run(self, drawing: Drawing) -> list[EditedImage]:
        """Draw and put back: one result for each image of a drawing."""
        return edit_regions(self.image, self.regions, drawing, self.mask, self.keep_unchanged, drawing.count)


@dataclass
class Drawing:
    """What all draws of an edit have in common. Called with what the model sees, it returns the edits.

    Attributes:
        pipe: What draws.
        prompts: One for each row; rows are repeated ``copies`` times, as in `DeepGenPipeline`.
        negative_prompt: For all.
        references: Further references; each is padded to what is drawn.
        copies: Images of each prompt.
        noise: Makes the noise of all rows, [count, C, h, w], for a height and a width in pixels.
        num_inference_steps: As in `DeepGenPipeline`.
        guidance_scale: As in `DeepGenPipeline`.
        callback_on_step_end: As in `DeepGenPipeline`.
        on_stage: Called with "encode", "denoise" or "decode" when that has run.
        guidance_every: As in `DeepGenPipeline`.
    """

    pipe: Stages
    prompts: Sequence[str]
    negative_prompt: str | None
    references: Sequence[Image.Image]
    copies: int
    noise: Callable[[int, int], Tensor]
    num_inference_steps: int
    guidance_scale: float
    callback_on_step_end: Any = None
    on_stage: Callable[[str], Any] = lambda stage: None
    guidance_every: int = 1

    @property
    def count(self) -> int:
        """Of the images of a draw."""
        return len(self.prompts) * self.copies

    def __call__(self, shown: Sequence[Image.Image], height: int, width: int) -> Tensor:
        """Edits of RGB images of width x height: [count, 3, height, width] in [0, 1].

        One image for all rows is encoded once, and all rows are denoised together.
        """
        others = padded(self.references, height, width)
        noise = self.noise(height, width)
        if all(one is shown[0] for one in shown):
            return self.draw(self.prompts, [shown[0], *others], height, width, noise, self.copies)
        rows = []
        for row, one in enumerate(shown):
            prompt = self.prompts[row % len(self.prompts)]
            rows.append(self.draw([prompt], [one, *others], height, width, noise[row : row + 1]))
        return torch.cat(rows)

    def draw(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        height: int,
        width: int,
        noise: Tensor,
        copies: int = 1,
    ) -> Tensor:
        """The three stages: [b, 3, height, width] in [0, 1]. Without images it is a generation."""
        latents = self.denoise(prompts, images, height, width, noise, copies)
        pixels: Any = self.pipe.decode(latents, "pt")
        self.on_stage("decode")
        return pixels

    def denoise(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        height: int,
        width: int,
        noise: Tensor,
        copies: int = 1,
    ) -> Tensor:
        """The first two stages: finished latents [b, C, height/8, width/8] in scaled space."""
        conditioning = self.pipe.encode(prompts, images or None, self.negative_prompt, height, width, copies)
        self.on_stage("encode")
        latents = self.pipe.denoise(
            conditioning,
            noise,
            self.num_inference_steps,
            self.guidance_scale,
            self.callback_on_step_end,
            guidance_every=self.guidance_every,
        )
        self.on_stage("denoise")
        return latents


def plan_edit(
    sizes: SizeRules,
    references: Sequence[Image.Image],
    mask: Mask | None,
    keep_unchanged: bool,
    height: int | None,
    width: int | None,
) -> EditPlan:
    """`EditPlan.of` for the arguments of a pipeline.

    Raises:
        TypeError, ValueError: For arguments that cannot work.
    """
    if not references:
        name = "keep_unchanged" if mask is None else "mask"
        raise ValueError(f"{name} needs an image to edit: pass one as image.")
    if (height is None) != (width is None):
        raise ValueError("height and width must be given together with mask or keep_unchanged: pass both or neither.")
    size = None if height is None or width is None else sizes.check(height, width, editing=True)
    return EditPlan.of(sizes, references[0], mask, keep_unchanged, size)
