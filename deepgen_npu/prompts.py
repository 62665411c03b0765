"""From prompts to token ids, with the strings of the checkpoint's ``prompt_template.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .arguments import shown
from .checkpoint_files import CheckpointError


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


# From the model card, for editing; generation is evaluated with an empty one.
EDIT_NEGATIVE_PROMPT = (
    "blurry, low quality, low resolution, distorted, deformed, broken content, missing parts, damaged details, "
    "artifacts, glitch, noise, pixelated, grainy, compression artifacts, bad composition, wrong proportion, "
    "incomplete editing, unfinished, unedited areas."
)


# The published template has 60 characters.
_MAX_TEMPLATE = 4096


@dataclass(frozen=True)
class PromptTemplate:
    """The strings around a prompt. There is no system message, and a prompt is neither stripped nor cut.

    Raises:
        CheckpointError: Naming a string of ``prompt_template.json`` in which a prompt has not exactly one place, or a
            mark of a picture that is empty or part of another string.
    """

    instruction: str
    generation: str
    image_start: str
    image_token: str
    image_end: str

    _KEYS: ClassVar[Mapping[str, str]] = {
        "image_start": "IMG_START_TOKEN",
        "image_token": "IMG_CONTEXT_TOKEN",
        "image_end": "IMG_END_TOKEN",
        "instruction": "INSTRUCTION",
        "generation": "GENERATION",
    }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PromptTemplate:
        """Read ``prompt_template.json``.

        Raises:
            CheckpointError: Also naming a key that is missing.
        """
        strings: dict[str, Any] = {name: config.get(key) for name, key in cls._KEYS.items()}
        return cls(**strings)

    def __post_init__(self) -> None:
        texts = {key: getattr(self, name) for name, key in self._KEYS.items()}
        for key, text in texts.items():
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_TEMPLATE:
                raise self._wrong(key, text, f"a text of 1 to {_MAX_TEMPLATE} letters")
            if text.encode(errors="replace").decode() != text:
                raise self._wrong(key, text, "a text without halves of surrogate pairs")
        # What stands for a picture must not come about by putting strings together.
        marks = [(key, text) for key, text in texts.items() if key.startswith("IMG_")]
        for key, mark in marks:
            if any(other != key and (text in mark or mark in text) for other, text in marks):
                raise self._wrong(key, mark, "a text that is no part of the other IMG_ tokens")
        for key in ("INSTRUCTION", "GENERATION"):
            if texts[key].count("{input}") != 1:
                raise self._wrong(key, texts[key], "a text with one {input}, the place of the prompt,")
            for other, mark in marks:
                if mark in texts[key]:
                    raise self._wrong(key, texts[key], f"a text without {shown(mark)}, the {other},")

    @staticmethod
    def _wrong(key: str, found: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"prompt_template.json: {key} is {shown(found)}; {wanted} is wanted.")

    def for_generation(self, prompt: str) -> str:
        return self.instruction.replace("{input}", self.generation.replace("{input}", prompt, 1), 1)

    def for_editing(self, prompt: str, image_tokens: Sequence[int]) -> str:
        """The edit turn: one block of placeholders for each reference, a line break, the prompt."""
        blocks = "".join(self.image_start + self.image_token * count + self.image_end for count in image_tokens)
        return self.instruction.replace("{input}", f"{blocks}\n{prompt}", 1)

    def check(self, name: str, text: str) -> None:
        """Refuse a prompt that would be taken for a picture.

        Raises:
            ValueError: When the text of the argument ``name`` contains one of the template's image tokens.
        """
        for token in (self.image_start, self.image_token, self.image_end):
            if token in text:
                raise ValueError(
                    f"{name} contains {token}, which stands for a picture in the model's language. "
                    "Remove it from the text and pass pictures as image."
                )


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and validity of a batch, left-padded to its longest text.

    Returns:
        Ids [b, L] (int64) and a boolean mask [b, L], False at padding. Both on the CPU.
    """
    tokens = tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"].bool()
