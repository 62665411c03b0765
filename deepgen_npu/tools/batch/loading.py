"""What draws: a model on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...checkpoint.folder import Checkpoint, resolve_model
from ...devices import resolve_device, resolve_dtype
from ...dtypes import dtype_name
from ...lora.file import LoraChoice
from ..specs import DeviceSpec, ModelSpec, name_of
from .drawing import Painter
from .folder import OutputFolder


ENCODINGS_BYTES = 64 << 20
"""The images of a row share its encodings: 4 MiB for a prompt of usual length, and the latents of its references."""


def load_painter(settings: Mapping[str, Any]) -> Painter:
    """Load the model.

    Args:
        settings: ``model`` and ``output`` (paths), ``device``, ``dtype``, ``offload``, ``text_encoder_device``,
            ``capture_graph``, ``disable_mmap``, ``vae_tiling``, ``loras`` (pairs of path and strength) and ``facts``
            (`Painter.run`).

    Raises:
        CheckpointError, DeviceError, LoraError: When it cannot run here.
    """
    loras = tuple(LoraChoice(Path(path), strength) for path, strength in settings["loras"])
    model = ModelSpec(Checkpoint.open(resolve_model(settings["model"])), None, loras)
    device = resolve_device(settings["device"])
    if settings["text_encoder_device"]:
        resolve_device(settings["text_encoder_device"])  # fails before anything slow
    dtype = resolve_dtype(settings["dtype"], device)
    place = [settings[name] for name in ("offload", "capture_graph", "text_encoder_device", "disable_mmap")]
    pipe, _ = model.load(DeviceSpec(device, dtype, *place))
    if settings["vae_tiling"]:
        pipe.enable_vae_tiling()
    pipe.set_progress_bar_config(disable=True)
    pipe.encodings.max_bytes = ENCODINGS_BYTES
    parameters = {
        "model": model.checkpoint.folder.name,
        "loras": [one.as_dict() for one in loras],
        "device": str(device),
        "dtype": dtype_name(dtype),
        "vae_tiling": settings["vae_tiling"],
    }
    return Painter(pipe, OutputFolder(Path(settings["output"])), settings["facts"], parameters, name_of(device))
