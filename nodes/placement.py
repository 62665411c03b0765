"""ComfyUI decides where the parts of DeepGen are, and can ask for the memory back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP

from ..deepgen_npu.devices import prepare_thread
from .native.castable import make_castable, place_rest
from .native.model import ALL_MEMORY, KEY, patcher_class


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


class DeepGenTextEncoder(Stage):
    """VLM and connector. The name is what ComfyUI's log shows when it loads or unloads them."""


class WholePatcher(ModelPatcher):
    """Moves a stage as a whole or not at all, and lets it read its weights just before it is placed.

    For the VAE, whose layers cannot fetch their weights while they run. With --novram ComfyUI would give it no memory
    in spite of force_full_load, leave it on the CPU, and run it there with inputs on the device; and where it needs a
    little room it would move out some of its layers.
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
        # Quantised layers are of a class of ComfyUI's own.
        if isinstance(layer, torch.nn.Conv2d) or hasattr(layer, "in_features"):
            layer.register_forward_pre_hook(check)


class ComfyPlacement:
    """A placement of `DeepGenPipeline` on ComfyUI's memory manager: one ModelPatcher for each stage.

    VLM and connector (one stage) and the DiT are loaded as far as there is room, and bring the rest to the device
    layer by layer while they run; the VAE is loaded whole. ComfyUI moves out what another model needs the room of.

    Args:
        pipe: Whose parts are placed.
        transformer: The patcher of the DiT, which is a MODEL of ComfyUI.
        vae: The patcher of the VAE, which ComfyUI's own nodes use as well.
        text_device: Where VLM and connector run.
    """

    how_to_tile = "with DeepGen Sampler and VAE Decode (Tiled)"
    """The pipeline's advice where an image does not fit on the device in one piece."""

    def __init__(self, pipe: DeepGenPipeline, transformer: ModelPatcher, vae: ModelPatcher, text_device: torch.device):
        for part in (pipe.vlm, pipe.connector):
            make_castable(part, pipe.transformer.dtype)
            check_cancel_in(part)
        # The card unless a user chose otherwise: with --lowvram ComfyUI runs text encoders on the CPU, which for three
        # billion parameters takes longer than to bring them over.
        text = patcher_class()(
            DeepGenTextEncoder(vlm=pipe.vlm, connector=pipe.connector),
            load_device=text_device,
            offload_device=mm.text_encoder_offload_device(),
        )
        text.add_callback_with_key(CallbacksMP.ON_LOAD, KEY, place_rest)
        self._patchers = {"vlm": text, "connector": text, "transformer": transformer, "vae": vae}
        self._out_of_memory = ""  # the part that ran out of memory

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        """Load a part, with room for ``nbytes`` of activations on top of it; returns its device.

        After it ran out of memory, as little of it as possible is loaded.
        """
        mm.throw_exception_if_processing_interrupted()
        patcher = self._patchers[part]
        required = ALL_MEMORY if part == self._out_of_memory else nbytes
        if nbytes:
            self._out_of_memory = ""
        mm.load_models_gpu([patcher], memory_required=required, force_full_load=part == "vae")
        prepare_thread(patcher.load_device)
        return patcher.load_device

    def make_room(self, part: str) -> None:
        """Move everything out, before another try after an out-of-memory error."""
        mm.unload_all_models()
        mm.soft_empty_cache()
        self._out_of_memory = part

    def stays(self, part: str) -> bool:
        """Unknown: ComfyUI may move it at any time. Its own sampling keeps graphs (see `native.model`)."""
        return False

    def release(self) -> None:
        """Return the thread to the model's own card, which ComfyUI takes for its device in whatever it does next."""
        prepare_thread(self._patchers["transformer"].load_device)

    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(patcher.model_size() for patcher in {id(one): one for one in self._patchers.values()}.values())
