"""`DeepGenPipeline`: prompt and pictures in, pictures out, in three stages.

    prompt, images -> encode -> Conditioning -> denoise -> latents -> decode -> pictures

Each stage is public and a function of what the one before returned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import checks
from . import images as pictures
from .components import PipelineParts
from .conditioning import Conditioning, Start, repeat_rows
from .denoising import denoise
from .devices import random_noise
from .encoding_cache import Reference
from .memory import Work, with_room
from .model import autoencoder
from .model.numerics import require_finite
from .model.vision_language import stacked_hidden_states
from .model.vision_tower import encode_references
from .prompts import check_prompts, tokenize


Embeds = tuple[Tensor, Tensor, Tensor, Tensor]
"""prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds."""

StepCallback = Callable[["DeepGenPipeline", int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass
class DeepGenPipelineOutput:
    """``images`` in the form that ``output_type`` named."""

    images: list[Image.Image] | np.ndarray | Tensor


class DeepGenPipeline(PipelineParts):
    """DeepGen 1.0: text-to-image and image editing with one set of weights.

    Use `from_pretrained`. The constructor takes the parts as they are, for those who load them themselves.
    """

    # The whole way

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None = None,
        negative_prompt: str | None = "",
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> DeepGenPipelineOutput:
        """Generate pictures, or edit one.

        Args:
            prompt: One prompt, or a batch.
            image: None to generate; a picture to edit; a list for several references, all of which every
                prompt gets. References are resized to the output's size.
            negative_prompt: What to keep away from; one for the whole batch.
            height: In pixels: a multiple of 16, of 32 with references (`sizes` knows the checkpoint's rules).
            width: As height.
            num_inference_steps: Steps of the scheduler.
            guidance_scale: Of classifier-free guidance; at 1 or less there is none and a step costs half.
            num_images_per_prompt: Pictures come prompt by prompt, then again: p1, p2, p1, p2, as in the
                original.
            seed: Of the noise. The same seed gives the same noise on every device.
            generator: Instead of a seed. One of an accelerator draws the noise there, as the original does.
            latents: [b, C, H/8, W/8]: the noise itself, used as it is.
            output_type: ``pil``, ``np`` ([b, H, W, 3] in [0, 1]), ``pt`` ([b, 3, H, W] in [0, 1]) or
                ``latent`` (the final latents in scaled space).
            callback_on_step_end: ``callback(pipe, step, timestep, kwargs)``, with the current ``latents`` and
                ``x0``, the estimate of the finished latents, in ``kwargs``. A dict that it returns may replace
                ``latents``. An exception raised in it ends the run.

        Raises:
            TypeError, ValueError: For arguments that cannot work, before anything slow.
            FloatingPointError: When the latents are not finite.
        """
        checks.output_type(output_type)
        num_inference_steps, guidance_scale = checks.steps(num_inference_steps, guidance_scale)
        references = pictures.as_list(image)
        prompts, _ = self._check_prompts(prompt, negative_prompt, bool(references))
        batch = len(prompts) * checks.images("num_images_per_prompt", num_images_per_prompt)
        height, width = self.sizes.check(height, width, editing=bool(references))
        if latents is None:
            latents = self.prepare_latents(batch, height, width, seed=seed, generator=generator)
        self._check_latents(latents, batch, height, width)

        try:
            conditioning = self.encode(
                prompt, references or None, negative_prompt, height, width, num_images_per_prompt
            )
            latents = self.denoise(conditioning, latents, num_inference_steps, guidance_scale, callback_on_step_end)
            return DeepGenPipelineOutput(images=self.decode(latents, output_type))
        finally:
            self.placement.release()

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
        """Encode prompts and references; arguments as in `__call__`."""
        return self.encode_each(
            prompt, [pictures.as_list(image)], negative_prompt, height, width, num_images_per_prompt
        )[0]

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

        The sets go through one part of the model after the other, so that a part that has to be moved to the
        device is moved once, however many sets there are. What is in `encodings`, or comes twice, is not encoded
        again.
        """
        prompts, negative = self._check_prompts(prompt, negative_prompt, any(images))
        height, width = self.sizes.check(height, width, editing=any(images))
        copies = checks.images("num_images_per_prompt", num_images_per_prompt)
        groups = [[Reference.of(pictures.to_pixels(image, height, width)) for image in group] for group in images]
        embeds = self._embed(prompts, negative, groups)
        latents = {}
        for reference in (reference for group in groups for reference in group):
            if reference.name not in latents:
                encode = partial(self.encode_image, reference.pixels[None])
                latents[reference.name] = self._reuse("latents", reference, encode)
        return [
            Conditioning(*one, height, width, [latents[reference.name] for reference in group]).repeat(copies)
            for one, group in zip(embeds, groups, strict=True)
        ]

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
        connector, so encoding them apart would give other embeddings than the published model's.

        Returns:
            prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds, shaped
            as in `Conditioning`.
        """
        images = pictures.as_list(image)
        prompts, negative = self._check_prompts(prompt, negative_prompt, bool(images))
        copies = checks.images("num_images_per_prompt", num_images_per_prompt)
        if images:  # text alone has no size
            height, width = self.sizes.check(height, width, editing=True)
        group = [Reference.of(pictures.to_pixels(image, height, width)) for image in images]
        embeds, pooled, negative, negative_pooled = (
            repeat_rows(tensor, copies) for tensor in self._embed(prompts, negative, [group])[0]
        )
        return embeds, pooled, negative, negative_pooled

    def _check_prompts(
        self, prompt: str | Sequence[str], negative_prompt: str | None, editing: bool
    ) -> tuple[list[str], str]:
        return check_prompts(self.prompt_template, lambda: self.tokenizer, prompt, negative_prompt, editing)

    def _embed(self, prompts: Sequence[str], negative: str, groups: Sequence[Sequence[Reference]]) -> list[Embeds]:
        """What the text side makes of checked prompts with each group of references, a row for each prompt."""
        keys = [("embeds", tuple(prompts), negative, *(reference.name for reference in group)) for group in groups]
        embeds: dict[Hashable, Any] = {key: self.encodings.find(key) for key in keys}
        new = {key: group for key, group in zip(keys, groups, strict=True) if embeds[key] is None}
        # All through the VLM first: so each part is moved to the device once.
        stacked = {key: self._stack_states(prompts, group, negative) for key, group in new.items()}
        for key in new:
            embeds[key] = self._bridge(stacked.pop(key))
            self.encodings.keep(key, embeds[key])
        return [embeds[key] for key in keys]

    def _reuse(self, kind: str, reference: Reference, encode: Callable[[], Tensor]) -> Tensor:
        """One kind of encoding of a reference, from `encodings` if it is there."""
        key = (kind, reference.name)
        if found := self.encodings.find(key):
            return found[0]
        encoded = encode()
        self.encodings.keep(key, (encoded,))
        return encoded

    def _stack_states(self, prompts: Sequence[str], references: Sequence[Reference], negative_prompt: str) -> Tensor:
        """The VLM's hidden states of prompts and negative prompts: [2b, L, states x hidden]."""
        texts = [*prompts, *[negative_prompt] * len(prompts)]
        cells = []
        if references:
            cell = self.sizes.vision_cell
            cells = [(one.pixels.shape[1] // cell, one.pixels.shape[2] // cell) for one in references]
            counts = [rows * columns for rows, columns in cells]
            texts = [self.prompt_template.for_editing(text, counts) for text in texts]
        else:
            texts = [self.prompt_template.for_generation(text) for text in texts]
        input_ids, valid = tokenize(self.tokenizer, texts)

        def run(device: torch.device) -> Tensor:
            def look(pixels: Tensor) -> Tensor:
                return encode_references(self.vlm, pixels[None].to(device, self.vlm.dtype))[0]

            features = None
            if references:
                # Each alone, so that its features do not depend, in the last bit, on what else is there.
                seen = [self._reuse("vision", one, partial(look, one.pixels)).to(device) for one in references]
                features = torch.cat(seen)[None]
            meta_queries = self.connector.meta_queries.to(device)
            return stacked_hidden_states(self.vlm, input_ids, valid, meta_queries, features, cells)

        height, width = references[0].pixels.shape[1:] if references else (0, 0)
        image_tokens = sum(rows * columns for rows, columns in cells)
        text_tokens = input_ids.shape[1] + self.connector.num_queries - image_tokens
        return with_room(self, Work("vlm", height, width, len(texts), len(references), text_tokens), run)

    def _bridge(self, stacked: Tensor) -> Embeds:
        """The connector's output, split into prompts and negative prompts."""
        rows, tokens = stacked.shape[:2]
        sequence, pooled = with_room(
            self,
            Work("connector", 0, 0, rows, text_tokens=tokens),
            lambda device: self.connector(stacked.to(device, self.connector.dtype)),
        )
        prompt_embeds, negative_prompt_embeds = sequence.chunk(2)
        pooled_embeds, negative_pooled_embeds = pooled.chunk(2)
        return prompt_embeds, pooled_embeds, negative_prompt_embeds, negative_pooled_embeds

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Reference latents: the mode of the VAE's posterior in scaled space.

        Args:
            pixels: [b, 3, H, W] in [-1, 1].

        Returns:
            [b, C, H/8, W/8].
        """

        def run(device: torch.device) -> Tensor:
            return autoencoder.scale(self.vae, autoencoder.encode(self.vae, pixels.to(device, self.vae.dtype)))

        return with_room(self, Work("vae", *pixels.shape[-2:]), run)

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
                raise ValueError("Both seed and generator were given; one of them is wanted.")
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
        start: Start | None = None,
    ) -> Tensor:
        """From noise to finished latents.

        Args:
            latents: [b, C, H/8, W/8] noise, as `prepare_latents` makes it.
            start: A picture to begin with instead of nothing but noise.

        Returns:
            [b, C, H/8, W/8] in scaled space, in the DiT's dtype.
        """
        num_inference_steps, guidance_scale = checks.steps(num_inference_steps, guidance_scale)
        batch = len(conditioning.prompt_embeds)
        self._check_latents(latents, batch, conditioning.height, conditioning.width)
        noise = latents

        def on_step(step: int, timestep: Tensor, latents: Tensor, x0: Tensor) -> Tensor:
            assert callback_on_step_end is not None
            replaced = callback_on_step_end(self, step, timestep, {"latents": latents, "x0": x0})
            return checks.replaced_latents(replaced, latents)

        def run(device: torch.device) -> Tensor:
            with self.progress_bar(total=num_inference_steps) as progress_bar:
                return denoise(
                    [self.transformer, *self._further_transformers],
                    # Its own copy: a scheduler counts steps, and runs may overlap (threads, a run inside a callback).
                    type(self.scheduler).from_config(self.scheduler.config),
                    conditioning.to(device, self.transformer.dtype),
                    noise.to(device, self.transformer.dtype),
                    num_inference_steps,
                    guidance_scale,
                    on_step if callback_on_step_end is not None else None,
                    progress_bar.update,
                    self.capture_graph,
                    start.to(device) if start else None,
                )

        work = Work(
            "transformer",
            conditioning.height,
            conditioning.width,
            rows=batch * (2 if guidance_scale > 1 else 1),
            references=len(conditioning.reference_latents),
            text_tokens=conditioning.prompt_embeds.shape[1],
        )
        latents = with_room(self, work, run)
        require_finite(latents, "The latents", self._models)
        return latents

    # Stage 3

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | Tensor:
        """From finished latents to pictures.

        Args:
            latents: [b, C, H/8, W/8] in scaled space.
            output_type: As in `__call__`.
        """
        if output_type == "latent":
            return latents
        return pictures.from_pixels(self.decode_latents(latents), output_type)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """The VAE decoder's output: [b, 3, H, W], about [-1, 1], not clamped, in the VAE's dtype."""
        return self.decode_unscaled(autoencoder.unscale(self.vae, latents))

    @torch.no_grad()
    def decode_unscaled(self, latents: Tensor) -> Tensor:
        """`decode_latents` for latents in the VAE's own space instead of the DiT's."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])

        def run(device: torch.device) -> Tensor:
            return autoencoder.decode(self.vae, latents.to(device, self.vae.dtype))

        return with_room(self, Work("vae", height, width), run)

    def _latent_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        factor = self.vae_scale_factor
        return batch, self.transformer.config["in_channels"], height // factor, width // factor

    def _check_latents(self, latents: Tensor, batch: int, height: int, width: int) -> None:
        wanted = self._latent_shape(batch, height, width)
        if not isinstance(latents, Tensor):
            raise TypeError(f"latents is {type(latents).__name__}; a torch.Tensor is wanted.")
        if tuple(latents.shape) != wanted:
            raise ValueError(
                f"latents have the shape {list(latents.shape)}; {list(wanted)} is wanted for "
                f"{batch} picture(s) of {height} x {width} pixels."
            )
