"""The denoising loop: from noise and conditioning to finished latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .conditioning import Conditioning, InitImage
from .graphs import CaptureGraph, Graphs
from .guidance import GuidedVelocity


if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

OnStep = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(step, timestep, latents, x0) to the latents to go on with."""


def denoise(
    transformers: Sequence[SD3Transformer2DModel],
    scheduler: FlowMatchEulerDiscreteScheduler,
    conditioning: Conditioning,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    on_step: OnStep | None = None,
    on_progress: Callable[[], object] | None = None,
    capture_graph: CaptureGraph = False,
    init_image: InitImage | None = None,
    graphs: Graphs | None = None,
    guidance_every: int = 1,
) -> Tensor:
    """Integrate the flow from noise to data with the scheduler's steps.

    Args:
        transformers: The DiT, or copies of it on two devices, for the two branches of guidance.
        scheduler: One that no other run uses, since it counts steps.
        conditioning: On the device and in the dtype of the first DiT, like ``latents``.
        latents: [b, C, h, w] noise.
        num_inference_steps: Number of evaluations.
        guidance_scale: Of classifier-free guidance, v = v_negative + scale (v_positive - v_negative). At 1 or
            less only the positive rows are evaluated.
        on_step: Called after each step with its number, its timestep, the latents and x0, the estimate of the
            finished latents in float32. It returns the latents to go on with.
        on_progress: Called after each step.
        capture_graph: Capture the DiT's evaluation in a graph of the device and replay it (see `graphs`).
        init_image: An image to start from (img2img, inpainting), on the same device.
        graphs: Of earlier runs with this DiT, where the graph of this one is kept. None keeps none.
        guidance_every: The negative rows are evaluated in every so many-th step, from the first on; in between, the
            difference that they made is kept (see `GuidedVelocity`).

    Returns:
        [b, C, h, w].
    """
    strength = init_image.strength if init_image else 1.0
    patch_size = transformers[0].config["patch_size"]
    timesteps, sigmas = set_timesteps(scheduler, num_inference_steps, latents, patch_size, strength)
    noise = latents  # [b, C, h, w]
    if init_image:
        latents = init_image.noised(noise, sigmas[0])  # [b, C, h, w]
    height, width = latents.shape[-2:]
    graphs = Graphs() if graphs is None else graphs
    velocity_of = GuidedVelocity(
        transformers, conditioning, timesteps, guidance_scale, guidance_every, height, width, capture_graph, graphs
    )
    for step, timestep in enumerate(timesteps):  # timestep: []
        velocity = velocity_of(latents, step)  # [b, C, h, w]
        previous = latents
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]  # [b, C, h, w]
        if init_image:
            latents = init_image.blend(latents, noise, sigmas[step + 1])  # [b, C, h, w]
        if on_step is not None:
            x0 = previous.float() - sigmas[step] * velocity.float()  # [b, C, h, w] float32
            latents = on_step(step, timestep, latents, x0)  # [b, C, h, w]
        if on_progress is not None:
            on_progress()
    velocity_of.end()
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
        scheduler: Set to these timesteps.
        num_inference_steps: n.
        latents: [b, C, h, w], for their size and device.
        patch_size: Of the DiT.
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
    # Otherwise the scheduler searches for its first timestep, which waits for the device.
    scheduler.set_begin_index(first)
    return scheduler.timesteps[first:], scheduler.sigmas[first:]
