"""ComfyUI decides where the parts of DeepGen are, and can ask for the memory back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.latent_formats
import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher

from ..deepgen_npu.devices import prepare_thread


if TYPE_CHECKING:
    from ..deepgen_npu.pipeline import DeepGenPipeline


class Stage(torch.nn.Module):
    """What a ModelPatcher holds.

    It cannot hold the models themselves: it sets ``model.device``, which is a read-only property of diffusers and
    transformers classes.
    """

    def __init__(self, **parts: torch.nn.Module):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def read(self) -> None:
        """Read the weights, where that was not done yet. ComfyUI is about to place them: a node is running."""


class DeepGenVLM(Stage):
    """The name is what ComfyUI's log shows when it loads or unloads the stage."""


class DeepGenDiT(Stage):
    """Connector and DiT, which run in turns."""

    def __init__(self, latent_format: comfy.latent_formats.LatentFormat | None = None, **parts: torch.nn.Module):
        super().__init__(**parts)
        # latent_preview reads it from here.
        self.latent_format = latent_format


class WholePatcher(ModelPatcher):
    """Moves a stage as a whole or not at all, and lets it read its weights just before it is placed.

    The layers of diffusers and transformers cannot fetch their weights while they run, as ComfyUI's own can. With
    --novram ComfyUI would give a stage no memory in spite of force_full_load, leave it on the CPU, and run it there
    with inputs on the device; and where it needs a little room it would move out some layers of a stage.
    """

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        """Load all: ``extra_memory``, how much may be loaded, is ignored."""
        self.model.read()
        return super().partially_load(device_to, extra_memory=1e32, force_patch_weights=force_patch_weights)

    def partially_unload(self, device_to, memory_to_free=0, **options):
        """Nothing is freed: ComfyUI then unloads the stage as a whole."""
        return 0


def check_cancel_in(module: torch.nn.Module) -> None:
    """Let the cancel button act at each layer of a part that runs once and long, not only when it is done.

    Not for the DiT: its steps are short, and a captured step has no layers.
    """

    def check(*arguments: object) -> None:
        mm.throw_exception_if_processing_interrupted()

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            layer.register_forward_pre_hook(check)


class ComfyPlacement:
    """A placement of `DeepGenPipeline` on ComfyUI's memory manager: one ModelPatcher for each stage.

    VLM, connector with DiT, and VAE are loaded whole just before they run; ComfyUI moves other models out only
    as far as needed, and ours when another model needs the room or the user presses "Unload models".

    Args:
        pipe: Whose parts are placed.
        vae: The patcher of the VAE, which ComfyUI's own nodes use as well.
        latent_format: Of the previews.
    """

    how_to_tile = "with DeepGen Sampler and VAE Decode (Tiled)"
    """The pipeline's advice where an image does not fit on the device in one piece."""

    def __init__(self, pipe: DeepGenPipeline, vae: ModelPatcher, latent_format: comfy.latent_formats.LatentFormat):
        self.denoiser = WholePatcher(
            DeepGenDiT(latent_format, connector=pipe.connector, transformer=pipe.transformer),
            load_device=mm.get_torch_device(),
            offload_device=mm.unet_offload_device(),
        )
        text = WholePatcher(
            DeepGenVLM(vlm=pipe.vlm),
            load_device=mm.text_encoder_device(),
            offload_device=mm.text_encoder_offload_device(),
        )
        check_cancel_in(pipe.vlm)
        check_cancel_in(pipe.connector)
        self._patchers = {
            "vlm": text,
            "connector": self.denoiser,
            "transformer": self.denoiser,
            "vae": vae,
        }

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        """Load a part, with room for ``nbytes`` of activations on top of it; returns its device."""
        mm.throw_exception_if_processing_interrupted()
        patcher = self._patchers[part]
        mm.load_models_gpu([patcher], memory_required=nbytes, force_full_load=True)
        prepare_thread(patcher.load_device)
        return patcher.load_device

    def make_room(self, part: str) -> None:
        """Move everything out, before another try after an out-of-memory error."""
        mm.unload_all_models()
        mm.soft_empty_cache()

    def release(self) -> None:
        """Nothing: ComfyUI frees memory when it needs some."""

    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(patcher.model_size() for patcher in {id(one): one for one in self._patchers.values()}.values())
