"""From prompts to token ids, with the strings of the checkpoint's ``prompt_template.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from . import checks
from .checks import shown
from .errors import CheckpointError


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


MAX_TOKENS = 4096
"""Most tokens of a text, the template around it included; pictures have tokens of their own and are not counted.

The limit is ours. The original has none: it cuts no text and never uses the ``max_length`` of 1024 to which it was
trained, and rotary positions end nowhere near (128,000). So this is four times what the model has seen, and there so
that a text pasted by mistake ends in an error instead of in all the memory: attention takes memory with the square
of the length (on a CPU in float32 140 MB at the limit, 14 GB at ten times as much), and every denoising step, too,
attends to each token.
"""

# No token of Qwen's vocabulary is longer (128 spaces). The tokenizer normalises a text first (NFC), which at most
# triples or thirds its bytes, and leaves ASCII alone.
_LONGEST_TOKEN = 128
_NFC_FACTOR = 3

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
    """The prompts and the negative prompt of a run, which can be encoded. It needs no weights.

    The model's other control tokens, such as ``<|im_end|>``, are accepted, as in the original: they break nothing.

    Args:
        tokenizer: Gives the tokenizer; called only for texts that are not short anyway.
        editing: Whether there are references.

    Raises:
        TypeError: For what is no text.
        ValueError: For a text that is not Unicode, that has a placeholder of pictures, or of too many tokens.
        CheckpointError: When the template alone has too many.
    """
    prompts, negative = checks.prompts(prompt), checks.negative_prompt(negative_prompt)
    count = len(prompts)
    if count > checks.MAX_IMAGES:
        raise ValueError(f"prompt is a list of {count:,} texts; at most {checks.MAX_IMAGES:,} are wanted.")
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
        # Python's way to keep a byte of the command line that is no UTF-8 (PEP 383).
        what = f", from the byte {code - 0xDC00:#x}, which is no UTF-8" if 0xDC80 <= code <= 0xDCFF else ""
        raise ValueError(
            f"{name} has a lone surrogate (U+{code:04X}{what}) as character {error.start + 1}; "
            "Unicode text is wanted. Remove it or give the text as UTF-8."
        ) from None
    for token in (template.image_start, template.image_token, template.image_end):
        if token in text:
            raise ValueError(
                f"{name} contains {token}, which stands for a picture in the model's language. "
                "Remove it from the text and pass pictures as image."
            )


def _check_length(
    name: str,
    text: str,
    template: PromptTemplate,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    editing: bool,
) -> None:
    def count(text: str) -> tuple[int, str]:
        """The tokens of a text, or of a long one how many it has at least, and the same in words."""
        whole = template.for_editing(text, [0]) if editing else template.for_generation(text)
        size, factor = len(whole.encode()), 1 if whole.isascii() else _NFC_FACTOR
        # A token is a byte at least: most texts need no counting.
        if size * factor <= MAX_TOKENS:
            return size, ""
        # Counting would take minutes for a text of 100 MB, and gigabytes.
        least = size // (factor * _LONGEST_TOKEN)
        if least > MAX_TOKENS:
            return least, f"at least {least:,}"
        exact = len(tokenizer().tokenize(whole))
        return exact, f"{exact:,}"

    tokens, found = count(text)
    if tokens <= MAX_TOKENS:
        return
    own, found_alone = count("")
    if own > MAX_TOKENS:
        raise CheckpointError(
            f"prompt_template.json has {found_alone} tokens alone; at most {MAX_TOKENS:,} are wanted, prompt included."
        )
    raise ValueError(
        f"{name} has {found} tokens with the template around it; at most {MAX_TOKENS:,} are wanted. "
        "Shorten the text: the memory of longer ones grows with the square of their length."
    )
