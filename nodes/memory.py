"""ComfyUI decides where the parts of DeepGen are, and can ask for the memory back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import comfy.latent_formats
import comfy.model_management as mm
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..deepgen_npu.devices import prepare_thread
from ..deepgen_npu.memory import Work, activation_bytes


if TYPE_CHECKING:
    from ..deepgen_npu.pipeline import DeepGenPipeline


class _Stage(torch.nn.Module):
    """What a ModelPatcher holds. It cannot hold the models themselves: it sets ``model.device``, which is a
    read-only property of diffusers and transformers classes.
    """

    def __init__(self, **parts: torch.nn.Module):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        # latent_preview reads it from here.
        self.latent_format = comfy.latent_formats.SD3()


class _WholePatcher(ModelPatcher):
    """Moves a stage as a whole or not at all.

    The layers of diffusers and transformers cannot fetch their weights while they run, as ComfyUI's own can. With
    --novram ComfyUI would give a stage no memory in spite of force_full_load, leave it on the CPU, and run it there
    with inputs on the device.
    """

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        return super().partially_load(device_to, extra_memory=1e32, force_patch_weights=force_patch_weights)


class DeepGenVLM(_Stage):
    """The name is what ComfyUI's log shows when it loads or unloads the stage."""


class DeepGenDiT(_Stage):
    pass


class DeepGenVAE(_Stage):
    pass


class ComfyPlacement:
    """A placement of `DeepGenPipeline` on ComfyUI's memory manager: one ModelPatcher for each stage.

    VLM, connector with DiT, and VAE are loaded whole just before they run; ComfyUI moves other models out only
    as far as needed, and ours when somebody else needs the room or presses "Unload models".
    """

    def __init__(self, pipe: DeepGenPipeline):
        self.denoiser = _WholePatcher(
            DeepGenDiT(connector=pipe.connector, transformer=pipe.transformer),
            load_device=mm.get_torch_device(),
            offload_device=mm.unet_offload_device(),
        )
        text = _WholePatcher(
            DeepGenVLM(vlm=pipe.vlm),
            load_device=mm.text_encoder_device(),
            offload_device=mm.text_encoder_offload_device(),
        )
        vae = _WholePatcher(
            DeepGenVAE(vae=pipe.vae), load_device=mm.vae_device(), offload_device=mm.vae_offload_device()
        )
        self._patchers = {
            "vlm": text,
            "connector": self.denoiser,
            "transformer": self.denoiser,
            "vae": vae,
        }
        self._activations: dict[str, int] = {}

    def expect(self, pipe: DeepGenPipeline, height: int, width: int, batch: int, references: int) -> None:
        """Estimate the memory that each stage needs beside its weights, for ComfyUI to keep free."""
        self._activations = {
            part: activation_bytes(pipe, Work(part, height, width, rows=2 * batch, references=references))
            for part in self._patchers
        }

    def activate(self, part: str) -> torch.device:
        mm.throw_exception_if_processing_interrupted()
        patcher = self._patchers[part]
        mm.load_models_gpu([patcher], memory_required=self._activations.get(part, 0), force_full_load=True)
        prepare_thread(patcher.load_device)
        return patcher.load_device

    def make_room(self, part: str) -> None:
        mm.unload_all_models()
        mm.soft_empty_cache()

    def release(self) -> None:
        """Nothing: ComfyUI frees memory when it needs some."""


def placement_of(pipe: DeepGenPipeline) -> ComfyPlacement:
    """The placement that `load_pipeline` gave a pipeline."""
    if not isinstance(pipe.placement, ComfyPlacement):
        raise TypeError("pipeline: connect the output of DeepGen Loader.")
    return pipe.placement


def load_pipeline(folder: Path, dtype_name: str) -> DeepGenPipeline:
    """Read a checkpoint to where ComfyUI keeps idle models, with a progress bar over the bytes."""
    from ..deepgen_npu.checkpoint import Checkpoint
    from ..deepgen_npu.devices import resolve_dtype
    from ..deepgen_npu.pipeline import DeepGenPipeline

    checkpoint = Checkpoint.open(folder)
    dtype = resolve_dtype(dtype_name, mm.get_torch_device())
    bar = comfy.utils.ProgressBar(checkpoint.nbytes())

    def on_bytes_read(count: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update(count)

    pipe = DeepGenPipeline.from_checkpoint(
        checkpoint,
        dtype,
        devices={
            "vlm": mm.text_encoder_offload_device(),
            "connector": mm.unet_offload_device(),
            "transformer": mm.unet_offload_device(),
            "vae": mm.vae_offload_device(),
        },
        # Never float16 unless asked for with --fp16-vae: ComfyUI does not run this VAE in it, either.
        vae_dtype=mm.vae_dtype(mm.vae_device(), [] if dtype == torch.float32 else [torch.bfloat16]),
        on_bytes_read=on_bytes_read,
    )
    pipe.placement = ComfyPlacement(pipe)
    return pipe
