"""From prompts to token ids, with the strings of the checkpoint's ``prompt_template.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class PromptTemplate:
    """The strings around a prompt. There is no system message, and a prompt is neither stripped nor cut."""

    instruction: str
    generation: str
    image_start: str
    image_token: str
    image_end: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PromptTemplate:
        """Read ``prompt_template.json``.

        Raises:
            CheckpointError: Naming a key that is missing.
        """

        def string(key: str) -> str:
            value = config.get(key)
            if not isinstance(value, str):
                raise CheckpointError(f"prompt_template.json has no string {key!r}.")
            return value

        template = cls(
            instruction=string("INSTRUCTION"),
            generation=string("GENERATION"),
            image_start=string("IMG_START_TOKEN"),
            image_token=string("IMG_CONTEXT_TOKEN"),
            image_end=string("IMG_END_TOKEN"),
        )
        for key, text in (("INSTRUCTION", template.instruction), ("GENERATION", template.generation)):
            if "{input}" not in text:
                raise CheckpointError(f"prompt_template.json: {key} has no place for '{{input}}'.")
        return template

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
