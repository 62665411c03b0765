"""The denoising loop: from noise and conditioning to finished latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from .guidance import GuidedVelocity


if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

OnStep = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Conditioning:
    """What a picture is made from: `DeepGenPipeline.encode` returns it, `denoise` takes it.

    Attributes:
        prompt_embeds: [b, L, joint_attention_dim].
        pooled_prompt_embeds: [b, pooled_projection_dim].
        negative_prompt_embeds: [b, L, joint_attention_dim].
        negative_pooled_prompt_embeds: [b, pooled_projection_dim].
        height: Of the picture to make, in pixels.
        width: Of the picture to make, in pixels.
        reference_latents: One [1, C, H/8, W/8] for each reference, in scaled latent space; [b, C, H/8, W/8] where
            every row has a reference of its own.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    negative_pooled_prompt_embeds: Tensor
    height: int
    width: int
    reference_latents: list[Tensor] = field(default_factory=list)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.to(device, dtype),
            pooled_prompt_embeds=self.pooled_prompt_embeds.to(device, dtype),
            negative_prompt_embeds=self.negative_prompt_embeds.to(device, dtype),
            negative_pooled_prompt_embeds=self.negative_pooled_prompt_embeds.to(device, dtype),
            reference_latents=[latents.to(device, dtype) for latents in self.reference_latents],
        )

    def repeat(self, copies: int) -> Conditioning:
        """All rows, then all again, for several pictures a prompt."""
        return replace(
            self,
            prompt_embeds=repeat_rows(self.prompt_embeds, copies),
            pooled_prompt_embeds=repeat_rows(self.pooled_prompt_embeds, copies),
            negative_prompt_embeds=repeat_rows(self.negative_prompt_embeds, copies),
            negative_pooled_prompt_embeds=repeat_rows(self.negative_pooled_prompt_embeds, copies),
        )


def repeat_rows(tensor: Tensor, copies: int) -> Tensor:
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1))


@dataclass
class Start:
    """A picture that denoising begins with, instead of nothing but noise.

    Attributes:
        latents: [b or 1, C, H/8, W/8] in scaled space.
        strength: In (0, 1]: how much of it is drawn anew. The steps are the last of a schedule that would have
            steps / strength; at 1 nothing of the picture is left but what the mask keeps.
        mask: [b or 1, 1, H/8, W/8] in [0, 1]: 1 where it may change, 0 where it is kept.
    """

    latents: Tensor
    strength: float = 1.0
    mask: Tensor | None = None

    def to(self, device: torch.device) -> Start:
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, latents=self.latents.to(device), mask=mask)

    def begin(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The picture with the noise of a sigma, in the noise's dtype."""
        return (sigma * noise + (1 - sigma) * self.latents.float()).to(noise.dtype)

    def keep(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """``latents`` with the picture put back where the mask keeps it."""
        if self.mask is None:
            return latents
        return torch.lerp(self.begin(noise, sigma).float(), latents.float(), self.mask).to(latents.dtype)


def denoise(
    transformers: Sequence[SD3Transformer2DModel],
    scheduler: FlowMatchEulerDiscreteScheduler,
    conditioning: Conditioning,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    on_step: OnStep | None = None,
    on_progress: Callable[[], object] | None = None,
    capture_graph: bool = False,
    start: Start | None = None,
) -> Tensor:
    """Integrate the flow from noise to data with the scheduler's steps.

    Args:
        transformers: The DiT; or two of it on two devices, for the two branches of guidance.
        conditioning: On the device and in the dtype of the first, as is ``latents``.
        latents: [b, C, h, w] noise.
        guidance_scale: Of classifier-free guidance, v = v_negative + scale (v_positive - v_negative). At 1 or
            less only the positive rows are evaluated.
        on_step: Called after each step with its number, its timestep, the latents and x0, the estimate of the
            finished latents in float32. It returns the latents to go on with.
        on_progress: Called after each step.
        capture_graph: Capture the DiT's evaluation in a graph of the device and replay it (see `graphs`).
        start: A picture to begin with, on the same device.

    Returns:
        [b, C, h, w].
    """
    strength = start.strength if start else 1.0
    patch_size = transformers[0].config["patch_size"]
    timesteps, sigmas = set_timesteps(scheduler, num_inference_steps, latents, patch_size, strength)
    noise = latents
    if start:
        latents = start.begin(noise, sigmas[0])
    height, width = latents.shape[-2:]
    velocity_of = GuidedVelocity(transformers, conditioning, timesteps, guidance_scale, height, width, capture_graph)
    for step, timestep in enumerate(timesteps):
        velocity = velocity_of(latents, step)
        previous = latents
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if start:
            latents = start.keep(latents, noise, sigmas[step + 1])
        if on_step is not None:
            x0 = previous.float() - sigmas[step] * velocity.float()
            latents = on_step(step, timestep, latents, x0)
        if on_progress is not None:
            on_progress()
    return latents


def set_timesteps(
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    latents: Tensor,
    patch_size: int,
    strength: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Timesteps [n] in 0..1000 on the device of ``latents``, and sigmas [n + 1] in 0..1.

    Args:
        strength: Below 1 they are the last n of a schedule of n / strength steps.
    """
    config = scheduler.config
    arguments = {}
    if config["use_dynamic_shifting"]:
        # The published settings do not use it; mu grows with the number of image tokens.
        tokens = (latents.shape[-2] // patch_size) * (latents.shape[-1] // patch_size)
        slope = (config["max_shift"] - config["base_shift"]) / (
            config["max_image_seq_len"] - config["base_image_seq_len"]
        )
        arguments["mu"] = config["base_shift"] + slope * (tokens - config["base_image_seq_len"])
    scheduler.set_timesteps(int(num_inference_steps / strength), device=latents.device, **arguments)
    first = len(scheduler.timesteps) - num_inference_steps
    # Without it the scheduler searches for its first timestep, which waits for the device.
    scheduler.set_begin_index(first)
    return scheduler.timesteps[first:], scheduler.sigmas[first:]


def require_finite(values: Tensor, what: str, models: Mapping[str, Module]) -> None:
    """Refuse a result that would become a black picture.

    Args:
        models: What made it, by the name of the part. Only now, when it counts, their weights are looked at.

    Raises:
        FloatingPointError: With advice, when a value is NaN or infinite.
    """
    if torch.isfinite(values).all():
        return
    for part, model in models.items():
        for name, weights in model.named_parameters():
            if not torch.isfinite(weights).all():
                raise FloatingPointError(
                    f"{what} became NaN or infinite, since {name} of the {part} is ({weights.dtype}): the file in "
                    f"{part}/ is damaged, or its values are too large for this dtype. Download it again, or choose "
                    "float32 as dtype."
                )
    advice = {
        torch.float16: "Choose bfloat16 or float32 as dtype (torch_dtype in the library)",
        torch.bfloat16: "Choose float32 as dtype (torch_dtype in the library)",
    }.get(values.dtype, "Check the files with `python -m deepgen_npu check FOLDER`")
    raise FloatingPointError(
        f"{what} became NaN or infinite in {values.dtype} on {values.device}; the picture would be black. "
        f"{advice}, or lower the guidance scale."
    )
