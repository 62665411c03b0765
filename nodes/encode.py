"""DeepGenEncode: prompt, negative prompt and images to conditioning, the first of the modular steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import inputs
from .check import DeepGenNode
from .inputs import GENERATION_MULTIPLE, search_aliases
from .names import CATEGORY, CUSTOM, FOLLOW, RESTORE


if TYPE_CHECKING:
    from torch import Tensor

    from .lazy_pipeline import LazyPipeline


class DeepGenEncode(DeepGenNode):
    """Prompt and images to conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenEncode",
            display_name="DeepGen Encode Prompt",
            category=CATEGORY,
            description="Turns prompt, negative prompt and images into conditioning for KSampler or DeepGen Sampler. "
            "With images it is an edit, without them a generation.",
            **search_aliases("conditioning", "prompt", "text encode", "reference image"),
            inputs=[
                inputs.pipeline(),
                inputs.prompt("What to draw, or with an image what to change, in English or Chinese."),
                inputs.negative_prompt(),
                io.Combo.Input(
                    "size_mode",
                    options=[FOLLOW, CUSTOM, RESTORE],
                    default=FOLLOW,
                    tooltip="Used with an image. follow image: its shape at the area the model was trained at. "
                    "width and height: the two numbers below; the image is stretched to them. "
                    "size of image: as it is, in multiples of 32, as DeepGen Crop Region cuts it.",
                ),
                inputs.side(
                    "width",
                    GENERATION_MULTIPLE,
                    "Without an image, or with 'width and height': a multiple of 16 pixels, of 32 with an image.",
                ),
                inputs.side(
                    "height",
                    GENERATION_MULTIPLE,
                    "Without an image, or with 'width and height': a multiple of 16 pixels, of 32 with an image.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The image to edit; leave unconnected to generate. Of a batch, each image is edited.",
                ),
                *inputs.references(2, 3, 4),
            ],
            outputs=[
                inputs.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="For DeepGen Sampler: texts and images, and the size of the image to make.",
                ),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="For KSampler and other nodes of ComfyUI, with the loader's model.",
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative prompt. It belongs to this positive: both are encoded together.",
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty, of the right size, one for each image: the latent_image of KSampler.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, size_mode: str | None = None, width: int | None = None, height: int | None = None
    ) -> bool | str:
        """Called by ComfyUI before a prompt is queued: True, or the error."""
        # Whether there is an image, and so whether the sides count, is known when the node runs.
        return cls.refusal(size_mode=size_mode, width=width, height=height) or True

    @classmethod
    def run(
        cls,
        pipeline: LazyPipeline,
        prompt: str,
        negative_prompt: str,
        size_mode: str,
        width: int,
        height: int,
        image: Tensor | None = None,
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
        image_4: Tensor | None = None,
    ) -> io.NodeOutput:
        """Stage 1."""
        from . import stages
        from .images import drawing_size, editing_fit, reference_groups

        others = {"image_2": image_2, "image_3": image_3, "image_4": image_4}
        if image is None:
            if connected := [name for name, other in others.items() if other is not None]:
                raise ValueError(f"{connected[0]} needs an image: connect the first one to image.")
            drawn = drawing_size(pipeline.sizes, height, width, editing=False)
        elif size_mode == RESTORE:
            drawn = drawing_size(pipeline.sizes, image.shape[1], image.shape[2], editing=True)
        else:
            fit, _ = editing_fit(pipeline.sizes, image, size_mode, height, width)
            drawn = fit.height, fit.width
        groups = reference_groups(image=image, **others)
        conditionings = stages.encode(pipeline, prompt, negative_prompt, groups, *drawn)
        return io.NodeOutput(conditionings, *stages.for_core(pipeline, conditionings))
