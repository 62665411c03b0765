"""What makes a picture, a latent or a conditioning one: the rules of the inputs that hold tensors.

Each returns what the nodes work with, and raises TypeError for something of another kind and ValueError for a value
that is not allowed, naming the input, what was found and what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..deepgen_npu.checks import MAX_IMAGES, MAX_REFERENCES, shown, whole
from ..deepgen_npu.dtypes import FLOATS, dtype_name, torch_dtype


if TYPE_CHECKING:
    from torch import Tensor

    from ..deepgen_npu.conditioning import Conditioning

# Pixels along a side; more than any picture has, far less than what only pretends to be one (a view of one number).
MAX_SIDE = 16384
# Numbers in one batch: 4 GB in float32.
MAX_NUMBERS = 2**30
# Latents of pictures stay below 100. Far beyond this even float32 overflows while they are denoised, float16 at once.
LARGEST_LATENT = 10000
# The largest batch of ComfyUI's own nodes is 4096: the noise of an index is that of this picture of a batch.
MAX_BATCH_INDEX = 4095


def image(name: str, value: Any) -> Tensor:
    """An IMAGE [batch, height, width, channels]; numbers outside 0..1 are clamped later, as ComfyUI does."""
    wanted = "[batch, height, width, channels] with 1, 3 or 4 channels"
    pixels = _tensor(name, value, wanted)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} has the shape {_shape(pixels)}; {wanted} is wanted.")
    return _finite(name, _limited(name, pixels, pixels.shape[0], pixels.shape[1:3]))


def latents(name: str, value: Any, channels: int | None = None) -> Tensor:
    """Latents [batch, channels, height, width]; None leaves the channels open."""
    wanted = f"[batch, {'channels' if channels is None else channels}, height, width]"
    samples = _tensor(name, value, wanted)
    if samples.ndim != 4 or channels not in (None, samples.shape[1]):
        raise ValueError(f"{name} has the shape {_shape(samples)}; {wanted} is wanted, as VAE Encode makes it.")
    samples = _finite(name, _limited(name, samples, samples.shape[0], samples.shape[1:]))
    low, high = _bounds(samples)
    if max(-low, high) > LARGEST_LATENT:
        raise ValueError(
            f"{name} has numbers from {low:g} to {high:g}; -{LARGEST_LATENT} to {LARGEST_LATENT} is wanted, as VAE "
            "Encode makes them."
        )
    return samples


def latent(name: str, value: Any) -> dict[str, Any]:
    """A LATENT: samples [batch, channels, height, width], and a mask [1 or batch, 1, height, width] in 0..1 if any."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} is a {type(value).__name__}; a latent is wanted, as VAE Encode makes it.")
    if "samples" not in value:
        raise ValueError(f"{name} has no samples; a latent is wanted, as VAE Encode makes it.")
    samples = latents(name, value["samples"])
    checked = {**value, "samples": samples}
    if value.get("noise_mask") is not None:
        checked["noise_mask"] = _mask(name, value["noise_mask"], len(samples))
    if value.get("batch_index") is not None:
        checked["batch_index"] = _batch_index(name, value["batch_index"], len(samples))
    return checked


def conditioning(name: str, value: Any) -> list[Conditioning]:
    """The list that DeepGen Encode Prompt makes, one for each picture of its batch."""
    from ..deepgen_npu.conditioning import Conditioning

    source = "connect the output of DeepGen Encode Prompt."
    if not isinstance(value, list) or not all(isinstance(one, Conditioning) for one in value):
        found = f"a list with {_kinds(value)}" if isinstance(value, list) else f"a {type(value).__name__}"
        raise TypeError(f"{name} is {found}; {source}")
    if not 1 <= len(value) <= MAX_IMAGES:
        raise ValueError(f"{name} is for {len(value)} pictures; 1 to {MAX_IMAGES} are wanted, {source}")
    return [_one_conditioning(name, one, value[0]) for one in value]


def _one_conditioning(name: str, one: Conditioning, first: Conditioning) -> Conditioning:
    """One of a list, each of which is for a picture of the same size."""
    for side in ("height", "width"):
        whole(f"{name}: {side}", getattr(one, side), 1, MAX_SIDE)
    if (one.height, one.width) != (first.height, first.width):
        raise ValueError(
            f"{name} has pictures of {first.width} x {first.height} and of {one.width} x {one.height} pixels; one "
            "size is wanted."
        )
    for part, dims in (("prompt_embeds", 3), ("pooled_prompt_embeds", 2)):
        positive, negative = getattr(one, part), getattr(one, f"negative_{part}")
        wanted = getattr(first, part)
        for label, tensor in ((part, positive), (f"negative_{part}", negative)):
            _tensor(f"{name}: {label}", tensor, "of 1 row")
            _finite(f"{name}: {label}", _limited(f"{name}: {label}", tensor))
            if tensor.ndim != dims or tensor.shape[0] != 1 or tensor.shape[-1] != wanted.shape[-1]:
                raise ValueError(
                    f"{name}: {label} has the shape {_shape(tensor)}; 1 row is wanted, and the width of the others."
                )
        if positive.shape != negative.shape:
            raise ValueError(
                f"{name}: {part} has the shape {_shape(positive)} and negative_{part} {_shape(negative)}; the same is "
                "wanted."
            )
    references = one.reference_latents
    if not isinstance(references, list) or len(references) > MAX_REFERENCES:
        raise ValueError(f"{name}: reference_latents is {shown(references)}; at most {MAX_REFERENCES} are wanted.")
    for reference in references:
        tensor = _tensor(f"{name}: reference_latents", reference, "[1, channels, height, width]")
        if tensor.ndim != 4 or tensor.shape[0] != 1:
            raise ValueError(
                f"{name}: reference_latents has the shape {_shape(tensor)}; [1, channels, height, width] is wanted."
            )
        _finite(f"{name}: reference_latents", _limited(f"{name}: reference_latents", tensor, 1, tensor.shape[1:]))
    return one


def _mask(name: str, value: Any, batch: int) -> Tensor:
    import torch

    name, wanted = f"{name}: its noise_mask", "[height, width] or [batch, height, width]"
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        value = value.float()
    mask = _tensor(name, value, wanted)
    if mask.ndim not in (2, 3, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        raise ValueError(f"{name} has the shape {_shape(mask)}; {wanted} is wanted.")
    count = 1 if mask.ndim == 2 else len(mask)
    if count not in (1, batch):
        raise ValueError(f"{name} has {count} pictures and its latents {batch}; one is wanted, or as many.")
    mask = _finite(name, _limited(name, mask, count, mask.shape[-2:]))
    return mask.reshape(count, 1, *mask.shape[-2:]).float().clamp(0, 1)


def _batch_index(name: str, value: Any, batch: int) -> list[int]:
    name = f"{name}: its batch_index"
    if not isinstance(value, (list, tuple)) or len(value) != batch:
        raise ValueError(f"{name} is {shown(value)}; a list with a number for each of {batch} latents is wanted.")
    return [whole(name, one, 0, MAX_BATCH_INDEX) for one in value]


def _tensor(name: str, value: Any, wanted: str) -> Tensor:
    """A tensor of real floating-point numbers that can be read, without a gradient."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; a tensor {wanted} is wanted.")
    if value.dtype not in [torch_dtype(name) for name in FLOATS]:
        found = dtype_name(value.dtype)
        raise TypeError(f"{name} is of dtype {found}; {', '.join(FLOATS[:-1])} or {FLOATS[-1]} is wanted.")
    if value.is_meta or value.is_nested or value.layout != torch.strided:
        kind = "meta" if value.is_meta else "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} is a {kind} tensor; a dense tensor with values is wanted.")
    return value.detach()


def _limited(name: str, tensor: Tensor, batch: int = 1, sides: Sequence[int] = (1,)) -> Tensor:
    """A tensor that is neither empty nor larger than anything that is meant."""
    if 0 in tensor.shape:
        raise ValueError(f"{name} has the shape {_shape(tensor)}, which is empty; at least one of each is wanted.")
    if batch > MAX_IMAGES or max(sides) > MAX_SIDE or tensor.numel() > MAX_NUMBERS:
        raise ValueError(
            f"{name} has the shape {_shape(tensor)}; at most {MAX_IMAGES} pictures, {MAX_SIDE} along a side and "
            f"{MAX_NUMBERS} numbers in all are wanted."
        )
    return tensor


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not all(map(math.isfinite, _bounds(tensor))):
        raise ValueError(f"{name} has numbers that are NaN or infinite; finite ones are wanted.")
    return tensor


def _bounds(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest number, which are NaN where one is. Makes no copy, unlike ``isfinite``."""
    for place, stride in enumerate(tensor.stride()):
        if stride == 0:  # a view that repeats itself
            tensor = tensor.narrow(place, 0, 1)
    return float(tensor.min()), float(tensor.max())


def _kinds(values: list[Any]) -> str:
    return ", ".join(sorted({type(one).__name__ for one in values[:100]})) or "nothing"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
