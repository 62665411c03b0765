"""The golden cases as workflows in API format."""

from __future__ import annotations

from pathlib import Path

from golden import load_case
from PIL import Image

from deepgen_npu.images import from_pixels
from dev.comfyui.graphs import Graph, edit, generation, load_image, loader, save


def golden_run(case: str, input_folder: Path) -> tuple[Graph, Image.Image]:
    """The graph of a golden case with one image, and that image.

    Args:
        input_folder: ComfyUI's, which receives the reference.
    """
    call, references, golden = load_case(case)
    settings = {
        "prompt": call["prompt"][0],
        "negative_prompt": call["negative_prompt"],
        "width": call["width"],
        "height": call["height"],
        "steps": call["num_inference_steps"],
        "cfg": call["guidance_scale"],
        "seed": 42,
    }
    graph = {"loader": loader(), "make": generation(**settings), "saved": save("make")}
    if references:
        references[0].save(input_folder / "reference.png")
        graph["image"] = load_image("reference.png")
        graph["make"] = edit("image", **settings)
    (expected,) = from_pixels(golden["image"], "pil")
    return graph, expected
