"""DeepGenSample: conditioning to latents, the second of the two modular steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import inputs
from .check import DeepGenNode
from .inputs import search_aliases
from .names import CATEGORY


if TYPE_CHECKING:
    from ..deepgen_npu.conditioning import Conditioning
    from .lazy_pipeline import LazyPipeline


class DeepGenSample(DeepGenNode):
    """Conditioning to a latent, from noise or from another latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenSample",
            display_name="DeepGen Sampler",
            category=CATEGORY,
            description="Samples a latent from the conditioning of DeepGen Encode Prompt. "
            "With a latent_image and denoise < 1 it does img2img.",
            **search_aliases("ksampler", "sample", "denoise", "img2img", "inpaint", "variation"),
            inputs=[
                inputs.pipeline(),
                inputs.Conditioning.Input("conditioning", tooltip="From DeepGen Encode Prompt."),
                inputs.seed(),
                inputs.steps(),
                inputs.cfg(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Denoising strength. Below 1 it needs a latent_image, and keeps the rest of that.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Images made at once for each image in the conditioning. With a latent_image, its "
                    "batch counts instead.",
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="What to start from, from VAE Encode with the loader's vae. A noise mask keeps what is "
                    "outside of it.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="In SD3's latent space, for VAE Decode with the loader's vae and for latent nodes.",
                )
            ],
        )

    @classmethod
    def run(
        cls,
        pipeline: LazyPipeline,
        conditioning: list[Conditioning],
        seed: int,
        steps: int,
        cfg: float,
        denoise: float,
        batch_size: int,
        latent_image: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Stage 2; VAE Decode is stage 3."""
        from . import stages

        latent = stages.sample(pipeline, conditioning, seed, steps, cfg, batch_size, latent_image, denoise)
        return io.NodeOutput(latent)
