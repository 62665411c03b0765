"""Checks of what a caller passes. Each error names the argument, its value and what is wanted."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, SupportsIndex


if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Names of the dtypes that weights may be loaded in (`devices` has the dtypes); here, since it needs no torch.
DTYPES = ("auto", "bfloat16", "float16", "float32")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or a batch, as a list."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(text, str) for text in given):
        raise TypeError(f"prompt is {prompt!r}; a string or a list of strings is wanted.")
    return list(given)


def negative_prompt(text: str | None) -> str:
    """One string for the whole batch; None, as diffusers allows, means none."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(f"negative_prompt is {type(text).__name__}; a string is wanted (one for the whole batch).")
    return text


def whole(name: str, value: SupportsIndex, low: int, high: int | None, wanted: str) -> int:
    """An integer of any kind (also numpy's) from ``low`` to ``high``, as an int."""
    number = None
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if number is None or number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {value!r}; {wanted} is wanted.")
    return number


def positive(name: str, value: SupportsIndex) -> int:
    return whole(name, value, 1, None, "a whole number from 1")


def seed(value: SupportsIndex) -> int:
    return whole("seed", value, 0, 2**64 - 1, "a whole number from 0 to 2**64 - 1")


def steps(num_inference_steps: SupportsIndex, guidance_scale: float) -> tuple[int, float]:
    count = positive("num_inference_steps", num_inference_steps)
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, Real):
        raise TypeError(f"guidance_scale is {guidance_scale!r}; a number is wanted.")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; a finite number is wanted.")
    return count, float(guidance_scale)


def generator(value: torch.Generator | None) -> torch.Generator | None:
    if value is not None and not hasattr(value, "initial_seed"):
        raise TypeError(
            f"generator is {type(value).__name__}; one torch.Generator is wanted, which draws the noise of the batch."
        )
    return value


def replaced_latents(returned: dict[str, Tensor] | None, latents: Tensor) -> Tensor:
    """The latents to go on with after ``callback_on_step_end``."""
    if returned is None:
        return latents
    if not isinstance(returned, dict):
        raise TypeError(f"callback_on_step_end returned {type(returned).__name__}; a dict or None is wanted.")
    replaced = returned.get("latents", latents)
    if replaced.shape != latents.shape:
        raise ValueError(
            f"callback_on_step_end returned latents of the shape {list(replaced.shape)}; "
            f"{list(latents.shape)} is wanted."
        )
    return replaced.to(latents)


def output_type(name: str) -> str:
    if name not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {name!r}; wanted one of {', '.join(OUTPUT_TYPES)}.")
    return name
