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
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DeepGenSample",
            display_name="DeepGen Sampler",
            category=CATEGORY,
            description="Draws what DeepGen Encode Prompt has encoded, as a latent for VAE Decode. "
            "With a latent_image and denoise below 1 it changes that.",
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
                    tooltip="How much is drawn anew. Below 1 a latent_image is needed, of which the rest is kept.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Pictures made at once, of each picture in the conditioning. With a latent_image, its "
                    "batch counts instead.",
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="What to begin with, from VAE Encode with the loader's vae. A noise mask keeps what is "
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
        from . import stages

        latent = stages.sample(pipeline, conditioning, seed, steps, cfg, batch_size, latent_image, denoise)
        return io.NodeOutput(latent)
