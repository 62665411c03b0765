"""DeepGen's VAE as ComfyUI's own VAE type, so that VAE Decode, VAE Encode and their tiled variants work with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.sd
import torch

from ..deepgen_npu.checkpoint.reading import BytesRead
from ..deepgen_npu.checkpoint.weights import load_part
from ..deepgen_npu.checks import Named, must, must_be
from ..deepgen_npu.formatting import format_bytes, format_size
from ..deepgen_npu.memory import vae_activation_bytes
from ..deepgen_npu.model import autoencoder
from .check_tensors import MAX_SIDE, image, latents
from .images import enlarge, pixel_size, shrink
from .placement import Stage, WholePatcher, check_cancel_in
from .progress import reading_progress
from .reading import disable_mmap


if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from ..deepgen_npu.checkpoint.folder import Checkpoint


class DeepGenVAE(Stage):
    """What ComfyUI's VAE calls its first stage model: latents are unscaled, pixels in [-1, 1].

    Without weights until `read`: then ``vae`` is no longer None.

    It calls `model.autoencoder` itself, past the pipeline, as no other node file does: ComfyUI's own nodes use this
    VAE, also where the other parts were never read and so no pipeline exists.

    Args:
        checkpoint: Whose VAE it is.
        dtype: Of the weights.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__()
        self.vae: AutoencoderKL | None = None
        self.enlargement = pixel_size(checkpoint.sizes)
        self._checkpoint = checkpoint
        self._dtype = dtype

    def read(self, on_bytes_read: BytesRead | None = None) -> AutoencoderKL:
        """Read the weights to where ComfyUI keeps an idle VAE; by itself with a progress bar, and to be cancelled.

        Raises:
            CheckpointError: When they cannot be read; nothing has changed then.
        """
        if self.vae is None:
            vae: Any = load_part(
                self._checkpoint,
                "vae",
                self._dtype,
                mm.vae_offload_device(),
                on_bytes_read=on_bytes_read or reading_progress(self._checkpoint, "vae"),
                disable_mmap=disable_mmap(),
            )
            check_cancel_in(vae)
            self.vae = vae
        return self.vae

    def encode(self, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        """Pixels [b, 3, H, W] in [-1, 1] to unscaled latents [b, C, h, w]."""
        with torch.no_grad():
            return autoencoder.encode(self.read(), shrink(pixels, self.enlargement))

    def decode(self, latents: torch.Tensor, **options: Any) -> torch.Tensor:
        """Unscaled latents [b, C, h, w] to pixels [b, 3, H, W] in [-1, 1]."""
        with torch.no_grad():
            return enlarge(autoencoder.decode(self.read(), latents), self.enlargement)


class ComfyVAE(comfy.sd.VAE):
    """ComfyUI's VAE around the VAE of a checkpoint, whose weights are read when they are first needed.

    The executor of newer versions looks at attributes of outputs outside of any node, ``patcher`` among them, and dies
    of an error there: so all are plain, there from the start, and read nothing.

    Args:
        checkpoint: Whose VAE it is.
        dtype: Of the weights.
    """

    first_stage_model: DeepGenVAE

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        # ComfyUI's constructor picks a network by the names of the weights, and knows only one with 128 channels that
        # is like ours. Its smallest case gives the attributes that the methods of this version use; those that depend
        # on the network are set here.
        super().__init__(sd={"pixel_space_vae": torch.ones(())}, dtype=dtype)
        config, sizes = checkpoint.configs["vae"], checkpoint.sizes
        self.first_stage_model = DeepGenVAE(checkpoint, dtype)
        scale = self.first_stage_model.enlargement
        factor = sizes.vae_factor * scale
        # By the files' headers, so that room is made for the weights before they are read.
        self.size = checkpoint.elements("vae") * dtype.itemsize
        self.patcher = WholePatcher(
            self.first_stage_model, load_device=self.device, offload_device=mm.vae_offload_device(), size=self.size
        )
        self.downscale_ratio = self.upscale_ratio = factor
        self.latent_channels = config["latent_channels"]
        self.disable_offload = True  # its layers cannot fetch their weights while they run

        def memory_used(height: int, width: int, dtype: torch.dtype) -> int:
            return vae_activation_bytes(config, height // scale, width // scale, dtype)

        self.memory_used_encode = lambda shape, dtype: memory_used(shape[2], shape[3], dtype)
        self.memory_used_decode = lambda shape, dtype: memory_used(shape[2] * factor, shape[3] * factor, dtype)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights were read."""
        return self.first_stage_model.vae is not None

    def get_ram_usage(self) -> int:
        """Bytes of the weights that were read; ComfyUI 0.8 asks when main memory runs short."""
        return self.size if self.is_loaded else 0

    def get_sd(self) -> dict[str, Any]:
        """The weights by name, for nodes that save a VAE."""
        self.first_stage_model.read()
        return super().get_sd()

    # Core's nodes hand on whatever was linked to them, so all four check it.

    def decode(self, samples_in: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        """For VAE Decode: samples [b, C, h, w]."""
        self._check_latents(samples_in)
        self._check_memory(self.memory_used_decode(samples_in.shape, self.vae_dtype), "VAE Decode (Tiled)")
        return super().decode(samples_in, *arguments, **options)

    def decode_tiled(self, samples: Any, tile_x: int | None = None, tile_y: int | None = None, **options: Any):
        """For VAE Decode (Tiled): the sides of a tile are in latents."""
        self._check_latents(samples)
        for tile in (tile_x, tile_y):
            if tile is not None and tile < 2:  # which ComfyUI halves
                least = f"at least 2 latents ({2 * self.upscale_ratio} pixels) with this model"
                raise ValueError(must_be("tile_size", least, tile))
        return super().decode_tiled(samples, tile_x=tile_x, tile_y=tile_y, **options)

    def encode(self, pixel_samples: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        """For VAE Encode: an IMAGE [b, H, W, C]."""
        self._check_pixels(pixel_samples)
        shape = pixel_samples.movedim(-1, 1).shape
        self._check_memory(self.memory_used_encode(shape, self.vae_dtype), "VAE Encode (Tiled)")
        return super().encode(pixel_samples, *arguments, **options)

    def encode_tiled(self, pixel_samples: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        """For VAE Encode (Tiled): an IMAGE [b, H, W, C]."""
        self._check_pixels(pixel_samples)
        return super().encode_tiled(pixel_samples, *arguments, **options)

    def _check_latents(self, samples: Any) -> None:
        height, width = latents("samples", samples, self.latent_channels).shape[-2:]
        self._check_sides(height * self.upscale_ratio, width * self.upscale_ratio)

    def _check_pixels(self, pixels: Any) -> None:
        height, width, channels = image("pixels", pixels).shape[1:]
        if channels < 3:
            raise ValueError(must("pixels", "have 3 or 4 channels", channels))
        self._check_sides(height, width)

    def _check_sides(self, height: int, width: int) -> None:
        smallest = self.downscale_ratio
        if not (smallest <= height <= MAX_SIDE and smallest <= width <= MAX_SIDE):
            requirement = f"have sides from {smallest} to {MAX_SIDE} pixels"
            raise ValueError(must("image", requirement, Named(format_size(width, height))))

    def _check_memory(self, nbytes: int, tiled: str) -> None:
        """Refuse what main memory does not hold.

        Main memory that runs out ends the process; a device's is an error, which ComfyUI answers with tiles. A layer
        of such a size also takes minutes, and only between layers can the work be cancelled.
        """
        total = mm.get_total_memory(self.device) if self.device.type == "cpu" else nbytes
        if nbytes > total:
            raise ValueError(
                f"The image needs about {format_bytes(nbytes)} in one piece but this computer has "
                f"{format_bytes(total)}: use {tiled}, or a smaller image."
            )
