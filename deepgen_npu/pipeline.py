"""`DeepGenPipeline`: prompt and pictures in, pictures out, in three stages.

    prompt, images -> encode -> Conditioning -> denoise -> latents -> decode -> pictures

Each stage is public and a function of what the one before returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from . import arguments
from . import images as pictures
from .checkpoint import PARTS, Checkpoint, CheckpointError, resolve_model
from .denoising import Conditioning, denoise, require_finite
from .devices import random_noise, resolve_device, resolve_dtype
from .placement import ModelOffload, Placement, StayInPlace
from .prompts import PromptTemplate, tokenize
from .sizes import SizeRules
from .vision_language import encode_references, image_token_count, stacked_hidden_states
from .weights import BytesRead, load_part, load_scheduler, load_tokenizer


if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

    from .connector import Connector

StepCallback = Callable[["DeepGenPipeline", int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass
class DeepGenPipelineOutput:
    """``images`` in the form that ``output_type`` named."""

    images: list[Image.Image] | np.ndarray | Tensor


class DeepGenPipeline:
    """DeepGen 1.0: text-to-image and image editing with one set of weights.

    Use `from_pretrained`. The constructor takes the parts as they are, for those who load them themselves.
    """

    def __init__(
        self,
        vlm: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        prompt_template: PromptTemplate,
        placement: Placement | None = None,
    ):
        self.vlm = vlm
        self.tokenizer = tokenizer
        self.connector = connector
        self.transformer = transformer
        self.vae = vae
        self.scheduler = scheduler
        self.prompt_template = prompt_template
        self.placement = placement or StayInPlace(self._models)
        self.sizes = SizeRules.from_configs(transformer.config, vae.config, vlm.config.vision_config.to_dict())
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self._progress_bar_config: dict[str, Any] = {}
        image_token = tokenizer.convert_tokens_to_ids(prompt_template.image_token)
        if image_token != vlm.config.image_token_id:
            raise CheckpointError(
                f"{prompt_template.image_token} of prompt_template.json is token {image_token} of the tokenizer, "
                f"but image_token_id of vlm/config.json is {vlm.config.image_token_id}."
            )

    # Loading and moving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        torch_dtype: torch.dtype | str | None = "auto",
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        on_bytes_read: BytesRead | None = None,
    ) -> DeepGenPipeline:
        """Load the published folder part by part. No code of the folder is executed.

        Args:
            pretrained_model_name_or_path: A local folder, or a Hugging Face id: then the local caches of
                Hugging Face and ModelScope are searched before anything is downloaded.
            torch_dtype: ``torch.float32``, ``torch.bfloat16``, ``torch.float16``, their names, or ``auto``:
                bfloat16 on NPU, CUDA and CPUs that compute in it, float32 on other CPUs.
            device: Where the weights are read to. None reads them to the CPU; ``auto`` for the dtype then
                means that of the device that ``auto`` finds, since that is where they will go.
            attn_implementation: The VLM's attention in transformers: ``sdpa`` (its own choice, with None), ``eager``
                or a flash attention.
            on_bytes_read: Called with the size of each piece read, for a progress bar.

        Raises:
            CheckpointError: When something is missing or does not fit, before any weights are read.
        """
        checkpoint = Checkpoint.open(resolve_model(pretrained_model_name_or_path))
        where = resolve_device(device or "cpu")
        # Only "auto" needs to know where an unplaced pipeline will go: looking sets devices up.
        undecided = device is None and torch_dtype in (None, "auto")
        pipe = cls.from_checkpoint(
            checkpoint,
            resolve_dtype(torch_dtype, resolve_device("auto") if undecided else where),
            devices=dict.fromkeys(PARTS, where),
            on_bytes_read=on_bytes_read,
        )
        if attn_implementation is not None:
            pipe.vlm.set_attn_implementation(attn_implementation)
        return pipe

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        devices: Mapping[str, torch.device],
        vae_dtype: torch.dtype | None = None,
        on_bytes_read: BytesRead | None = None,
    ) -> DeepGenPipeline:
        """Load a checked folder, each part to a device of its own.

        Args:
            devices: A device for each of ``vlm``, ``connector``, ``transformer`` and ``vae``.
            vae_dtype: Of the VAE alone; None means ``dtype``.
        """
        template = PromptTemplate.from_config(checkpoint.prompt_template)
        tokenizer = load_tokenizer(checkpoint)
        parts: dict[str, Any] = {}
        for part in PARTS:
            part_dtype = vae_dtype or dtype if part == "vae" else dtype
            parts[part] = load_part(checkpoint, part, part_dtype, devices[part], on_bytes_read)
        return cls(tokenizer=tokenizer, scheduler=load_scheduler(checkpoint), prompt_template=template, **parts)

    @property
    def _models(self) -> dict[str, Any]:
        return {
            "vlm": self.vlm,
            "connector": self.connector,
            "transformer": self.transformer,
            "vae": self.vae,
        }

    @property
    def components(self) -> dict[str, Any]:
        """All parts by name, as the constructor takes them."""
        return {
            **self._models,
            "tokenizer": self.tokenizer,
            "scheduler": self.scheduler,
            "prompt_template": self.prompt_template,
        }

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def to(self, device: str | torch.device) -> DeepGenPipeline:
        """Move every part to ``npu``, ``npu:1``, ``cuda``, ``cpu`` or ``auto``. Ends model offload.

        The dtype is chosen in `from_pretrained`: casting later would also cast the VLM's rotary frequencies,
        which the model was published with in float32.
        """
        target = resolve_device(device)
        for model in self._models.values():
            model.to(target)
        self.placement = StayInPlace(self._models)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keep the parts on the CPU and bring each to ``device`` for its stage only.

        The peak on the device is then that of the largest part (the VLM, 7 GiB in bfloat16) plus activations.
        """
        self.placement = ModelOffload(self._models, resolve_device(device))

    def progress_bar(self, total: int) -> tqdm:
        return tqdm(total=total, **self._progress_bar_config)

    def set_progress_bar_config(self, **config: Any) -> None:
        """Arguments for tqdm, for instance ``disable=True``."""
        self._progress_bar_config = config

    # The whole way

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None = None,
        negative_prompt: str = "",
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
        arguments.output_type(output_type)
        num_inference_steps, guidance_scale = arguments.steps(num_inference_steps, guidance_scale)
        batch = len(arguments.prompts(prompt)) * arguments.positive("num_images_per_prompt", num_images_per_prompt)
        references = pictures.as_list(image)
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
        negative_prompt: str = "",
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
        negative_prompt: str = "",
        height: int = 512,
        width: int = 512,
        num_images_per_prompt: int = 1,
    ) -> list[Conditioning]:
        """`encode` for several sets of references and the same prompts.

        The sets go through one part of the model after the other, so that a part that has to be moved to the
        device is moved once, however many sets there are.
        """
        height, width = self.sizes.check(height, width, editing=any(images))
        copies = arguments.positive("num_images_per_prompt", num_images_per_prompt)
        stacked = [self._stack_states(prompt, group, negative_prompt, height, width) for group in images]
        embeds = [self._bridge(states, copies) for states in stacked]
        latents = [
            [self.encode_image(pictures.to_pixels(reference, height, width)[None]) for reference in group]
            for group in images
        ]
        return [Conditioning(*one, height, width, refs) for one, refs in zip(embeds, latents, strict=True)]

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] | None = None,
        negative_prompt: str = "",
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
        copies = arguments.positive("num_images_per_prompt", num_images_per_prompt)
        references = pictures.as_list(image)
        height, width = self.sizes.check(height, width, editing=bool(references))
        return self._bridge(self._stack_states(prompt, references, negative_prompt, height, width), copies)

    def _stack_states(
        self,
        prompt: str | Sequence[str],
        references: Sequence[Image.Image],
        negative_prompt: str,
        height: int,
        width: int,
    ) -> Tensor:
        """The VLM's hidden states of prompts and negative prompts: [2b, L, states x hidden]."""
        prompts = arguments.prompts(prompt)
        texts = [*prompts, *[arguments.negative_prompt(negative_prompt)] * len(prompts)]
        for text in texts:
            self.prompt_template.check(text)
        features, cells = None, []
        if references:
            cell = self.sizes.vision_cell
            cells = [(height // cell, width // cell)] * len(references)
            counts = [image_token_count(height, width, cell)] * len(references)
            texts = [self.prompt_template.for_editing(text, counts) for text in texts]
        else:
            texts = [self.prompt_template.for_generation(text) for text in texts]
        input_ids, valid = tokenize(self.tokenizer, texts)

        device = self.placement.activate("vlm")
        if references:
            pixels = torch.stack([pictures.to_pixels(reference, height, width) for reference in references])
            features = encode_references(self.vlm, pixels.to(device, self.vlm.dtype)).flatten(0, 1)
        meta_queries = self.connector.meta_queries.to(device)
        return stacked_hidden_states(self.vlm, input_ids, valid, meta_queries, features, cells)

    def _bridge(self, stacked: Tensor, copies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The connector's output, split into prompts and negative prompts and repeated for the copies."""
        device = self.placement.activate("connector")
        sequence, pooled = self.connector(stacked.to(device, self.connector.dtype))
        prompt_embeds, negative_prompt_embeds = sequence.chunk(2)
        pooled_embeds, negative_pooled_embeds = pooled.chunk(2)
        return (
            prompt_embeds.repeat(copies, 1, 1),
            pooled_embeds.repeat(copies, 1),
            negative_prompt_embeds.repeat(copies, 1, 1),
            negative_pooled_embeds.repeat(copies, 1),
        )

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Reference latents: the mode of the VAE's posterior in scaled space.

        The original draws a sample from the global random numbers; with the mode, a seed alone decides.

        Args:
            pixels: [b, 3, H, W] in [-1, 1].

        Returns:
            [b, C, H/8, W/8].
        """
        device = self.placement.activate("vae")
        mode = self.vae.encode(pixels.to(device, self.vae.dtype)).latent_dist.mode()
        return (mode - self._vae_shift) * self.vae.config["scaling_factor"]

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
            generator = torch.Generator("cpu").manual_seed(arguments.seed(seed))
        shape = self._latent_shape(batch_size, height, width)
        return random_noise(shape, arguments.generator(generator), self.transformer.dtype)

    @torch.no_grad()
    def denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        callback_on_step_end: StepCallback | None = None,
    ) -> Tensor:
        """From noise to finished latents.

        Args:
            latents: [b, C, H/8, W/8] noise, as `prepare_latents` makes it.

        Returns:
            [b, C, H/8, W/8] in scaled space, in the DiT's dtype.
        """
        num_inference_steps, guidance_scale = arguments.steps(num_inference_steps, guidance_scale)
        batch = len(conditioning.prompt_embeds)
        self._check_latents(latents, batch, conditioning.height, conditioning.width)
        device = self.placement.activate("transformer")

        def on_step(step: int, timestep: Tensor, latents: Tensor, x0: Tensor) -> Tensor:
            assert callback_on_step_end is not None
            replaced = callback_on_step_end(self, step, timestep, {"latents": latents, "x0": x0})
            return arguments.replaced_latents(replaced, latents)

        with self.progress_bar(total=num_inference_steps) as progress_bar:
            latents = denoise(
                self.transformer,
                # Its own copy: a scheduler counts steps, and runs may overlap (threads, a run inside a callback).
                type(self.scheduler).from_config(self.scheduler.config),
                conditioning.to(device, self.transformer.dtype),
                latents.to(device, self.transformer.dtype),
                num_inference_steps,
                guidance_scale,
                on_step if callback_on_step_end is not None else None,
                progress_bar.update,
            )
        require_finite(latents, "The latents")
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
        device = self.placement.activate("vae")
        latents = latents.to(device, self.vae.dtype) / self.vae.config["scaling_factor"] + self._vae_shift
        # One at a time: a batch would need a gigabyte for each picture of 512 x 512.
        pixels = torch.cat([self.vae.decode(one).sample for one in latents.split(1)])
        require_finite(pixels, "The VAE's output")
        return pixels

    # Checks

    @property
    def _vae_shift(self) -> float:
        return self.vae.config["shift_factor"] or 0.0

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
