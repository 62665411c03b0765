"""DeepGenEdit: an image changed by an instruction, with up to three more references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..deepgen_npu.prompts import EDIT_NEGATIVE_PROMPT
from . import inputs
from .check import DeepGenNode
from .inputs import EDITING_MULTIPLE, search_aliases
from .names import CATEGORY, CUSTOM, FOLLOW, PADDED, RESTORE


if TYPE_CHECKING:
    from torch import Tensor

    from .lazy_pipeline import LazyPipeline


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
                    options=[PADDED, FOLLOW, CUSTOM, RESTORE],
                    default=PADDED,
                    tooltip="follow image, no distortion: the shape of the image at about the area the model was "
                    "trained at; it is padded to the size that is drawn, and the padding cut off again. "
                    "follow image: stretched to the nearest size instead. "
                    "width and height: the two numbers below; the image is stretched to them. "
                    "size of image: made like follow image, then scaled to exactly the size of the image. "
                    "With keep_unchanged or a mask the result always has the size of the image.",
                ),
                inputs.side("width", EDITING_MULTIPLE, "Used by 'width and height': in pixels, a multiple of 32."),
                inputs.side("height", EDITING_MULTIPLE, "Used by 'width and height': in pixels, a multiple of 32."),
                inputs.seed(),
                inputs.steps(),
                inputs.cfg(),
                *inputs.references(2, 3, 4),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the image may be changed, from the mask editor of Load Image. Each region is "
                    "cut out with its surroundings, edited by itself and put back at the image's own resolution; "
                    "outside not one pixel changes.",
                ),
                inputs.keep_unchanged(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The edited images, one batch."),
                inputs.change_mask(),
            ],
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
        mask: Tensor | None = None,
        keep_unchanged: bool = False,
    ) -> io.NodeOutput:
        """Encode, sample and decode."""
        import torch

        from ..deepgen_npu.edits.fitting import padded
        from . import stages
        from .edit_in_place import Settings, edit_masked, edit_whole, paired
        from .images import drawing_size, editing_fit, reference_groups

        if mask is not None:
            image, mask = paired(image, mask)
        further = {"image_2": image_2, "image_3": image_3, "image_4": image_4}
        if mask is not None or keep_unchanged:
            # The regions of a large image are cut out later: here it counts only how many images there are.
            others = [group[1:] for group in reference_groups(image=image[:, :1, :1], **further)]
            settings = Settings(prompt, negative_prompt, seed, steps, cfg)
            if mask is not None:
                size = drawing_size(pipeline.sizes, height, width, editing=True) if size_mode == CUSTOM else None
                return io.NodeOutput(*edit_masked(pipeline, others, image, mask, size, keep_unchanged, settings))
            fit, _ = editing_fit(pipeline.sizes, image, size_mode, height, width)
            return io.NodeOutput(*edit_whole(pipeline, others, image, fit, settings))
        groups = reference_groups(image=image, **further)
        fit, displayed = editing_fit(pipeline.sizes, image, size_mode, height, width)
        if size_mode == PADDED:
            groups = [padded(group, fit.height, fit.width) for group in groups]
        conditionings = stages.encode(pipeline, prompt, negative_prompt, groups, fit.height, fit.width)
        latent = stages.sample(pipeline, conditionings, seed, steps, cfg)
        edited = stages.decode(pipeline, latent, *displayed, fit)
        return io.NodeOutput(edited, torch.ones(edited.shape[:3], device=edited.device))
