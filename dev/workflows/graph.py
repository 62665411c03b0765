"""Graphs for ComfyUI's canvas, described: nodes, where they stand, what they say. `canvas` builds them.

The sample workflows, the blueprint and the images of the help pages consist of these nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nodes.names import EITHER


Box = tuple[int, int, int, int]
"""x, y, width, height in pixels of the canvas."""

TITLE, COLLAPSED_WIDTH = 30, 255
"""Height of a node's title, which lies above its box, and the most that it takes where nothing else is seen."""

PIPELINE, VAE, MODEL = ("loader", 0), ("loader", 1), ("loader", 2)
"""The outputs of the loader."""

CHOOSE = "choose a LoRA"
"""In place of a file: which there are, differs from machine to machine. A run of it is refused, naming the folder."""

MUTED = 2
"""The mode of a node that does not run."""


@dataclass
class Node:
    """One node of a graph.

    Attributes:
        key: By which other nodes name it.
        type: Its node id.
        box: Where it stands; a height of 0 is the node's own.
        inputs: As in ComfyUI's API format: the value of a widget, or (key of a node, number of its output).
        mode: 0, or `MUTED`.
    """

    key: str
    type: str
    box: Box
    inputs: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    mode: int = 0
    collapsed: bool = False


def occupied(node: Node) -> Box:
    """Its box with its title; of a collapsed node, the title alone."""
    x, y, width, height = node.box
    return (x, y - TITLE, COLLAPSED_WIDTH, TITLE) if node.collapsed else (x, y - TITLE, width, height + TITLE)


def loader(box: Box = (0, 0, 380, 190), model: str = EITHER) -> Node:
    return Node("loader", "DeepGenLoader", box, {"model": model})


def generate(key: str, box: Box, prompt: str, **more: Any) -> Node:
    return Node(key, "DeepGenTextToImage", box, {"pipeline": PIPELINE, "prompt": prompt, **more})


def edit(key: str, box: Box, image: str, prompt: str, **more: Any) -> Node:
    return Node(key, "DeepGenEdit", box, {"pipeline": PIPELINE, "image": (image, 0), "prompt": prompt, **more})


def encode(key: str, box: Box, prompt: str, **more: Any) -> Node:
    return Node(key, "DeepGenEncode", box, {"pipeline": PIPELINE, "prompt": prompt, **more})


def sample(key: str, box: Box, conditioning: str, **more: Any) -> Node:
    return Node(key, "DeepGenSample", box, {"pipeline": PIPELINE, "conditioning": (conditioning, 0), **more})


def ksampler(key: str, box: Box, encoded: str, latent: str = "", **more: Any) -> Node:
    """ComfyUI's sampler, as DeepGen was published: from the latent of the encoding, or from that of another node."""
    links = {
        "model": MODEL,
        "positive": (encoded, 1),
        "negative": (encoded, 2),
        "latent_image": (latent, 0) if latent else (encoded, 3),
    }
    published = {"seed": 42, "steps": 50, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    return Node(key, "KSampler", box, {**links, **published, **more})


def lora(key: str, box: Box, **more: Any) -> Node:
    return Node(key, "DeepGenLoRA", box, {"pipeline": PIPELINE, "lora_name": CHOOSE, **more})


def guidance_every(key: str, box: Box, model: tuple[str, int] = MODEL) -> Node:
    return Node(key, "DeepGenGuidanceEvery", box, {"model": model})


def cache(key: str, box: Box, model: tuple[str, int] = MODEL) -> Node:
    """ComfyUI's cache of steps that is right in every version: the other one mixes both prompts in 0.3.64."""
    return Node(key, "LazyCache", box, {"model": model})


def vae_encode(key: str, box: Box, image: str) -> Node:
    return Node(key, "VAEEncode", box, {"pixels": (image, 0), "vae": VAE})


def vae_decode(key: str, box: Box, latent: str) -> Node:
    return Node(key, "VAEDecode", box, {"samples": (latent, 0), "vae": VAE})


def save(key: str, box: Box, image: str, prefix: str) -> Node:
    return Node(key, "SaveImage", box, {"filename_prefix": prefix, "images": (image, 0)})


def noise_mask(key: str, box: Box, latent: str, mask: tuple[str, int]) -> Node:
    return Node(key, "SetLatentNoiseMask", box, {"samples": (latent, 0), "mask": mask})


def crop_region(key: str, box: Box, image: str, mask: tuple[str, int]) -> Node:
    return Node(key, "DeepGenCropRegion", box, {"image": (image, 0), "mask": mask})


def put_back(key: str, box: Box, region: str, image: str) -> Node:
    return Node(key, "DeepGenPutBack", box, {"region": (region, 2), "image": (image, 0)})


def stitch(key: str, box: Box, image: str, direction: str) -> Node:
    """An image and once more the same."""
    return Node(key, "ImageStitch", box, {"direction": direction, "image1": (image, 0), "image2": (image, 0)})


def mask_to_image(key: str, box: Box, mask: tuple[str, int]) -> Node:
    return Node(key, "MaskToImage", box, {"mask": mask})


def preview(key: str, box: Box, image: str) -> Node:
    return Node(key, "PreviewImage", box, {"images": (image, 0)})


def load(key: str, box: Box, file: str = "example.png") -> Node:
    return Node(key, "LoadImage", box, {"image": file})


def collapsed(node: Node) -> Node:
    node.collapsed = True
    return node
