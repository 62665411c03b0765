"""Checks of what a caller passes. Each error names the argument, its value and what is wanted."""

from __future__ import annotations

from collections.abc import Sequence


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or a batch, as a list."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(text, str) for text in given):
        raise TypeError(f"prompt is {prompt!r}; a string or a list of strings is wanted.")
    return list(given)


def negative_prompt(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"negative_prompt is {type(text).__name__}; a string is wanted (one for the whole batch).")
    return text


def positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; a whole number from 1 is wanted.")
    return value


def seed(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise ValueError(f"seed is {value!r}; a whole number from 0 to 2**64 - 1 is wanted.")
    return value


def steps(num_inference_steps: int, guidance_scale: float) -> None:
    positive("num_inference_steps", num_inference_steps)
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float)):
        raise TypeError(f"guidance_scale is {guidance_scale!r}; a number is wanted.")


def output_type(name: str) -> str:
    if name not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {name!r}; wanted one of {', '.join(OUTPUT_TYPES)}.")
    return name
