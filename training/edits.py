"""Edits: a source, an instruction and the right result."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Domain, Scene, is_held_out, random_scene, random_thing


FIRST_KINDS = ("recolour", "background", "keep")
FURTHER_KINDS = ("replace", "move", "remove", "add", "combine")
KINDS = (*FIRST_KINDS, *FURTHER_KINDS)


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        kind: One of `KINDS`.
        sources: The references, in order: one scene, two for ``combine`` (the thing of the first, the
            background of the second).
        target: The right result.
        subject: The index in ``sources[0].things`` of the thing that the instruction is about.
    """

    kind: str
    sources: tuple[Scene, ...]
    target: Scene
    subject: int = 0


def random_edit(rng: random.Random, kind: str, domain: Domain) -> Edit:
    """An edit between random scenes.

    In the domain of the training, neither source nor target is held out; in that of the evaluation, one of
    them is.
    """
    while True:
        edit = _DRAW[kind](rng, replace(domain, held_out=None, other_formats=0.0))
        scenes = (*edit.sources, edit.target)
        if domain.held_out is None or any(map(is_held_out, scenes)) == domain.held_out:
            return edit


def _other(rng: random.Random, names, *without: str) -> str:
    return rng.choice([name for name in names if name not in without])


def _change(scene: Scene, number: int, **changes) -> Scene:
    things = list(scene.things)
    things[number] = replace(things[number], **changes)
    return replace(scene, things=tuple(things))


def _recolour(rng: random.Random, domain: Domain) -> Edit:
    source = random_scene(rng, domain)
    number = rng.randrange(len(source.things))
    # Two things keep different colours, by which they are distinguished.
    colour = _other(rng, COLOURS, *(thing.colour for thing in source.things))
    return Edit("recolour", (source,), _change(source, number, colour=colour), number)


def _background(rng: random.Random, domain: Domain) -> Edit:
    source = random_scene(rng, domain)
    return Edit("background", (source,), replace(source, background=_other(rng, BACKGROUNDS, source.background)))


def _keep(rng: random.Random, domain: Domain) -> Edit:
    source = random_scene(rng, domain)
    return Edit("keep", (source,), source)


def _replace(rng: random.Random, domain: Domain) -> Edit:
    source = random_scene(rng, domain)
    number = rng.randrange(len(source.things))
    shape = _other(rng, SHAPES, source.things[number].shape)
    return Edit("replace", (source,), _change(source, number, shape=shape), number)


def _move(rng: random.Random, domain: Domain) -> Edit:
    source = random_scene(rng, replace(domain, two_things=0.0))
    place = _other(rng, PLACES, source.things[0].place)
    return Edit("move", (source,), _change(source, 0, place=place))


def _remove(rng: random.Random, domain: Domain) -> Edit:
    source = random_scene(rng, replace(domain, two_things=0.7))
    number = rng.randrange(len(source.things))
    things = tuple(thing for index, thing in enumerate(source.things) if index != number)
    return Edit("remove", (source,), replace(source, things=things), number)


def _add(rng: random.Random, domain: Domain) -> Edit:
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    place = rng.choice(list(opposite))
    source = random_scene(rng, replace(domain, two_things=0.0))
    source = _change(source, 0, place=place)
    (first,) = source.things
    added = random_thing(rng, replace(domain, other_sizes=0.0), opposite[place], _other(rng, COLOURS, first.colour))
    return Edit("add", (source,), replace(source, things=(first, added)), 1)


def _combine(rng: random.Random, domain: Domain) -> Edit:
    first = random_scene(rng, replace(domain, two_things=0.0))
    second = random_scene(rng, replace(domain, two_things=0.0))
    return Edit("combine", (first, second), replace(first, background=second.background))


_DRAW = {
    "recolour": _recolour,
    "background": _background,
    "keep": _keep,
    "replace": _replace,
    "move": _move,
    "remove": _remove,
    "add": _add,
    "combine": _combine,
}
