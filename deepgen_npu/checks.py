"""Checks of what a caller passes, and the one form of their errors:

    NAME must be REQUIREMENT, got VALUE (nearest: A, B). WHAT TO DO.

It imports no torch.
"""

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

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""Forms in which a pipeline returns images."""

MAX_SEED = 2**64 - 1
"""Seeds of PyTorch's generators have 64 bits."""

MAX_STEPS = 1000
"""The scheduler was trained on 1000 timesteps (scheduler_config.json): more steps only repeat them."""

MAX_GUIDANCE_SCALE = 100.0
"""Far above any useful scale (4 is usual); beyond it float16 overflows within a step."""

MAX_IMAGES = 1000
"""Images of one run. They are denoised as one batch, so memory ends it earlier on any device."""

MAX_SIDE = 1 << 16
"""Far above what any checkpoint can make; its own limit is reported with the nearest size that it allows."""

MAX_REFERENCES = 16
"""References of one image: each adds the tokens of a further image to the VLM and the DiT."""


def must_be(name: str, requirement: str, value: object, nearest: Sequence[object] = (), advice: str = "") -> str:
    """The message for a value that cannot be: ``NAME must be REQUIREMENT, got VALUE (nearest: A, B). ADVICE``.

    Args:
        name: What the caller knows the value by: an argument, an input, an option.
        requirement: What follows "must be": ``an integer from 0 to 16``.
        value: Shown by its ``repr``, shortened if it is long. Where that says nothing, pass a `Named`.
        nearest: The nearest allowed values; for numbers.
        advice: Sentences about what to do, where that is not obvious.
    """
    return must(name, f"be {requirement}", value, nearest, advice)


def must(name: str, requirement: str, value: object, nearest: Sequence[object] = (), advice: str = "") -> str:
    """As `must_be`, with a verb of its own: ``latents must have the shape [1, 16, 64, 96], got [1, 16, 96, 64].``"""
    options = f" (nearest: {', '.join(str(one) for one in dict.fromkeys(nearest))})" if nearest else ""
    return f"{name} must {requirement}, got {shown(value)}{options}.{' ' if advice else ''}{advice}"


def no_such_card(kind: str, index: int, count: int, variable: str) -> str:
    """The message for a card beyond the last: ``npu:3 does not exist: this machine has npu:0 to npu:1. ...``

    Args:
        kind: ``npu`` or ``cuda``.
        index: Of the requested card.
        count: Number of visible cards, at least one.
        variable: The environment variable that chooses the visible cards.
    """
    cards = f"{kind}:0" if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
    return f"{kind}:{index} does not exist: this machine has {cards}. {variable}, if set, chooses the visible cards."


class Named(str):
    """Text that an error shows without quotes: the name of a type, a count with its noun."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def type_of(value: object) -> Named:
    """The name of a value's type, for an error about a value whose ``repr`` says little."""
    return Named(type(value).__name__)


def shown(value: object) -> str:
    """A value for a message: its ``repr``, but never long, and without raising an error of its own."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:80]}... ({type(value).__name__})"


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """One of the ``allowed`` strings."""
    if value not in allowed or not isinstance(value, str):
        raise ValueError(must_be(name, f"one of {', '.join(allowed)}", value))
    return value


def prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or a batch, as a list."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(text, str) for text in given):
        raise TypeError(must_be("prompt", "a string or a list of strings", prompt))
    return list(given)


def negative_prompt(text: str | None) -> str:
    """One string for the whole batch; None, as diffusers allows, means none."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(must_be("negative_prompt", "a string (one for the whole batch)", type_of(text)))
    return text


def integer(name: str, value: SupportsIndex, low: int, high: int | None, requirement: str = "") -> int:
    """An integer of any kind (also numpy's) from ``low`` to ``high``, as an int."""
    requirement = requirement or (f"an integer from {low}" + ("" if high is None else f" to {high}"))
    found = None
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            found = operator.index(value)
    if found is None or found < low or (high is not None and found > high):
        raise ValueError(must_be(name, requirement, value))
    return found


def number(name: str, value: object, low: float, high: float, requirement: str = "") -> float:
    """A finite number from ``low`` to ``high``, as a float. NaN is never within bounds, a boolean is no number."""
    requirement = requirement or f"a number from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(must_be(name, requirement, value))
    with contextlib.suppress(OverflowError):  # an integer beyond every float
        found = float(value)
        if math.isfinite(found) and low <= found <= high:
            return found
    raise ValueError(must_be(name, requirement, value))


def positive(name: str, value: SupportsIndex, high: int | None = None) -> int:
    """An integer from 1 to ``high``."""
    return integer(name, value, 1, high)


def seed(value: SupportsIndex, name: str = "seed") -> int:
    """A seed of the noise: 64 bits, as PyTorch's generators take them."""
    return integer(name, value, 0, MAX_SEED, "an integer from 0 to 2**64 - 1")


def images(name: str, value: SupportsIndex) -> int:
    """Number of images of one run."""
    return positive(name, value, MAX_IMAGES)


def steps(num_inference_steps: SupportsIndex, guidance_scale: float) -> tuple[int, float]:
    """Number of denoising steps, and the scale of classifier-free guidance."""
    count = positive("num_inference_steps", num_inference_steps, MAX_STEPS)
    return count, number("guidance_scale", guidance_scale, 0, MAX_GUIDANCE_SCALE)


def guidance_every(value: SupportsIndex, name: str = "guidance_every") -> int:
    """In every so many-th step the negative branch of guidance is evaluated."""
    return positive(name, value, MAX_STEPS)


def generator(value: torch.Generator | None) -> torch.Generator | None:
    """One generator for the noise of the batch, or None."""
    if value is not None and not hasattr(value, "initial_seed"):
        raise TypeError(
            must_be("generator", "one torch.Generator, which draws the noise of the batch", type_of(value))
        )
    return value


def replaced_latents(returned: dict[str, Tensor] | None, latents: Tensor) -> Tensor:
    """The latents [b, C, h, w] to go on with after ``callback_on_step_end``."""
    if returned is None:
        return latents
    if not isinstance(returned, dict):
        raise TypeError(must("callback_on_step_end", "return a dict or None", type_of(returned)))
    replaced = returned.get("latents", latents)
    if replaced.shape != latents.shape:
        requirement = f"have the shape {list(latents.shape)}"
        raise ValueError(must("latents returned by callback_on_step_end", requirement, list(replaced.shape)))
    return replaced.to(latents)


def output_type(name: str) -> str:
    """The form in which images are returned."""
    return one_of("output_type", name, OUTPUT_TYPES)
