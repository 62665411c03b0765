"""`DeepGenPipeline`: prompt and reference images in, images out, in three stages.

    prompt, references -> encode -> Conditioning -> denoise -> latents -> decode -> images

Each stage is public and takes what the one before returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import checks, encoding
from .components import Components
from .conditioning import Conditioning, InitImage, repeat_rows
from .denoising import denoise
from .devices import random_noise
from .editing import Drawing, EditPlan, Mask, plan_edit
from .edits.kept import Kept
from .formatting import counted, format_size
from .images import as_list, from_pixels, in_form
from .memory import Workload, run_with_memory_retry
from .model import autoencoder
from .model.numerics import require_finite
from .prompts import check_prompts


DEFAULT_SIDE = 512
"""Of images whose size nobody names, in pixels."""

StepCallback = Callable[["DeepGenPipeline", int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass
class DeepGenPipelineOutput:
    """What a run returns.

    Attributes:
        images: In the form that ``output_type`` names.
        change_masks: With ``mask`` or ``keep_unchanged``: [b, H, W] in [0, 1], how much of each pixel is the edit's.
            Where it is 0, the image is the input.
        kept: With ``mask`` or ``keep_unchanged``: for each image, what was kept and what was undone.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    change_masks: Tensor | None = None
    kept: Sequence[Kept] | None = None


class DeepGenPipeline(Components):
    """DeepGen 1.0: text-to-image and image editing with one set of weights.

    Use `from_pretrained`. The constructor takes parts that are loaded already.
    """

    # All three stages

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None = None,
        negative_prompt: str | None = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        mask: Mask | None = None,
        keep_unchanged: bool = False,
        guidance_every: int = 1,
    ) -> DeepGenPipelineOutput:
        """Generate images, or edit one.

        Args:
            prompt: One prompt, or a batch.
            image: None to generate; an image to edit; a list for several references, which all prompts share.
                References are resized to the output's size.
            negative_prompt: What to avoid; one for the whole batch.
            height: In pixels: a multiple of 16, or of 32 with references (`sizes` has the checkpoint's rules). None
                for 512; with ``mask`` or ``keep_unchanged`` for what suits the image, which is then padded to the
                size that is drawn, not stretched, and has its own size in the end.
            width: As height.
            num_inference_steps: Steps of the scheduler.
            guidance_scale: Of classifier-free guidance; at 1 or less there is none and a step costs half.
            num_images_per_prompt: Images come prompt by prompt, then again: p1, p2, p1, p2, as in the original.
            seed: Of the noise. The same seed gives the same noise on every device.
            generator: Instead of a seed. A generator of an accelerator draws the noise there, as the original does.
            latents: [b, C, H/8, W/8]: the noise itself, used as it is.
            output_type: ``pil``, ``np`` ([b, H, W, 3] in [0, 1]), ``pt`` ([b, 3, H, W] in [0, 1]) or
                ``latent`` (the final latents in scaled space).
            callback_on_step_end: ``callback(pipe, step, timestep, kwargs)``, with the current ``latents`` and
                ``x0``, the estimate of the finished latents, in ``kwargs``. A dict that it returns may replace
                ``latents``. An exception raised in it ends the run.
            mask: Where the first image may be changed (see `edits.masks.as_mask`). Each separate part is cut out with
                its surroundings, edited by itself and put back; outside, the image stays as it is, to the bit.
            keep_unchanged: Whether all that the edit left alone comes from the image, to the bit; for all images
                but those of an edit that changes everything.
            guidance_every: The negative prompt is evaluated in every so many-th step only, and the difference that
                it made is kept in between: an approximation. 2 does 0.75 of the work (docs/speed.md has the price).

        Raises:
            TypeError, ValueError: For arguments that cannot work, before anything slow.
            OutOfDeviceMemory: When a device has too little memory for a stage even with all else moved out.
            FloatingPointError: When latents or pixels are not finite.
        """
        checks.output_type(output_type)
        num_inference_steps, guidance_scale = checks.steps(num_inference_steps, guidance_scale)
        guidance_every = checks.guidance_every(guidance_every)
        references = as_list(image)
        prompts, _ = self._check_prompts(prompt, negative_prompt, bool(references))
        batch = len(prompts) * checks.images("num_images_per_prompt", num_images_per_prompt)

        def noise(height: int, width: int) -> Tensor:
            if latents is None:
                return self.prepare_latents(batch, height, width, seed=seed, generator=generator)
            self._check_latents(latents, batch, height, width)
            return latents

        copies = batch // len(prompts)
        run = num_inference_steps, guidance_scale, callback_on_step_end
        drawing = Drawing(
            self, prompts, negative_prompt, references[1:], copies, noise, *run, guidance_every=guidance_every
        )
        if mask is not None or keep_unchanged:
            if output_type == "latent":
                requirement = "pil, np or pt with mask or keep_unchanged"
                raise ValueError(checks.must_be("output_type", requirement, output_type))
            plan = plan_edit(self.sizes, references, mask, keep_unchanged, height, width)
            return self._edit(plan, drawing, output_type)
        size = (DEFAULT_SIDE if side is None else side for side in (height, width))
        size = self.sizes.check(*size, editing=bool(references))
        start = noise(*size)
        try:
            finished = drawing.denoise(prompts, references, *size, start, copies)
            return DeepGenPipelineOutput(images=self.decode(finished, output_type))
        finally:
            self.placement.release()

    def _edit(self, plan: EditPlan, drawing: Drawing, output_type: str) -> DeepGenPipelineOutput:
        try:
            edits = plan.run(drawing)
        finally:
            self.placement.release()
        images = in_form(torch.stack([edit.image for edit in edits]), output_type)
        masks = torch.stack([edit.change_mask for edit in edits])
        return DeepGenPipelineOutput(images, masks, [edit.kept for edit in edits])

    # Stage 1

    @torch.no_grad()
    def encode(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None = None,
        negative_prompt: str | None = "",
        height: int = 512,
        width: int = 512,
        num_images_per_prompt: int = 1,
    ) -> Conditioning:
        """Encode prompts and references to a `Conditioning`; arguments as in `__call__`."""
        return self.encode_each(prompt, [as_list(image)], negative_prompt, height, width, num_images_per_prompt)[0]

    @torch.no_grad()
    def encode_each(
        self,
        prompt: str | Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        negative_prompt: str | None = "",
        height: int = 512,
        width: int = 512,
        num_images_per_prompt: int = 1,
    ) -> list[Conditioning]:
        """`encode` for several sets of references and the same prompts.

        All sets go through one part of the model before the next, so that each part is moved to the device once.
        What is in `encodings`, or given twice, is not encoded again.
        """
        prompts, negative = self._check_prompts(prompt, negative_prompt, any(images))
        height, width = self.sizes.check(height, width, editing=any(images))
        copies = checks.images("num_images_per_prompt", num_images_per_prompt)
        groups = [encoding.references(group, height, width) for group in images]
        conditionings = encoding.encode(self, prompts, negative, groups, height, width)
        return [conditioning.repeat(copies) for conditioning in conditionings]

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None = None,
        negative_prompt: str | None = "",
        height: int = 512,
        width: int = 512,
        num_images_per_prompt: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The text side alone: VLM and connector.

        Prompts and negative prompts go through the VLM as one left-padded batch. The padding takes part in the
        connector, so encoding them separately would give other embeddings than the published model's.

        Returns:
            prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds, shaped
            as in `Conditioning`.
        """
        images = as_list(image)
        prompts, negative = self._check_prompts(prompt, negative_prompt, bool(images))
        copies = checks.images("num_images_per_prompt", num_images_per_prompt)
        if images:  # text alone has no size
            height, width = self.sizes.check(height, width, editing=True)
        (embeds,) = encoding.embed(self, prompts, negative, [encoding.references(images, height, width)])
        prompt_embeds, pooled, negative_embeds, negative_pooled = (repeat_rows(tensor, copies) for tensor in embeds)
        return prompt_embeds, pooled, negative_embeds, negative_pooled

    def _check_prompts(
        self, prompt: str | Sequence[str], negative_prompt: str | None, editing: bool
    ) -> tuple[list[str], str]:
        return check_prompts(self.prompt_template, lambda: self.tokenizer, prompt, negative_prompt, editing)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Reference latents: the mode of the VAE's posterior in scaled space.

        Args:
            pixels: [b, 3, H, W] in [-1, 1].

        Returns:
            [b, C, H/8, W/8].
        """
        return encoding.encode_image(self, pixels)

    # Stage 2

    def prepare_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The noise [b, C, H/8, W/8] of a seed or a generator (see `devices.random_noise`)."""
        if seed is not None:
            if generator is not None:
                raise ValueError("seed and generator cannot be combined: pass one of them.")
            generator = torch.Generator("cpu").manual_seed(checks.seed(seed))
        shape = self._latent_shape(batch_size, height, width)
        return random_noise(shape, checks.generator(generator), self.transformer.dtype)

    @torch.no_grad()
    def denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        callback_on_step_end: StepCallback | None = None,
        init_image: InitImage | None = None,
        guidance_every: int = 1,
    ) -> Tensor:
        """From noise to finished latents.

        Args:
            conditioning: As `encode` returns it.
            latents: [b, C, H/8, W/8] noise, as `prepare_latents` makes it.
            num_inference_steps: As in `__call__`, like ``guidance_scale`` and ``callback_on_step_end``.
            guidance_scale: As in `__call__`.
            callback_on_step_end: As in `__call__`.
            init_image: An image to start from instead of pure noise (img2img, inpainting).
            guidance_every: As in `__call__`.

        Returns:
            [b, C, H/8, W/8] in scaled space, in the DiT's dtype.

        Raises:
            TypeError, ValueError: For arguments that cannot work, also where ``latents`` do not fit ``conditioning``.
            OutOfDeviceMemory: As in `__call__`.
            FloatingPointError: When the latents are not finite.
        """
        num_inference_steps, guidance_scale = checks.steps(num_inference_steps, guidance_scale)
        guidance_every = checks.guidance_every(guidance_every)
        batch = len(conditioning.prompt_embeds)
        self._check_latents(latents, batch, conditioning.height, conditioning.width)
        noise = latents

        def on_step(step: int, timestep: Tensor, latents: Tensor, x0: Tensor) -> Tensor:
            assert callback_on_step_end is not None
            replaced = callback_on_step_end(self, step, timestep, {"latents": latents, "x0": x0})
            return checks.replaced_latents(replaced, latents)

        if not self.capture_graph:
            self.graphs.clear()  # of runs before it was turned off

        def run(device: torch.device) -> Tensor:
            with self.progress_bar(total=num_inference_steps) as progress_bar:
                return denoise(
                    [self.transformer, *self._cfg_transformers],
                    # A copy: a scheduler counts steps, and runs may overlap (threads, a run inside a callback).
                    type(self.scheduler).from_config(self.scheduler.config),
                    conditioning.to(device, self.transformer.dtype),
                    noise.to(device, self.transformer.dtype),
                    num_inference_steps,
                    guidance_scale,
                    on_step if callback_on_step_end is not None else None,
                    progress_bar.update,
                    self.capture_graph,
                    init_image.to(device) if init_image else None,
                    self.graphs if self.placement.stays("transformer") else None,
                    guidance_every,
                )

        work = Workload(
            "transformer",
            conditioning.height,
            conditioning.width,
            rows=batch * (2 if guidance_scale > 1 else 1),
            references=len(conditioning.reference_latents),
            text_tokens=conditioning.prompt_embeds.shape[1],
        )
        latents = run_with_memory_retry(self, work, run)
        require_finite(latents, "The latents", self._models)
        return latents

    # Stage 3

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | Tensor:
        """From finished latents to images.

        Args:
            latents: [b, C, H/8, W/8] in scaled space.
            output_type: As in `__call__`.
        """
        if output_type == "latent":
            return latents
        return from_pixels(self.decode_latents(latents), output_type)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents [b, C, H/8, W/8] from the VAE's own space to the scaled one that the DiT works in."""
        return autoencoder.scale(self.vae, latents)

    def unscale_latents(self, latents: Tensor) -> Tensor:
        """Latents [b, C, H/8, W/8] from the DiT's scaled space to the VAE's own, in the VAE's dtype."""
        return autoencoder.unscale(self.vae, latents)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """The VAE decoder's output: [b, 3, H, W], about [-1, 1], not clamped, in the VAE's dtype."""
        return self.decode_unscaled(self.unscale_latents(latents))

    @torch.no_grad()
    def decode_unscaled(self, latents: Tensor) -> Tensor:
        """`decode_latents` for latents in the VAE's own space instead of the DiT's."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])

        def run(device: torch.device) -> Tensor:
            return autoencoder.decode(self.vae, latents.to(device, self.vae.dtype))

        return run_with_memory_retry(self, Workload("vae", height, width), run)

    def _latent_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        factor = self.vae_scale_factor
        return batch, self.transformer.config["in_channels"], height // factor, width // factor

    def _check_latents(self, latents: Tensor, batch: int, height: int, width: int) -> None:
        shape = self._latent_shape(batch, height, width)
        if not isinstance(latents, Tensor):
            raise TypeError(checks.must_be("latents", "a torch.Tensor", checks.type_of(latents)))
        if tuple(latents.shape) != shape:
            images = f"{counted(batch, 'image')} of {format_size(width, height)}"
            raise ValueError(checks.must("latents", f"have the shape {list(shape)} for {images}", list(latents.shape)))
