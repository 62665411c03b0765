"""Captions and instructions in English and Chinese, from the words of ``wording.json``."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .edits import Edit
from .scenes import Scene, Thing


LANGUAGES = ("en", "zh")
WORDS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("wording.json").read_text(encoding="utf-8"))

STOPS = (".", "\u3002")
"""The full stop and the Chinese one, by language."""

_SLOT = re.compile(r"\{([a-z ]+)\}")


@dataclass(frozen=True)
class Mentioned:
    """What a caption mentions. The rest is open: the image may show anything."""

    colour: bool = True
    place: bool = True
    background: bool = True


EVERYTHING = Mentioned()


def random_mentioned(rng: random.Random, open_part: float) -> Mentioned:
    """Leave one thing open with the probability ``open_part``."""
    if rng.random() >= open_part:
        return EVERYTHING
    return replace(EVERYTHING, **{rng.choice(("colour", "place", "background")): False})


def caption(rng: random.Random, scene: Scene, language: str, mentioned: Mentioned = EVERYTHING) -> str:
    """A caption of a scene."""
    words = WORDS[language]
    things = rng.choice(words["and"]).join(_thing(rng, thing, language, mentioned) for thing in scene.things)
    template = rng.choice(words["captions" if mentioned.background else "captions_without_ground"])
    return _finish(rng, template, language, things=things, ground=rng.choice(words["backgrounds"][scene.background]))


def instruction(rng: random.Random, edit: Edit, language: str) -> str:
    """An instruction for an edit."""
    words = WORDS[language]
    template = rng.choice(words["instructions"][edit.kind])
    slots: dict[str, str] = {"ground": rng.choice(words["backgrounds"][edit.target.background])}
    if edit.kind == "add":
        slots["thing"] = _thing(rng, edit.target.things[edit.subject], language, EVERYTHING)
    elif edit.kind not in ("keep", "background"):
        subject = edit.sources[0].things[edit.subject]
        forms = words["it" if len(edit.sources[0].things) == 1 else "it_of_two"]
        slots["it"] = _finish(rng, rng.choice(forms), language, **_slots(rng, subject, language))
        # An instruction names shape and colour of the target; for combine, the shape of the first reference.
        wanted = subject if edit.kind in ("remove", "combine") else edit.target.things[edit.subject]
        slots |= _slots(rng, wanted, language)
        slots["goal"] = rng.choice(words["goals"][wanted.place])
    return _finish(rng, template, language, **slots)


def _slots(rng: random.Random, thing: Thing, language: str) -> dict[str, str]:
    words = WORDS[language]
    return {
        "shape": rng.choice(words["shapes"][thing.shape]),
        "colour": rng.choice(words["colours"][thing.colour]),
        "size": rng.choice(words["sizes"][thing.size]),
        "place": rng.choice(words["places"][thing.place]),
    }


def _thing(rng: random.Random, thing: Thing, language: str, mentioned: Mentioned) -> str:
    slots = _slots(rng, thing, language)
    if not mentioned.colour:
        slots["colour"] = ""
    kind = "thing_without_place"
    if mentioned.place:
        kind = "bare_thing" if rng.random() < 0.2 else "thing"
    return _finish(rng, rng.choice(WORDS[language][kind]), language, **slots)


def _finish(rng: random.Random, template: str, language: str, **slots: str) -> str:
    """Fill a template. ``{a colour shape}`` stands for the words of two slots after the right article."""

    def fill(match: re.Match[str]) -> str:
        names = match[1].split()
        article = names[0] == "a"
        text = " ".join(word for word in (slots[name] for name in names[article:]) if word)
        if not article:
            return text
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    text = _SLOT.sub(fill, template)
    if language == "zh":  # a colour that is left out leaves its particle behind
        text = re.sub(r"(?<=\u4e2a)\u7684", "", text)
    return text


def as_sentence(text: str, language: str) -> str:
    """The text as a sentence: a capital at the start, a full stop at the end."""
    return text[0].upper() + text[1:] + STOPS[LANGUAGES.index(language)]


def all_words() -> list[str]:
    """What the tokenizer learns.

    Every English word, alone and after a space; the Chinese words for what an image shows, and every other Chinese
    character and mark.
    """
    found: set[str] = set()
    for text in _strings(WORDS["en"]):
        for piece in filter(None, re.split(r"[\s,;]|\{[a-z ]+\}", text)):
            found |= {piece, " " + piece}
    chinese = WORDS["zh"]
    for slot in ("shapes", "colours", "backgrounds", "sizes", "places"):
        found.update(_strings(chinese[slot]))
    for text in _strings(chinese):
        found.update(_SLOT.sub("", text))
    return sorted(found - {""})


def capitalised_words() -> list[str]:
    """English words as at the start of a sentence."""
    return sorted({word.capitalize() for word in all_words() if word.isascii() and word.isalpha()})


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in (value.values() if isinstance(value, dict) else value) for text in _strings(item)]
