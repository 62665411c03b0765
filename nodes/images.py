"""IMAGE tensors to PIL and back: the only place where the two meet."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def to_pil(image: Tensor) -> list[Image.Image]:
    """An IMAGE batch [b, H, W, C] in [0, 1], C = 1, 3 or 4, as b PIL pictures.

    Levels are rounded down, as SaveImage does: editing a picture straight away and editing it after it was saved
    and loaded again give the same result.
    """
    from PIL import Image

    pictures = []
    for pixels in image:
        values = (pixels.float().clamp(0, 1) * 255).byte().cpu().numpy()
        pictures.append(Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values))
    return pictures


def to_image(pixels: Tensor) -> Tensor:
    """[b, 3, H, W] in [0, 1] as an IMAGE batch [b, H, W, 3] (NCHW to BHWC)."""
    return pixels.permute(0, 2, 3, 1).contiguous()


def reference_groups(**images: Tensor | None) -> list[list[Image.Image]]:
    """The references of each picture of a batch.

    Args:
        images: IMAGE tensors [b, H, W, C] or None by input name; the first sets the batch.

    Raises:
        ValueError: When a further input has neither one picture nor as many as the first.
    """
    given = {name: image for name, image in images.items() if image is not None}
    if not given:
        return [[]]
    (first, batch), *others = [(name, len(image)) for name, image in given.items()]
    for name, count in others:
        if count not in (1, batch):
            raise ValueError(
                f"{name} has {count} pictures and {first} has {batch}; one is wanted, or as many as {first}."
            )
    pictures = [to_pil(image) for image in given.values()]
    return [[each[min(index, len(each) - 1)] for each in pictures] for index in range(batch)]
