"""How much device memory work needs, and what happens when there is not enough.

A run that finds no memory left is tried once more after everything else was freed. If that fails, too, the error tells
a size that would fit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .devices import empty_cache, free_memory, is_out_of_host_memory, is_out_of_memory
from .errors import DeepGenError
from .model.transformer import MODULATION_BYTES


if TYPE_CHECKING:
    from .components import Components

Result = TypeVar("Result")

# Most tensors of [tokens, width] that are alive at once in a layer, the four times wide inside of the feed-forward
# counted as four; and tensors of [pixels, narrowest width] in the VAE. Upper bounds: tests/npu/simulated measures
# the peaks.
DIT_LIVE_TENSORS = 20
VLM_LIVE_TENSORS = 20
CONNECTOR_LIVE_TENSORS = 20
VAE_LIVE_TENSORS = 17
# References on the way to the vision tower, in float32.
VLM_PIXEL_BYTES = 64


class OutOfDeviceMemory(DeepGenError, torch.OutOfMemoryError):
    """There is not enough device memory even when all else is freed; the message tells what would fit."""


@dataclass(frozen=True)
class Workload:
    """What a part of the model is to do.

    Attributes:
        part: ``vlm``, ``connector``, ``transformer`` or ``vae``.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        rows: What is evaluated at once: of the DiT and the VLM two for each picture, of the VAE one.
        references: Number of reference pictures.
        text_tokens: Tokens of prompt and queries.
    """

    part: str
    height: int
    width: int
    rows: int = 2
    references: int = 0
    text_tokens: int = 512


def activation_bytes(pipe: Components, work: Workload) -> int:
    """An upper estimate of what a part needs on its device beside its weights."""
    if work.part == "vae":
        return vae_activation_bytes(pipe.vae.config, work.height, work.width, pipe.vae.dtype)
    itemsize = pipe.dtype.itemsize
    if work.part == "transformer":
        config = pipe.transformer.config
        cell = pipe.sizes.generation_multiple
        tokens = (work.height // cell) * (work.width // cell) * (1 + work.references) + work.text_tokens
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return DIT_LIVE_TENSORS * work.rows * tokens * width * itemsize + MODULATION_BYTES
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


def vae_activation_bytes(config: Mapping[str, Any], height: int, width: int, dtype: torch.dtype) -> int:
    """The same for a VAE that encodes or decodes a picture of so many pixels."""
    return VAE_LIVE_TENSORS * config["block_out_channels"][0] * height * width * dtype.itemsize


def largest_fitting(pipe: Components, work: Workload, free: int) -> tuple[int, int] | None:
    """The largest (height, width) of the same shape whose work fits into ``free`` bytes, by the estimate.

    It is smaller than the size of ``work``, which has been tried. None when not even the smallest fits.
    """
    multiple = pipe.sizes.multiple(editing=work.references > 0)
    longer = max(work.height, work.width)
    for side in range(longer - multiple, 0, -multiple):
        height, width = (
            max(multiple, edge * side // longer // multiple * multiple) for edge in (work.height, work.width)
        )
        if activation_bytes(pipe, replace(work, height=height, width=width)) <= free:
            return height, width
    return None


def run_with_memory_retry(pipe: Components, work: Workload, run: Callable[[torch.device], Result]) -> Result:
    """Run a stage on its device, and once more with all other memory freed if memory runs out.

    Args:
        run: Does the work on the device it is given; called again, it starts from the beginning.

    Raises:
        OutOfDeviceMemory: When the second attempt fails, too.
    """
    reason, of_host = "", False
    for attempt in range(2):
        try:
            return run(pipe.placement.activate(work.part, activation_bytes(pipe, work)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason, of_host = (str(error) or type(error).__name__).splitlines()[0], is_out_of_host_memory(error)
        # Out here the error is gone, and with it the frames that held the tensors of the failed attempt.
        gc.collect()
        if attempt == 0:
            pipe.placement.make_room(work.part)
    raise OutOfDeviceMemory(_explain(pipe, work, reason, of_host))


def _explain(pipe: Components, work: Workload, reason: str, of_host: bool) -> str:
    long_text = work.part == "vlm" and work.text_tokens > Workload.text_tokens
    doing = [f"{work.height} x {work.width} pixels"] if work.height else []
    doing += [f"{work.rows} rows at once"] if work.part != "vae" else []
    doing += [f"{work.references} reference(s)"] if work.references else []
    doing += [f"{work.text_tokens} tokens of text"] if long_text else []
    try:
        device = pipe.placement.activate(work.part)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return f"Out of memory: the weights of the {work.part} alone do not fit on their device ({reason})."
    empty_cache(device)
    if of_host:  # also where the part runs on a card
        device = torch.device("cpu")
    found = free_memory(device)
    size = largest_fitting(pipe, work, found[0]) if found else None
    advice = [f"choose a smaller size (about {size[0]} x {size[1]} would fit)"] if size else []
    advice += ["make fewer pictures at once"] if work.rows > 2 else []
    advice += ["use fewer references"] if work.references else []
    advice += ["shorten the prompt"] if long_text else []
    advice += [f"decode in tiles ({pipe.placement.how_to_tile})"] if work.part == "vae" else []
    advice += ["free what other programs hold on it"]
    room = ""
    if found:
        free, total = (f"{count / 2**30:.1f}" for count in found)
        room = f"With all else moved out, {free} of {total} GiB are free beside its weights. "
    return (
        f"Out of memory on {device} in the {work.part} ({', '.join(doing)}). {room}"
        f"What can help: {', or '.join(advice)}. ({reason})"
    )
