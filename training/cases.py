"""The evaluation set: prompts and edits on scenes that training never saw."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .edits import Edit, random_edit
from .scenes import Domain, Scene, random_scene
from .wording import LANGUAGES, Mentioned, as_sentence, caption, instruction


HELD_OUT = Domain(held_out=True)
JUDGED = {"core": Domain(held_out=None), "core and extended": Domain(0.5, 0.3, 0.3, 0.0, None)}
"""Scenes for judge and VAE, from which nothing is held out."""
SENTENCES = "core, as sentences"
GROUPS: dict[str, Domain] = {
    "core": HELD_OUT,
    SENTENCES: HELD_OUT,
    "star and ring": replace(HELD_OUT, further_shapes=1.0),
    "small and big": replace(HELD_OUT, other_sizes=1.0),
    "two objects": replace(HELD_OUT, two_things=1.0),
    "96 x 64 and 64 x 96": replace(HELD_OUT, other_formats=1.0, formats=((96, 64), (64, 96))),
    "96 x 96": replace(HELD_OUT, other_formats=1.0, formats=((96, 96),)),
}
"""Scenes by row of the table. Each extends the core in one way only."""
_SEED_NAMES = {"core": "first ring", SENTENCES: "first ring, as sentences"}
"""Part of the seeds, where it is not the group's name: the published numbers are of the scenes drawn with these."""


@dataclass(frozen=True)
class Case:
    """One image to make.

    Attributes:
        group: The row of the table.
        language: Of the text.
        text: Caption or instruction.
        scene: What the image has to show.
        edit: None for generation.
        seed: Of the noise.
    """

    group: str
    language: str
    text: str
    scene: Scene
    edit: Edit | None
    seed: int


def generation(group: str, count: int, seed: int) -> list[Case]:
    """``count`` captions that mention everything: of each scene one in each language."""
    rng = random.Random(f"generate {_SEED_NAMES.get(group, group)} {seed}")
    cases = []
    for number in range(0, count, len(LANGUAGES)):
        scene = random_scene(rng, GROUPS[group])
        for language in LANGUAGES:
            text = caption(rng, scene, language)
            if group == SENTENCES:
                text = as_sentence(text, language)
            cases.append(Case(group, language, text, scene, None, seed + number))
    return cases


def editing(kind: str, count: int, seed: int, domain: Domain = HELD_OUT) -> list[Case]:
    """``count`` edits of one kind: each in both languages."""
    rng = random.Random(f"edit {kind} {seed}")
    cases = []
    for number in range(0, count, len(LANGUAGES)):
        edit = random_edit(rng, kind, domain)
        for language in LANGUAGES:
            text = instruction(rng, edit, language)
            cases.append(Case(kind, language, text, edit.target, edit, seed + number))
    return cases


def open_colour(count: int, seed: int) -> list[Case]:
    """Captions that name no colour, to measure the effect of a negative prompt."""
    rng = random.Random(f"open {seed}")
    scenes = [random_scene(rng, Domain(held_out=None)) for _ in range(count)]
    return [
        Case("open colour", "en", caption(rng, scene, "en", Mentioned(colour=False)), scene, None, seed + number)
        for number, scene in enumerate(scenes)
    ]
