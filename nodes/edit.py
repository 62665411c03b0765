"""DeepGenEdit: an image changed by an instruction, with up to three more references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..deepgen_npu.prompts import EDIT_NEGATIVE_PROMPT
from . import inputs
from .check import DeepGenNode
from .inputs import search_aliases
from .names import CATEGORY, CUSTOM, FOLLOW, RESTORE


if TYPE_CHECKING:
    from torch import Tensor

    from .lazy_pipeline import LazyPipeline

MULTIPLE = 32
"""Of the sides, in pixels: one token of the vision-language model stands for 32 x 32 of a reference."""


class DeepGenEdit(DeepGenNode):
    """Image and instruction to edited image, all three stages in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenEdit",
            display_name="DeepGen Edit Image",
            category=CATEGORY,
            description="Edits an image from an instruction with DeepGen 1.0. A batch is edited image by image.",
            **search_aliases("image editing", "change image", "instruction edit", "i2i", "img2img", "reference image"),
            inputs=[
                inputs.pipeline(),
                io.Image.Input("image", tooltip="The image to edit. Of a batch, each image is edited."),
                inputs.prompt("What to change, in English or Chinese: 'Make the sky stormy.'"),
                inputs.negative_prompt(EDIT_NEGATIVE_PROMPT),
                io.Combo.Input(
                    "size_mode",
                    options=[FOLLOW, CUSTOM, RESTORE],
                    default=FOLLOW,
                    tooltip="follow image: the shape of the image at the area the model was trained at. "
                    "width and height: the two numbers below; the image is stretched to them. "
                    "size of image: made like follow image, then scaled to exactly the size of the image.",
                ),
                inputs.side("width", MULTIPLE, "Used by 'width and height': in pixels, a multiple of 32."),
                inputs.side("height", MULTIPLE, "Used by 'width and height': in pixels, a multiple of 32."),
                inputs.seed(),
                inputs.steps(),
                inputs.cfg(),
                *inputs.references(2, 3, 4),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The edited images, one batch.")],
        )

    @classmethod
    def validate_inputs(
        cls, size_mode: str | None = None, width: int | None = None, height: int | None = None
    ) -> bool | str:
        """Called by ComfyUI before a prompt is queued: True, or the error."""
        return cls.refusal(size_mode=size_mode, width=width, height=height) or True

    @classmethod
    def counts(cls, name: str, given: Mapping[str, Any]) -> bool:
        """The sides count in one size mode only."""
        return name not in ("width", "height") or given.get("size_mode", CUSTOM) == CUSTOM

    @classmethod
    def run(
        cls,
        pipeline: LazyPipeline,
        image: Tensor,
        prompt: str,
        negative_prompt: str,
        size_mode: str,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
        image_4: Tensor | None = None,
    ) -> io.NodeOutput:
        """Encode, sample and decode."""
        from . import stages
        from .images import editing_sizes, reference_groups

        groups = reference_groups(image=image, image_2=image_2, image_3=image_3, image_4=image_4)
        drawn, displayed = editing_sizes(pipeline.sizes, image, size_mode, height, width)
        conditionings = stages.encode(pipeline, prompt, negative_prompt, groups, *drawn)
        latent = stages.sample(pipeline, conditionings, seed, steps, cfg)
        return io.NodeOutput(stages.decode(pipeline, latent, *displayed))
