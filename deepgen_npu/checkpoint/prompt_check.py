"""Checks of prompts with the tokenizer of a folder whose weights were not read yet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..prompts import PromptTemplate, check_prompts
from .folder import Checkpoint


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptCheck:
    """`check_prompts` for a folder whose weights were not read yet. The tokenizer is read for the first long text.

    Args:
        checkpoint: The folder.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._template = PromptTemplate.from_config(checkpoint.prompt_template)
        self._checkpoint = checkpoint

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from .weights import load_tokenizer  # which imports torch

        return load_tokenizer(self._checkpoint)

    def __call__(self, prompt: str | Sequence[str], negative_prompt: str | None, editing: bool) -> None:
        """Check the texts of a run."""
        check_prompts(self._template, lambda: self._tokenizer, prompt, negative_prompt, editing)


def check_prompts_for(
    checkpoint: Checkpoint, prompt: str | Sequence[str], negative_prompt: str | None, editing: bool
) -> None:
    """`PromptCheck` for one run."""
    PromptCheck(checkpoint)(prompt, negative_prompt, editing)
