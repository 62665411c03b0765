"""DeepGenCropRegion: what a mask marks, cut out with its surroundings for ComfyUI's own samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import inputs
from .check import DeepGenNode
from .inputs import search_aliases
from .names import CATEGORY


if TYPE_CHECKING:
    from torch import Tensor


class DeepGenCropRegion(DeepGenNode):
    """Image and mask to a crop of the size that the model draws."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenCropRegion",
            display_name="DeepGen Crop Region",
            category=CATEGORY,
            description="Cuts what a mask marks out of an image, with its surroundings, at the size that DeepGen 1.0 "
            "draws. Edit the crop with any nodes, then give it to DeepGen Put Back.",
            **search_aliases("crop and stitch", "inpaint crop", "crop", "mask", "region", "inpaint"),
            inputs=[
                io.Image.Input("image", tooltip="To cut out of, of any size."),
                io.Mask.Input(
                    "mask",
                    tooltip="White where the image may be changed. All that it marks is in one crop.",
                ),
                io.Float.Input(
                    "context",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Sides of the crop, in sides of what is marked. The model has to see what the prompt "
                    "names, and the surroundings that stay.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The crop: for DeepGen Encode Prompt with size_mode 'size of image', and for VAE Encode.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Of the crop, grown to whole latents: for Set Latent Noise Mask, which inpaints, so that "
                    "the model sees what it must keep.",
                ),
                inputs.Region.Output(display_name="region", tooltip="For DeepGen Put Back: where the crop belongs."),
            ],
        )

    @classmethod
    def run(cls, image: Tensor, mask: Tensor, context: float) -> io.NodeOutput:
        """Cut out."""
        from .crops import CroppedRegions
        from .edit_in_place import paired

        region = CroppedRegions.cut(*paired(image, mask), context)
        return io.NodeOutput(region.images(), region.noise_masks(), region)
