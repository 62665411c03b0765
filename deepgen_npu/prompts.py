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

        return cls(**{name: config.get(key) for name, key in cls._KEYS.items()})

    def __post_init__(self) -> None:
        marks = (self.image_start, self.image_token, self.image_end)
        for name, key in self._KEYS.items():
            text = getattr(self, name)
            wanted = ""
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_TEMPLATE:
                wanted = f"a text of 1 to {_MAX_TEMPLATE} letters"
            elif text.encode(errors="replace").decode() != text:
                wanted = "a text without halves of surrogate pairs"
            elif text in marks:
                # What stands for a picture must not come about by putting strings together.
                if sum(mark in text or text in mark for mark in marks) > 1:
                    wanted = "a text that is no part of the other tokens"
            elif text.count("{input}") != 1:
                wanted = "a text with one {input}, the place of the prompt,"
            elif any(mark in text for mark in marks if isinstance(mark, str)):
                wanted = f"a text without {', '.join(map(str, marks))}"
            if wanted:
                raise CheckpointError(f"prompt_template.json: {key} is {shown(text)}; {wanted} is wanted.")

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
