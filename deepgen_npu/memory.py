"""How much device memory a stage needs, and what happens when there is not enough.

A stage that runs out of memory is tried once more after everything else was freed. If that fails, the error names a
size that would fit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .checks import MAX_STEPS
from .devices import empty_cache, free_memory, is_out_of_host_memory, is_out_of_memory
from .errors import DeepGenError
from .formatting import format_bytes, format_size
from .model.float16 import sum_dtype
from .model.modulation import MODULATION_BYTES
from .quantization.linear import workspace_bytes


if TYPE_CHECKING:
    from .components import Components
    from .sizes import SizeRules

Result = TypeVar("Result")

DIT_LIVE_TENSORS = 20
"""Most tensors of [tokens, width] that are alive at once in a block of the DiT; the inside of the feed-forward, which
is four times as wide, counts as four. An upper bound, like those below: tests/npu/simulated measures the peaks."""

VLM_LIVE_TENSORS = 30
"""The same for a layer of the VLM; at the published size a pass peaks at 25 to 29 (dev/small_cards.py)."""

CONNECTOR_LIVE_TENSORS = 23
"""The same for a layer of the connector; at the published size it is just below."""

VAE_LIVE_TENSORS = 17
"""Most tensors of [pixels, narrowest width] that are alive at once in the VAE."""

VLM_PIXEL_BYTES = 64
"""Bytes for each pixel of a reference on its way to the vision tower, in float32."""


class OutOfDeviceMemory(DeepGenError, torch.OutOfMemoryError):
    """There is not enough device memory even after all else was freed; the message names what would fit."""


@dataclass(frozen=True)
class Workload:
    """What a part of the model has to compute at once.

    Attributes:
        part: ``vlm``, ``connector``, ``transformer`` or ``vae``.
        height, width: Of the image, in pixels.
        rows: For DiT and VLM two for each image, for the VAE one.
        references: Number of reference images.
        text_tokens: Tokens of prompt and queries.
    """

    part: str
    height: int
    width: int
    rows: int = 2
    references: int = 0
    text_tokens: int = 512


def activation_bytes(pipe: Components, work: Workload) -> int:
    """An upper estimate of the bytes that a part needs on its device on top of its weights."""
    if work.part == "vae":
        return vae_activation_bytes(pipe.vae.config, work.height, work.width, pipe.vae.dtype)
    itemsize = sum_dtype(pipe.dtype).itemsize
    return _activation_bytes(pipe, work, itemsize) + workspace_bytes(pipe.components[work.part], itemsize)


def _activation_bytes(pipe: Components, work: Workload, itemsize: int) -> int:
    if work.part == "transformer":
        return transformer_activation_bytes(pipe.transformer.config, pipe.sizes, work, itemsize)
    tokens = work.text_tokens
    if work.references:
        cell = pipe.sizes.vision_cell
        tokens += (work.height // cell) * (work.width // cell) * work.references
    if work.part == "vlm":
        config = pipe.vlm.config.get_text_config()
        # The feed-forward may be wider than four times the width; the vision tower has four times the tokens.
        wide = max(config.hidden_size, config.intermediate_size // 4)
        pixels = VLM_PIXEL_BYTES * work.height * work.width * work.references
        return VLM_LIVE_TENSORS * work.rows * tokens * wide * itemsize + pixels
    width = pipe.connector.config["connector"]["hidden_size"]
    return CONNECTOR_LIVE_TENSORS * work.rows * tokens * width * itemsize


def transformer_activation_bytes(config: Mapping[str, Any], sizes: SizeRules, work: Workload, itemsize: int) -> int:
    """The same for the DiT of a config, whose numbers have ``itemsize`` bytes."""
    cell = sizes.generation_multiple
    tokens = -(-work.height // cell) * -(-work.width // cell) * (1 + work.references) + work.text_tokens
    width = config["num_attention_heads"] * config["attention_head_dim"]
    # Shifts, scales and gates: 9 of the image in a dual block, else 6, and 6 of the context; a few less at the end.
    vectors = 12 * config["num_layers"] + 3 * len(config["dual_attention_layers"])
    modulation = min(MODULATION_BYTES, MAX_STEPS * work.rows * vectors * width * itemsize)
    return DIT_LIVE_TENSORS * work.rows * tokens * width * itemsize + modulation


def vae_activation_bytes(config: Mapping[str, Any], height: int, width: int, dtype: torch.dtype) -> int:
    """The same for a VAE that encodes or decodes an image of ``height`` and ``width`` in pixels."""
    return VAE_LIVE_TENSORS * config["block_out_channels"][0] * height * width * dtype.itemsize


def largest_fitting(
    work: Workload, sizes: SizeRules, bytes_needed: Callable[[Workload], int], free: int
) -> tuple[int, int] | None:
    """The largest (height, width) of the same aspect ratio whose estimate fits into ``free`` bytes.

    It is smaller than the size of ``work``, which has been tried. None when not even the smallest size fits.
    """
    multiple = sizes.multiple(editing=work.references > 0)
    longer = max(work.height, work.width)
    for side in range((longer - 1) // multiple * multiple, 0, -multiple):
        height, width = (
            max(multiple, edge * side // longer // multiple * multiple) for edge in (work.height, work.width)
        )
        if bytes_needed(replace(work, height=height, width=width)) <= free:
            return height, width
    return None


def run_with_memory_retry(pipe: Components, work: Workload, run: Callable[[torch.device], Result]) -> Result:
    """Run a stage on its device, and once more with all other memory freed if memory runs out.

    Args:
        pipe: The parts and their placement.
        work: What the stage computes.
        run: The stage: a function of the device. The second call starts from the beginning.

    Raises:
        OutOfDeviceMemory: When the second attempt also runs out of memory.
    """
    reason, of_host = "", False
    for _ in range(2):
        try:
            return run(pipe.placement.activate(work.part, activation_bytes(pipe, work)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason, of_host = reason_of(error), is_out_of_host_memory(error)
        # After the except block the error is gone, and with it the frames that held the failed attempt's tensors.
        gc.collect()
        pipe.placement.make_room(work.part)
    raise OutOfDeviceMemory(_explain(pipe, work, reason, of_host))


def _explain(pipe: Components, work: Workload, reason: str, of_host: bool) -> str:
    try:
        device = pipe.placement.activate(work.part)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return f"Out of memory: the weights of the {work.part} alone do not fit on their device ({reason})."
    empty_cache(device)
    if of_host:  # also where the part runs on a card
        device = torch.device("cpu")
    return explain(work, pipe.sizes, partial(activation_bytes, pipe), device, reason, pipe.placement.how_to_tile)


def explain(
    work: Workload,
    sizes: SizeRules,
    bytes_needed: Callable[[Workload], int],
    device: torch.device,
    reason: str,
    how_to_tile: str,
) -> str:
    """The message for a stage that ran out of memory with all else moved out.

    Args:
        work: What was computed.
        sizes: Which sizes there are.
        bytes_needed: The estimate of its part.
        device: Which has too little memory; all else was moved out of it.
        reason: What the device says.
        how_to_tile: How to decode in tiles.
    """
    long_text = work.part == "vlm" and work.text_tokens > Workload.text_tokens
    doing = [f"{format_size(work.width, work.height)} pixels"] if work.height else []
    doing += [f"{work.rows} rows at once"] if work.part != "vae" else []
    doing += [f"{work.references} reference(s)"] if work.references else []
    doing += [f"{work.text_tokens} tokens of text"] if long_text else []
    found = free_memory(device)
    size = largest_fitting(work, sizes, bytes_needed, found[0]) if found else None
    advice = [f"choose a smaller size (about {format_size(size[1], size[0])} would fit)"] if size else []
    advice += ["make fewer images at once"] if work.rows > 2 else []
    advice += ["use fewer references"] if work.references else []
    advice += ["shorten the prompt"] if long_text else []
    advice += [f"decode in tiles ({how_to_tile})"] if work.part == "vae" else []
    advice += ["close other programs that use its memory"]
    room = ""
    if found:
        free, total = map(format_bytes, found)
        room = f"With all else moved out, {free} of {total} are free on top of its weights. "
    return (
        f"Out of memory on {device} in the {work.part} ({', '.join(doing)}). {room}"
        f"What can help: {', or '.join(advice)}. ({reason})"
    )


def reason_of(error: BaseException) -> str:
    """The first line of what a device says when it is out of memory."""
    return (str(error) or type(error).__name__).splitlines()[0]
