"""Checks of prompts with the tokenizer of a folder whose weights were not read yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..prompts import PromptTemplate, check_prompts
from .folder import Checkpoint


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_prompts_for(
    checkpoint: Checkpoint, prompt: str | Sequence[str], negative_prompt: str | None, editing: bool
) -> None:
    """`check_prompts` for a folder whose weights were not read yet."""

    def tokenizer() -> PreTrainedTokenizerBase:
        from .weights import load_tokenizer  # which imports torch

        return load_tokenizer(checkpoint)

    template = PromptTemplate.from_config(checkpoint.prompt_template)
    check_prompts(template, tokenizer, prompt, negative_prompt, editing)
