"""What is evaluated: prompts and edits on scenes that training never saw."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .edits import Edit, random_edit
from .scenes import Domain, Scene, random_scene
from .wording import LANGUAGES, Told, as_sentence, caption, instruction


HELD_OUT = Domain(held_out=True)
# Everything at once would ask more than the second ring: each group leaves the first ring in one way.
JUDGED = {"first ring": Domain(held_out=None), "both rings": Domain(0.5, 0.3, 0.3, 0.0, None)}
"""What judge and VAE are measured on: nobody holds anything out from them."""
SENTENCES = "first ring, as sentences"
GROUPS: dict[str, Domain] = {
    "first ring": HELD_OUT,
    SENTENCES: HELD_OUT,
    "star and ring": replace(HELD_OUT, further_shapes=1.0),
    "small and big": replace(HELD_OUT, other_sizes=1.0),
    "two objects": replace(HELD_OUT, two_things=1.0),
    "96 x 64 and 64 x 96": replace(HELD_OUT, other_formats=1.0, formats=((96, 64), (64, 96))),
    "96 x 96": replace(HELD_OUT, other_formats=1.0, formats=((96, 96),)),
}


@dataclass(frozen=True)
class Case:
    """One picture to make.

    Attributes:
        group: The row of the table.
        scene: What the picture has to show.
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
    """``count`` captions that leave nothing open, half of them in each language, of the same scenes."""
    rng = random.Random(f"generate {group} {seed}")
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
    """``count`` edits of one kind, half of them in each language."""
    rng = random.Random(f"edit {kind} {seed}")
    cases = []
    for number in range(0, count, len(LANGUAGES)):
        edit = random_edit(rng, kind, domain)
        for language in LANGUAGES:
            text = instruction(rng, edit, language)
            cases.append(Case(kind, language, text, edit.target, edit, seed + number))
    return cases


def open_colour(count: int, seed: int) -> list[Case]:
    """Captions that name no colour, for what a negative prompt does."""
    rng = random.Random(f"open {seed}")
    scenes = [random_scene(rng, Domain(held_out=None)) for _ in range(count)]
    return [
        Case("open colour", "en", caption(rng, scene, "en", Told(colour=False)), scene, None, seed + number)
        for number, scene in enumerate(scenes)
    ]
