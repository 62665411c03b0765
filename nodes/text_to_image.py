"""DeepGenTextToImage: an image from a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import inputs
from .check import DeepGenNode
from .inputs import GENERATION_MULTIPLE, search_aliases
from .names import CATEGORY


if TYPE_CHECKING:
    from .lazy_pipeline import LazyPipeline


class DeepGenTextToImage(DeepGenNode):
    """Prompt to images, all three stages in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenTextToImage",
            display_name="DeepGen Generate (Text to Image)",
            category=CATEGORY,
            description="Generates images from a prompt with DeepGen 1.0: scenes, reasoning, rendered text.",
            **search_aliases("t2i", "txt2img", "text2image", "image generation", "draw"),
            inputs=[
                inputs.pipeline(),
                inputs.prompt("What to draw, in English or Chinese. Put text to render in quotation marks."),
                inputs.negative_prompt(),
                inputs.side(
                    "width",
                    GENERATION_MULTIPLE,
                    "In pixels, a multiple of 16. Trained at the area of 512 x 512.",
                ),
                inputs.side(
                    "height",
                    GENERATION_MULTIPLE,
                    "In pixels, a multiple of 16. Trained at the area of 512 x 512.",
                ),
                inputs.seed(),
                inputs.steps(),
                inputs.cfg(),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of images made at once."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The images, one batch.")],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None, height: int | None = None) -> bool | str:
        """Called by ComfyUI before a prompt is queued: True, or the error."""
        return cls.refusal(width=width, height=height) or True

    @classmethod
    def run(
        cls,
        pipeline: LazyPipeline,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        batch_size: int,
    ) -> io.NodeOutput:
        """Encode, sample and decode."""
        from . import stages
        from .images import drawing_size

        drawn = drawing_size(pipeline.sizes, height, width, editing=False)
        conditionings = stages.encode(pipeline, prompt, negative_prompt, [[]], *drawn)
        latent = stages.sample(pipeline, conditionings, seed, steps, cfg, batch_size)
        return io.NodeOutput(stages.decode(pipeline, latent, height, width))
