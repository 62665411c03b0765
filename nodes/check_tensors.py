"""The rules of inputs that hold tensors: images, latents and conditionings.

Each returns what the nodes work with, and raises TypeError for a value of another type and ValueError for one that is
not allowed. The error begins with the name of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..deepgen_npu.checks import MAX_IMAGES, MAX_REFERENCES, Named, integer, must, must_be, type_of
from ..deepgen_npu.dtypes import FLOATS, dtype_name, torch_dtype
from ..deepgen_npu.formatting import format_size


if TYPE_CHECKING:
    from torch import Tensor

    from ..deepgen_npu.conditioning import Conditioning

MAX_SIDE = 16384
"""Pixels along a side; more than any image has, far less than what only pretends to be one (a view of one number)."""

MAX_NUMBERS = 2**30
"""Numbers in one batch: 4 GiB in float32."""

LARGEST_LATENT = 10000
"""Latents of images stay below 100. Far beyond this float32 overflows while they are denoised, float16 at once."""

MAX_BATCH_INDEX = 4095
"""The largest batch of ComfyUI's own nodes is 4096: the noise of an index is that of this image of a batch."""


def image(name: str, value: Any) -> Tensor:
    """An IMAGE [batch, height, width, channels]; numbers outside 0..1 are clamped later, as ComfyUI does."""
    shape = "[batch, height, width, channels] with 1, 3 or 4 channels"
    pixels = _tensor(name, value, shape)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(_must_have_shape(name, shape, pixels))
    return _finite(name, _limited(name, pixels, pixels.shape[0], pixels.shape[1:3]))


def mask(name: str, value: Any) -> Tensor:
    """A MASK as [batch, height, width] in 0..1; one without a batch is a batch of one."""
    return _masks(name, value)[:, 0]


def latents(name: str, value: Any, channels: int | None = None) -> Tensor:
    """Latents [batch, channels, height, width]; None leaves the channels open."""
    shape = f"[batch, {'channels' if channels is None else channels}, height, width]"
    samples = _tensor(name, value, shape)
    if samples.ndim != 4 or channels not in (None, samples.shape[1]):
        raise ValueError(_must_have_shape(name, f"{shape}, as VAE Encode makes it", samples))
    samples = _finite(name, _limited(name, samples, samples.shape[0], samples.shape[1:]))
    low, high = _bounds(samples)
    if max(-low, high) > LARGEST_LATENT:
        requirement = f"have numbers from -{LARGEST_LATENT} to {LARGEST_LATENT}, as VAE Encode makes them"
        raise ValueError(must(name, requirement, Named(f"{low:g} to {high:g}")))
    return samples


def latent(name: str, value: Any) -> dict[str, Any]:
    """A LATENT: samples [batch, channels, height, width], and a mask [1 or batch, 1, height, width] in 0..1 if any."""
    if not isinstance(value, dict):
        raise TypeError(must_be(name, "a latent, as VAE Encode makes it", type_of(value)))
    if "samples" not in value:
        raise ValueError(must(name, "have samples, as the latents of VAE Encode have", list(value)))
    samples = latents(name, value["samples"])
    checked = {**value, "samples": samples}
    if value.get("noise_mask") is not None:
        checked["noise_mask"] = _noise_mask(name, value["noise_mask"], len(samples))
    if value.get("batch_index") is not None:
        checked["batch_index"] = _batch_index(name, value["batch_index"], len(samples))
    return checked


def conditioning(name: str, value: Any) -> list[Conditioning]:
    """The list that DeepGen Encode Prompt makes, one for each image of its batch."""
    from ..deepgen_npu.conditioning import Conditioning

    if not isinstance(value, list) or not all(isinstance(one, Conditioning) for one in value):
        found = Named(f"a list of {_types(value)}") if isinstance(value, list) else type_of(value)
        raise TypeError(must_be(name, "the output of DeepGen Encode Prompt", found))
    if not 1 <= len(value) <= MAX_IMAGES:
        raise ValueError(must_be(name, f"for 1 to {MAX_IMAGES} images", len(value)))
    return [_one_conditioning(name, one, value[0]) for one in value]


def _one_conditioning(name: str, one: Conditioning, first: Conditioning) -> Conditioning:
    """One of a list, each of which is for an image of the same size."""
    for side in ("height", "width"):
        integer(f"{name}: {side}", getattr(one, side), 1, MAX_SIDE)
    if (one.height, one.width) != (first.height, first.width):
        found = f"{format_size(first.width, first.height)} and {format_size(one.width, one.height)}"
        raise ValueError(must_be(name, "for images of one size", Named(found)))
    for part, shape in (("prompt_embeds", "[1, tokens, {}]"), ("pooled_prompt_embeds", "[1, {}]")):
        positive, negative = getattr(one, part), getattr(one, f"negative_{part}")
        for label, tensor in ((part, positive), (f"negative_{part}", negative)):
            label = f"{name}: {label}"
            _tensor(label, tensor, shape.format("width"))
            _finite(label, _limited(label, tensor))
            first_width = getattr(first, part).shape[-1:]
            if tensor.ndim != shape.count(",") + 1 or tensor.shape[0] != 1 or tensor.shape[-1:] != first_width:
                raise ValueError(_must_have_shape(label, shape.format(*first_width or ["width"]), tensor))
        if positive.shape != negative.shape:
            label = f"{name}: negative_{part}"
            raise ValueError(_must_have_shape(label, f"of {part}, {list(positive.shape)}", negative))
    _check_references(f"{name}: reference_latents", one.reference_latents)
    return one


def _check_references(name: str, references: Any) -> None:
    if not isinstance(references, list) or len(references) > MAX_REFERENCES:
        found = Named(f"{len(references)}") if isinstance(references, list) else type_of(references)
        raise ValueError(must_be(name, f"a list of at most {MAX_REFERENCES} tensors", found))
    for reference in references:
        shape = "[1, channels, height, width]"
        tensor = _tensor(name, reference, shape)
        if tensor.ndim != 4 or tensor.shape[0] != 1:
            raise ValueError(_must_have_shape(name, shape, tensor))
        _finite(name, _limited(name, tensor, 1, tensor.shape[1:]))


def one_or(batch: int) -> str:
    """The sizes of a batch that goes with one of this size: ``1``, or ``1 or 3``."""
    return "1" if batch == 1 else f"1 or {batch}"


def _noise_mask(name: str, value: Any, batch: int) -> Tensor:
    masks = _masks(f"{name}: noise_mask", value)
    if len(masks) not in (1, batch):
        raise ValueError(
            f"{name}: noise_mask has a batch of {len(masks)} but samples has {batch}: use {one_or(batch)}."
        )
    return masks


def _masks(name: str, value: Any) -> Tensor:
    """A mask in any of ComfyUI's shapes as [batch, 1, height, width] in 0..1."""
    import torch

    shape = "[height, width] or [batch, height, width]"
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        value = value.float()
    masks = _tensor(name, value, shape)
    if masks.ndim not in (2, 3, 4) or (masks.ndim == 4 and masks.shape[1] != 1):
        raise ValueError(_must_have_shape(name, shape, masks))
    count = 1 if masks.ndim == 2 else len(masks)
    masks = _finite(name, _limited(name, masks, count, masks.shape[-2:]))
    return masks.reshape(count, 1, *masks.shape[-2:]).float().clamp(0, 1)


def _batch_index(name: str, value: Any, batch: int) -> list[int]:
    name = f"{name}: batch_index"
    if not isinstance(value, (list, tuple)) or len(value) != batch:
        raise ValueError(must_be(name, f"a list of {batch} integers, one for each latent", value))
    return [integer(name, one, 0, MAX_BATCH_INDEX) for one in value]


def _tensor(name: str, value: Any, shape: str) -> Tensor:
    """A tensor of real floating-point numbers that can be read, without a gradient."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(must_be(name, f"a tensor {shape}", type_of(value)))
    if value.dtype not in [torch_dtype(name) for name in FLOATS]:
        requirement = f"have the dtype {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        raise TypeError(must(name, requirement, Named(dtype_name(value.dtype))))
    if value.is_meta or value.is_nested or value.layout != torch.strided:
        kind = "meta" if value.is_meta else "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(must_be(name, "a dense tensor with values", Named(f"a {kind} tensor")))
    return value.detach()


def _limited(name: str, tensor: Tensor, batch: int = 1, sides: Sequence[int] = (1,)) -> Tensor:
    """A tensor that is neither empty nor larger than anything that is meant."""
    if 0 in tensor.shape:
        raise ValueError(must(name, "have no axis of length 0", list(tensor.shape)))
    if batch > MAX_IMAGES or max(sides) > MAX_SIDE or tensor.numel() > MAX_NUMBERS:
        requirement = f"have at most {MAX_IMAGES} images, {MAX_SIDE} along a side and {MAX_NUMBERS} numbers in all"
        raise ValueError(must(name, requirement, list(tensor.shape)))
    return tensor


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not all(map(math.isfinite, _bounds(tensor))):
        raise ValueError(must(name, "have finite numbers only", Named("NaN or infinity")))
    return tensor


def _bounds(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest number, which are NaN where one is. Makes no copy, unlike ``isfinite``."""
    for place, stride in enumerate(tensor.stride()):
        if stride == 0:  # a view that repeats itself
            tensor = tensor.narrow(place, 0, 1)
    return float(tensor.min()), float(tensor.max())


def _types(values: list[Any]) -> str:
    return ", ".join(sorted({type(one).__name__ for one in values[:100]})) or "nothing"


def _must_have_shape(name: str, shape: str, tensor: Tensor) -> str:
    return must(name, f"have the shape {shape}", list(tensor.shape))
