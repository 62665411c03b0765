"""The world of the demo checkpoint: one or two coloured shapes on a plain background."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from deepgen_npu.checks import must_be


SIDE = 64
"""Pixels: the training size of the demo checkpoint. Lengths below are for this side."""

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "green": (40, 165, 70),
    "blue": (45, 85, 225),
    "yellow": (240, 215, 40),
    "purple": (145, 55, 185),
    "orange": (245, 130, 30),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (250, 250, 250),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (105, 65, 40),
}
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75), "centre": (0.5, 0.5)}
"""Centre of the shape, as parts of width and height."""

FIRST_SHAPES = ("circle", "square", "triangle")
SHAPES = (*FIRST_SHAPES, "star", "ring")
RADII = {"small": 7.5, "normal": 11.0, "big": 13.5}
"""Radius of the circle with about the same area, in pixels of an image with the side `SIDE`."""

JITTER = 1.5
"""The largest offset of a shape from its place, in pixels."""

_SUPERSAMPLING = 4
_RING_HOLE = 0.5
_STAR_INNER = 0.45


@dataclass(frozen=True)
class Thing:
    """One shape. ``offset`` [pixels] and ``scale`` are small variations that no caption mentions."""

    shape: str
    colour: str
    place: str
    size: str = "normal"
    offset: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    @property
    def radius(self) -> float:
        """See `RADII`, in pixels."""
        return RADII[self.size] * self.scale


@dataclass(frozen=True)
class Scene:
    """One or two shapes on a background; the size is in pixels."""

    things: tuple[Thing, ...]
    background: str
    width: int = SIDE
    height: int = SIDE


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this scene: one in seven combinations of shape, colour, place and background.

    Every single word is seen, and so is every pair of them.
    """
    return any(_combination(thing, scene.background) % 7 == 0 for thing in scene.things)


def _combination(thing: Thing, background: str) -> int:
    return (
        SHAPES.index(thing.shape)
        + 2 * list(COLOURS).index(thing.colour)
        + 3 * list(PLACES).index(thing.place)
        + 5 * list(BACKGROUNDS).index(background)
    )


@dataclass(frozen=True)
class Domain:
    """What `random_scene` draws from: the core, extended with independent probabilities."""

    further_shapes: float = 0.0
    other_sizes: float = 0.0
    two_things: float = 0.0
    other_formats: float = 0.0
    held_out: bool | None = False
    formats: tuple[tuple[int, int], ...] = ((96, 64), (64, 96), (96, 96))
    """(width, height) in pixels."""


CORE = Domain()
CORE_AND_EXTENDED = Domain(further_shapes=0.2, other_sizes=0.15, two_things=0.2, other_formats=0.04)


def random_scene(rng: random.Random, domain: Domain = CORE) -> Scene:
    """A scene of a domain."""
    while True:
        scene = _draw(rng, domain)
        if domain.held_out is None or is_held_out(scene) == domain.held_out:
            return scene


def _draw(rng: random.Random, domain: Domain) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    size = (SIDE, SIDE)
    if rng.random() < domain.other_formats:
        size = rng.choice(domain.formats)
    if rng.random() < domain.two_things:
        places = list(rng.choice((("left", "right"), ("top", "bottom"))))
        rng.shuffle(places)
        colours = rng.sample(list(COLOURS), 2)
        things = tuple(
            random_thing(rng, domain, place=place, colour=colour)
            for place, colour in zip(places, colours, strict=True)
        )
        # Big things would touch.
        things = tuple(replace(thing, size="normal") if thing.size == "big" else thing for thing in things)
    else:
        things = (random_thing(rng, domain),)
    return Scene(things, background, *size)


def random_thing(
    rng: random.Random, domain: Domain, place: str | None = None, colour: str | None = None, shape: str | None = None
) -> Thing:
    """A shape; of what is None, a random one."""
    if shape is None:
        further = rng.random() < domain.further_shapes
        shape = rng.choice(SHAPES[len(FIRST_SHAPES) :] if further else FIRST_SHAPES)
    return Thing(
        shape=shape,
        colour=colour or rng.choice(list(COLOURS)),
        place=place or rng.choice(list(PLACES)),
        size=rng.choice(("small", "big")) if rng.random() < domain.other_sizes else "normal",
        offset=(rng.uniform(-JITTER, JITTER), rng.uniform(-JITTER, JITTER)),
        scale=rng.uniform(0.94, 1.06),
    )


def render(
    scene: Scene, colours: Mapping[str, Colour] = COLOURS, backgrounds: Mapping[str, Colour] = BACKGROUNDS
) -> Image.Image:
    """The scene as an RGB image, with smooth edges."""
    ground = backgrounds[scene.background]
    factor = _SUPERSAMPLING
    image = Image.new("RGB", (scene.width * factor, scene.height * factor), ground)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        unit = min(scene.width, scene.height) / SIDE
        x, y = PLACES[thing.place]
        centre = (
            (x * scene.width + thing.offset[0] * unit) * factor,
            (y * scene.height + thing.offset[1] * unit) * factor,
        )
        draw_shape(draw, thing.shape, centre, thing.radius * unit * factor, colours[thing.colour], ground)
    return image.reduce(factor)


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    colour: Colour | int,
    background: Colour | int = 0,
) -> None:
    """Draw one shape into an image.

    Args:
        draw: Of the image.
        shape: One of `SHAPES`.
        centre: Of its bounding box, in pixels.
        radius: See `RADII`, in pixels.
        colour: Of the shape.
        background: The colour inside a ring.
    """
    x, y = centre

    def disc(size: float, fill) -> None:
        # PIL includes both ends of the box.
        draw.ellipse((x - size, y - size, x + size - 1, y + size - 1), fill=fill)

    if shape == "circle":
        disc(radius, colour)
    elif shape == "ring":
        disc(radius * 1.1, colour)
        disc(radius * 1.1 * _RING_HOLE, background)
    elif shape == "square":
        half = radius * math.sqrt(math.pi) / 2
        draw.rectangle((x - half, y - half, x + half - 1, y + half - 1), fill=colour)
    elif shape == "triangle":
        # Equilateral, in the middle of its bounding box. A little smaller than the circle, so that it stays inside.
        outer = radius * 1.4
        half_width, half_height = outer * math.sqrt(3) / 2, outer * 0.75
        draw.polygon(
            ((x, y - half_height), (x + half_width, y + half_height), (x - half_width, y + half_height)), colour
        )
    elif shape == "star":
        outer = radius * 1.35
        points = []
        for number in range(10):
            size = outer * (_STAR_INNER if number % 2 else 1.0)
            angle = math.pi * (number / 5 - 0.5)
            points.append((x + size * math.cos(angle), y + size * math.sin(angle)))
        draw.polygon(points, colour)
    else:
        raise ValueError(must_be("shape", f"one of {', '.join(SHAPES)}", shape))


def pixels(scene: Scene) -> np.ndarray:
    """The scene as [H, W, 3] uint8."""
    return np.asarray(render(scene))
