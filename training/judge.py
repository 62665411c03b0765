"""The judge: recognises what an image shows, by measuring its pixels.

Nothing here is learned, so the judge cannot share the mistakes of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .scenes import BACKGROUNDS, COLOURS, PLACES, RADII, SHAPES, SIDE, Scene, draw_shape


_SMALLEST_PART = 0.008  # of the area of the image: less is a speck, not a thing
_TEMPLATE_SIDE = 48


@dataclass(frozen=True)
class RecognisedThing:
    """One shape in an image."""

    shape: str
    colour: str
    place: str
    size: str
    area: float
    """Part of the area of the image."""


@dataclass(frozen=True)
class Recognised:
    """What an image shows; ``things`` from the largest to the smallest."""

    background: str
    things: tuple[RecognisedThing, ...]


def recognise(image: Image.Image | np.ndarray) -> Recognised:
    """What an RGB image ([H, W, 3] uint8, or PIL) shows."""
    if not isinstance(image, np.ndarray):
        image = np.asarray(image.convert("RGB"))
    pixels = image.astype(np.float32)
    height, width = pixels.shape[:2]
    frame = np.ones((height, width), dtype=bool)
    frame[2:-2, 2:-2] = False
    ground = np.median(pixels[frame], axis=0)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    labels = np.asarray(ndimage.label(distance > 48)[0])  # type: ignore[index]
    things = []
    for number in range(1, labels.max() + 1):
        part = labels == number
        if part.sum() < _SMALLEST_PART * height * width:
            continue
        thing = _recognise_thing(pixels, distance, ndimage.binary_dilation(part, iterations=2), height, width)
        if thing is not None:
            things.append(thing)
    things.sort(key=lambda thing: -thing.area)
    return Recognised(_nearest(ground, BACKGROUNDS), tuple(things))


def _recognise_thing(pixels: np.ndarray, distance: np.ndarray, part: np.ndarray, height: int, width: int):
    strength = np.percentile(distance[part], 90)
    core = part & (distance > 0.8 * strength)
    if not core.any():
        return None
    colour = np.median(pixels[core], axis=0)
    # The edge is where colours are half thing, half background.
    mask = part & (distance > 0.5 * strength)
    rows, columns = np.nonzero(mask)
    if len(rows) < _SMALLEST_PART * height * width / 2:
        return None
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
    place = min(PLACES, key=lambda name: math.dist(PLACES[name], centre))
    shape = _best_template(mask[top:bottom, left:right])
    # In units of SIDE. For a ring or a star, the bounding box shows the size better than the area does.
    extent = math.sqrt((bottom - top) * (right - left)) / min(height, width) * SIDE
    size = min(RADII, key=lambda name: abs(math.log(extent / _extent(shape, RADII[name]))))
    return RecognisedThing(shape, _nearest(colour, COLOURS), place, size, float(mask.sum()) / (height * width))


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(names[name]))))


def _best_template(mask: np.ndarray) -> str:
    """The shape whose template overlaps most when both fill the same box."""
    box = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (_TEMPLATE_SIDE, _TEMPLATE_SIDE), Image.Resampling.BILINEAR
    )
    values = np.asarray(box, dtype=np.float32) / 255

    def overlap(name: str) -> float:
        template = _template(name)
        return float(np.minimum(values, template).sum() / np.maximum(values, template).sum())

    return max(SHAPES, key=overlap)


def _drawn(shape: str, radius: float) -> Image.Image:
    """The shape alone, as a mask cropped to its bounding box."""
    side = int(radius * 4)
    image = Image.new("L", (side, side), 0)
    draw_shape(ImageDraw.Draw(image), shape, (side / 2, side / 2), radius, 255)
    return image.crop(image.getbbox())


@cache
def _template(shape: str) -> np.ndarray:
    image = _drawn(shape, 200).resize((_TEMPLATE_SIDE, _TEMPLATE_SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32) / 255


@cache
def _extent(shape: str, radius: float) -> float:
    width, height = _drawn(shape, radius * 20).size
    return math.sqrt(width * height) / 20


@dataclass(frozen=True)
class Verdict:
    """Which facts of a scene an image shows. If the number of things is wrong, so is everything about them."""

    background: bool
    count: bool
    shape: bool
    colour: bool
    place: bool
    size: bool

    @property
    def right(self) -> bool:
        """Whether all of them are."""
        return self.background and self.count and self.shape and self.colour and self.place and self.size


def compare(found: Recognised, wanted: Scene) -> Verdict:
    """The verdict on an image: what it shows against what it should show."""
    count = len(found.things) == len(wanted.things)
    pairs = []
    if count:
        # By place first: two things of a scene never share one.
        free = list(found.things)
        for thing in wanted.things:
            best = max(free, key=lambda one: (one.place == thing.place) * 2 + (one.colour == thing.colour))
            free.remove(best)
            pairs.append((best, thing))

    def all_equal(name: str) -> bool:
        return count and all(getattr(one, name) == getattr(thing, name) for one, thing in pairs)

    return Verdict(
        background=found.background == wanted.background,
        count=count,
        shape=all_equal("shape"),
        colour=all_equal("colour"),
        place=all_equal("place"),
        size=all_equal("size"),
    )
