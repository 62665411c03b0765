"""What stages 1 and 2 take and return: `Conditioning` and `InitImage`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Conditioning:
    """Encoded prompts and references: `DeepGenPipeline.encode` returns them, `denoise` takes them.

    Attributes:
        prompt_embeds: [b, L, joint_attention_dim].
        pooled_prompt_embeds: [b, pooled_projection_dim].
        negative_prompt_embeds: [b, L, joint_attention_dim].
        negative_pooled_prompt_embeds: [b, pooled_projection_dim].
        height, width: Of the image to make, in pixels.
        reference_latents: One [1, C, H/8, W/8] for each reference, in scaled latent space; [b, C, H/8, W/8] where
            each row has its own reference.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    negative_pooled_prompt_embeds: Tensor
    height: int
    width: int
    reference_latents: list[Tensor] = field(default_factory=list)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """A copy on a device and in a dtype."""
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.to(device, dtype),
            pooled_prompt_embeds=self.pooled_prompt_embeds.to(device, dtype),
            negative_prompt_embeds=self.negative_prompt_embeds.to(device, dtype),
            negative_pooled_prompt_embeds=self.negative_pooled_prompt_embeds.to(device, dtype),
            reference_latents=[latents.to(device, dtype) for latents in self.reference_latents],
        )

    def repeat(self, copies: int) -> Conditioning:
        """All rows, then all again, for several images per prompt."""
        return replace(
            self,
            prompt_embeds=repeat_rows(self.prompt_embeds, copies),
            pooled_prompt_embeds=repeat_rows(self.pooled_prompt_embeds, copies),
            negative_prompt_embeds=repeat_rows(self.negative_prompt_embeds, copies),
            negative_pooled_prompt_embeds=repeat_rows(self.negative_pooled_prompt_embeds, copies),
        )


@dataclass
class InitImage:
    """An image that denoising starts from instead of pure noise: img2img, and with a mask inpainting.

    Attributes:
        latents: [b or 1, C, H/8, W/8] in scaled space.
        strength: Denoising strength, in (0, 1]. The run's steps are the last of a schedule of steps / strength;
            at 1 nothing of the image remains but what the mask keeps.
        mask: [b or 1, 1, H/8, W/8] in [0, 1]: 1 where the image may change, 0 where it is kept.
    """

    latents: Tensor
    strength: float = 1.0
    mask: Tensor | None = None

    def to(self, device: torch.device) -> InitImage:
        """A copy on a device; dtypes stay."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, latents=self.latents.to(device), mask=mask)

    def noised(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The image mixed with noise at a sigma in [0, 1]: [b, C, H/8, W/8] in the noise's dtype."""
        return (sigma * noise + (1 - sigma) * self.latents.float()).to(noise.dtype)

    def blend(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """``latents`` [b, C, H/8, W/8] with the image put back where the mask keeps it."""
        if self.mask is None:
            return latents
        return torch.lerp(self.noised(noise, sigma).float(), latents.float(), self.mask).to(latents.dtype)


def repeat_rows(tensor: Tensor, copies: int) -> Tensor:
    """[b, ...] to [copies x b, ...], in the order 1, 2, 1, 2."""
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1))
