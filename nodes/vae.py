"""DeepGen's VAE as ComfyUI's own VAE type, so that VAE Decode, VAE Encode and their tiled variants work with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.sd
import torch

from ..deepgen_npu import autoencoder
from ..deepgen_npu.memory import vae_activation_bytes
from ..deepgen_npu.sizes import SizeRules
from ..deepgen_npu.weights import BytesRead, load_part
from .memory import Stage, WholePatcher, check_cancel_in
from .scale import enlarge, pixel_size, shrink


if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from ..deepgen_npu.checkpoint import Checkpoint


class DeepGenVAE(Stage):
    """What ComfyUI's VAE calls its first stage model: latents are unscaled, pixels in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL, enlargement: int):
        super().__init__(vae=vae)
        self.enlargement = enlargement

    def encode(self, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        with torch.no_grad():
            return autoencoder.encode(self.vae, shrink(pixels, self.enlargement))

    def decode(self, latents: torch.Tensor, **options: Any) -> torch.Tensor:
        with torch.no_grad():
            return enlarge(autoencoder.decode(self.vae, latents), self.enlargement)


class ComfyVAE(comfy.sd.VAE):
    """ComfyUI's VAE around the VAE of a checkpoint, whose weights are read when they are first needed."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        # ComfyUI's constructor picks a network by the names of the weights, and knows only one with 128 channels that
        # is like ours. Its smallest case gives the attributes that the methods of this version use; those that depend
        # on the network are set here.
        super().__init__(sd={"pixel_space_vae": torch.ones(())}, dtype=dtype)
        self._checkpoint = checkpoint
        self._model: DeepGenVAE | None = None
        self._patcher: WholePatcher | None = None
        config, sizes = checkpoint.configs["vae"], SizeRules.from_checkpoint(checkpoint)
        factor = sizes.vae_factor * pixel_size(sizes)
        self._enlargement = pixel_size(sizes)
        self.downscale_ratio = self.upscale_ratio = factor
        self.latent_channels = config["latent_channels"]
        self.disable_offload = True  # its layers cannot fetch their weights while they run
        self.size = 0

        def memory_used(height: int, width: int, dtype: torch.dtype) -> int:
            return vae_activation_bytes(config, height // pixel_size(sizes), width // pixel_size(sizes), dtype)

        self.memory_used_encode = lambda shape, dtype: memory_used(shape[2], shape[3], dtype)
        self.memory_used_decode = lambda shape, dtype: memory_used(shape[2] * factor, shape[3] * factor, dtype)

    @property
    def is_loaded(self) -> bool:
        return self._model is not None

    def load(self, on_bytes_read: BytesRead | None = None) -> DeepGenVAE:
        if self._model is None:
            vae: Any = load_part(
                self._checkpoint, "vae", self.vae_dtype, mm.vae_offload_device(), on_bytes_read=on_bytes_read
            )
            self._model = DeepGenVAE(vae, self._enlargement)
            check_cancel_in(self._model)
            self._patcher = WholePatcher(self._model, load_device=self.device, offload_device=mm.vae_offload_device())
            self.size = self._patcher.model_size()
        return self._model

    # ComfyUI's constructor and methods see plain attributes.

    @property
    def first_stage_model(self) -> DeepGenVAE:
        return self.load()

    @first_stage_model.setter
    def first_stage_model(self, model: Any) -> None:
        self._model = model

    @property
    def patcher(self) -> Any:
        self.load()
        return self._patcher

    @patcher.setter
    def patcher(self, patcher: Any) -> None:
        self._patcher = patcher

    def model_size(self) -> int:
        """Bytes that the weights take now."""
        return self.size or 0

    def get_ram_usage(self) -> int:
        return self.model_size()
