"""DeepGenPutBack: the edit of a crop put back into the image, which stays as it is outside of the mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import inputs
from .check import DeepGenNode
from .inputs import search_aliases
from .names import CATEGORY


if TYPE_CHECKING:
    from torch import Tensor

    from .crops import CroppedRegions


class DeepGenPutBack(DeepGenNode):
    """Region and its edit to the whole image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenPutBack",
            display_name="DeepGen Put Back",
            category=CATEGORY,
            description="Puts the edit of a crop back into the image that DeepGen Crop Region cut it out of. A shift "
            "of the edit is undone, and outside of the mask not one pixel changes.",
            **search_aliases("crop and stitch", "inpaint stitch", "stitch", "composite", "uncrop"),
            inputs=[
                inputs.Region.Input("region", tooltip="From DeepGen Crop Region."),
                io.Image.Input("image", tooltip="The edited crop, of the size of the crop."),
                inputs.keep_unchanged(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The whole image, at its own size."),
                inputs.change_mask(),
            ],
        )

    @classmethod
    def run(cls, region: CroppedRegions, image: Tensor, keep_unchanged: bool = False) -> io.NodeOutput:
        """Put back."""
        return io.NodeOutput(*region.put_back(image, keep_unchanged))
