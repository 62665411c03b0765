"""From prompts to token ids, with the strings of the checkpoint's ``prompt_template.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from . import checks
from .checks import Named, must, must_be, shown
from .errors import CheckpointError


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


MAX_TOKENS = 4096
"""Most tokens of a text, the template around it included; images have tokens of their own and are not counted.

The limit is ours. The original has none: it cuts no text and never uses the ``max_length`` of 1024 to which it was
trained, and rotary positions end far above it (128,000). This is four times what the model has seen, so that a text
pasted by mistake ends in an error instead of filling the memory: attention takes memory with the square of the length
(on a CPU in float32 140 MB at the limit, a hundred times that at ten times the length), and every denoising step
attends to each token.
"""

_LONGEST_TOKEN = 128
"""Bytes of the longest token of Qwen's vocabulary (128 spaces)."""

_NFC_FACTOR = 3
"""The tokenizer normalizes a text first (NFC), which at most triples or thirds its bytes, and leaves ASCII alone."""

EDIT_NEGATIVE_PROMPT = (
    "blurry, low quality, low resolution, distorted, deformed, broken content, missing parts, damaged details, "
    "artifacts, glitch, noise, pixelated, grainy, compression artifacts, bad composition, wrong proportion, "
    "incomplete editing, unfinished, unedited areas."
)
"""From the model card, for editing; generation is evaluated with an empty one."""

_MAX_TEMPLATE = 4096
"""Most characters of a string of the template; the published one has 60."""


@dataclass(frozen=True)
class PromptTemplate:
    """The strings around a prompt. There is no system message, and a prompt is neither stripped nor cut.

    Attributes:
        instruction: The turn of the user, with ``{input}`` for its text.
        generation: That text for generation, with ``{input}`` for the prompt.
        image_start: The token before the tokens of an image.
        image_token: The placeholder for each token of an image.
        image_end: The token after the tokens of an image.

    Raises:
        CheckpointError: Naming a string of ``prompt_template.json`` without exactly one place for a prompt, or a
            token of images that is empty or part of another string.
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
                raise self._wrong(key, text, f"a text of 1 to {_MAX_TEMPLATE} characters")
            if text.encode(errors="replace").decode() != text:
                raise self._wrong(key, text, "a text without halves of surrogate pairs")
        # The tokens of images must not arise from joined strings.
        marks = [(key, text) for key, text in texts.items() if key.startswith("IMG_")]
        for key, mark in marks:
            if any(other != key and (text in mark or mark in text) for other, text in marks):
                raise self._wrong(key, mark, "a text that neither contains another IMG_ token nor is part of one")
        for key in ("INSTRUCTION", "GENERATION"):
            if texts[key].count("{input}") != 1:
                raise self._wrong(key, texts[key], "a text with exactly one {input}, the place of the prompt")
            for other, mark in marks:
                if mark in texts[key]:
                    raise self._wrong(key, texts[key], f"a text without {shown(mark)}, the {other}")

    @staticmethod
    def _wrong(key: str, found: object, requirement: str) -> CheckpointError:
        return CheckpointError(f"prompt_template.json: {must_be(key, requirement, found)}")

    def for_generation(self, prompt: str) -> str:
        """The text around a prompt without images."""
        return self.instruction.replace("{input}", self.generation.replace("{input}", prompt, 1), 1)

    def for_editing(self, prompt: str, image_tokens: Sequence[int]) -> str:
        """The text of an edit: a block of placeholders for each reference image, a line break, the prompt."""
        blocks = "".join(self.image_start + self.image_token * count + self.image_end for count in image_tokens)
        return self.instruction.replace("{input}", f"{blocks}\n{prompt}", 1)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and validity of a batch, left-padded to its longest text.

    Returns:
        Ids [b, L] (int64) and a boolean mask [b, L], False at padding. Both on the CPU.
    """
    tokens = tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"].bool()


def check_prompts(
    template: PromptTemplate,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    prompt: str | Sequence[str],
    negative_prompt: str | None,
    editing: bool,
) -> tuple[list[str], str]:
    """Check that the prompts and the negative prompt of a run can be encoded, without any weights.

    The model's other control tokens, such as ``<|im_end|>``, are accepted, as in the original: they break nothing.

    Args:
        template: Of the checkpoint.
        tokenizer: Returns the tokenizer; called only for texts that are not obviously short enough.
        prompt: One text, or a list with one for each image.
        negative_prompt: One text for all of them; None is an empty one.
        editing: Whether there are reference images.

    Returns:
        The prompts as a list, and the negative prompt.

    Raises:
        TypeError: A prompt is not a text.
        ValueError: A text is not Unicode, contains a placeholder of images, or has too many tokens.
        CheckpointError: When the template alone has too many.
    """
    prompts, negative = checks.prompts(prompt), checks.negative_prompt(negative_prompt)
    count = len(prompts)
    if count > checks.MAX_IMAGES:
        raise ValueError(must("prompt", f"have at most {checks.MAX_IMAGES:,} texts", Named(f"{count:,}")))
    names = ["prompt" if count == 1 else f"prompt {number} of {count}" for number in range(1, count + 1)]
    for name, text in [*zip(names, prompts, strict=True), ("negative_prompt", negative)]:
        _check_text(name, text, template)
        _check_length(name, text, template, tokenizer, editing)
    return prompts, negative


def _check_text(name: str, text: str, template: PromptTemplate) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # How Python stores a byte of the command line that is not UTF-8 (PEP 383).
        source = f", from the byte {code - 0xDC00:#x}, which is not UTF-8" if 0xDC80 <= code <= 0xDCFF else ""
        found = Named(f"a lone surrogate (U+{code:04X}{source}) as character {error.start + 1}")
        advice = "Remove it, or pass the text as UTF-8."
        raise ValueError(must_be(name, "Unicode text", found, advice=advice)) from None
    for token in (template.image_start, template.image_token, template.image_end):
        if token in text:
            raise ValueError(
                f"{name} must not contain {token}, the model's placeholder for images. "
                "Remove it from the text and pass images as image."
            )


def _check_length(
    name: str,
    text: str,
    template: PromptTemplate,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    editing: bool,
) -> None:
    def count(text: str) -> tuple[int, str]:
        """The number of tokens of a text, of a long one a lower bound, and the same in words."""
        full = template.for_editing(text, [0]) if editing else template.for_generation(text)
        size, factor = len(full.encode()), 1 if full.isascii() else _NFC_FACTOR
        # A token has at least one byte: most texts need no counting.
        if size * factor <= MAX_TOKENS:
            return size, ""
        # Counting would take minutes for a text of 100 MB, and gigabytes.
        least = size // (factor * _LONGEST_TOKEN)
        if least > MAX_TOKENS:
            return least, f"at least {least:,}"
        exact = len(tokenizer().tokenize(full))
        return exact, f"{exact:,}"

    tokens, found = count(text)
    if tokens <= MAX_TOKENS:
        return
    own, found_alone = count("")
    if own > MAX_TOKENS:
        requirement = f"have at most {MAX_TOKENS:,} tokens with the prompt"
        raise CheckpointError(must("prompt_template.json", requirement, Named(f"{found_alone} without one")))
    raise ValueError(
        must(
            name,
            f"have at most {MAX_TOKENS:,} tokens with the template around it",
            Named(found),
            advice="Shorten it: memory grows with the square of the length.",
        )
    )
