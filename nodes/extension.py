"""The pack as ComfyUI sees it."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .crop_region import DeepGenCropRegion
from .edit import DeepGenEdit
from .encode import DeepGenEncode
from .guidance_every import DeepGenGuidanceEvery
from .loader import DeepGenLoader
from .lora import DeepGenLora
from .put_back import DeepGenPutBack
from .sample import DeepGenSample
from .text_to_image import DeepGenTextToImage


class DeepGenExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """In the order of the menu."""
        return [
            DeepGenLoader,
            DeepGenTextToImage,
            DeepGenEdit,
            DeepGenEncode,
            DeepGenSample,
            DeepGenLora,
            DeepGenCropRegion,
            DeepGenPutBack,
            DeepGenGuidanceEvery,
        ]
