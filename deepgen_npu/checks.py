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

# The scheduler was trained on 1000 timesteps (scheduler_config.json): more steps only repeat them.
MAX_STEPS = 1000
# Far above what any picture survives (4 is usual); beyond it float16 overflows within a step.
MAX_GUIDANCE_SCALE = 100.0
# Of one run. They are denoised as one batch, so memory ends it earlier on any device.
MAX_IMAGES = 1000
# Far above what any checkpoint makes, whose own limit is told with the nearest size that it allows.
MAX_SIDE = 1 << 16
# References of one picture: each is as many tokens again, in the VLM and in the DiT.
MAX_REFERENCES = 16


def prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or a batch, as a list."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(text, str) for text in given):
        raise TypeError(f"prompt is {shown(prompt)}; a string or a list of strings is wanted.")
    return list(given)


def negative_prompt(text: str | None) -> str:
    """One string for the whole batch; None, as diffusers allows, means none."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(f"negative_prompt is {type(text).__name__}; a string is wanted (one for the whole batch).")
    return text


def whole(name: str, value: SupportsIndex, low: int, high: int | None, wanted: str = "") -> int:
    """An integer of any kind (also numpy's) from ``low`` to ``high``, as an int."""
    wanted = wanted or f"a whole number from {low}" + ("" if high is None else f" to {high}")
    found = None
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            found = operator.index(value)
    if found is None or found < low or (high is not None and found > high):
        raise ValueError(f"{name} is {shown(value)}; {wanted} is wanted.")
    return found


def number(name: str, value: object, low: float, high: float, wanted: str = "") -> float:
    """A finite number from ``low`` to ``high``, as a float. NaN is never within bounds, a boolean is no number."""
    wanted = wanted or f"a number from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {shown(value)}; {wanted} is wanted.")
    with contextlib.suppress(OverflowError):  # a whole number beyond every float
        found = float(value)
        if math.isfinite(found) and low <= found <= high:
            return found
    raise ValueError(f"{name} is {shown(value)}; {wanted} is wanted.")


def shown(value: object) -> str:
    """A value for a message: its ``repr``, but never long, and never an error of its own."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:80]}... ({type(value).__name__})"


def positive(name: str, value: SupportsIndex, high: int | None = None) -> int:
    return whole(name, value, 1, high)


def seed(value: SupportsIndex) -> int:
    return whole("seed", value, 0, 2**64 - 1, "a whole number from 0 to 2**64 - 1")


def images(name: str, value: SupportsIndex) -> int:
    """Number of pictures of one run."""
    return positive(name, value, MAX_IMAGES)


def steps(num_inference_steps: SupportsIndex, guidance_scale: float) -> tuple[int, float]:
    count = positive("num_inference_steps", num_inference_steps, MAX_STEPS)
    return count, number("guidance_scale", guidance_scale, 0, MAX_GUIDANCE_SCALE)


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
