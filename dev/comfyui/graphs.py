"""Workflows in API format, small enough for the tiny checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


Graph = dict[str, dict[str, Any]]


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def loader(model: str = "somebody/reference", dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    return {"class_type": "DeepGenLoader", "inputs": {"model": model, "dtype": dtype, **changes}}


def generation(**changes: Any) -> dict[str, Any]:
    inputs = {
        "pipeline": ["loader", 0],
        "prompt": "a red circle",
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "seed": 42,
        "steps": 3,
        "cfg": 4.0,
        "batch_size": 1,
    }
    return {"class_type": "DeepGenTextToImage", "inputs": {**inputs, **changes}}


def edit(image: str, **changes: Any) -> dict[str, Any]:
    inputs = {
        "pipeline": ["loader", 0],
        "image": [image, 0],
        "prompt": "make it blue",
        "negative_prompt": "",
        "size_mode": "width and height",
        "width": 64,
        "height": 64,
        "seed": 42,
        "steps": 3,
        "cfg": 4.0,
    }
    return {"class_type": "DeepGenEdit", "inputs": {**inputs, **changes}}


def encoding(**changes: Any) -> dict[str, Any]:
    inputs = {
        "pipeline": ["loader", 0],
        "prompt": "a red circle",
        "negative_prompt": "",
        "size_mode": "width and height",
        "width": 64,
        "height": 64,
    }
    return {"class_type": "DeepGenEncode", "inputs": {**inputs, **changes}}


def sampling(conditioning: str, **changes: Any) -> dict[str, Any]:
    inputs = {
        "pipeline": ["loader", 0],
        "conditioning": [conditioning, 0],
        "seed": 42,
        "steps": 3,
        "cfg": 4.0,
        "denoise": 1.0,
        "batch_size": 1,
    }
    return {"class_type": "DeepGenSample", "inputs": {**inputs, **changes}}


def core(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of ComfyUI's own."""
    return {"class_type": class_type, "inputs": inputs}


def ksampler(encode: str = "encode", **changes: Any) -> dict[str, Any]:
    """ComfyUI's own sampler on the loader's MODEL, with what an `encoding` gives."""
    inputs = {
        "model": ["loader", 2],
        "positive": [encode, 1],
        "negative": [encode, 2],
        "latent_image": [encode, 3],
        "seed": 42,
        "steps": 3,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    return core("KSampler", **{**inputs, **changes})


def decoding(latent: str) -> dict[str, Any]:
    return core("VAEDecode", samples=[latent, 0], vae=["loader", 1])


def modular(sampler: dict[str, Any] | None = None, **changes: Any) -> Graph:
    """An image from modular and core nodes; changes go to the encoding."""
    return {
        "loader": loader(),
        "encode": encoding(**changes),
        "sample": sampler or sampling("encode"),
        "decode": decoding("sample"),
        "saved": save("decode"),
    }


def save(image: str) -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"images": [image, 0], "filename_prefix": "test"}}


def save_latent(latent: str) -> dict[str, Any]:
    return core("SaveLatent", samples=[latent, 0], filename_prefix="latents/test")


def load_image(name: str) -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": name}}


def chain(**changes: Any) -> Graph:
    """Generate, then edit what was generated, from one loader; both images are kept."""
    return {
        "loader": loader(),
        "generate": generation(),
        "edit": edit("generate", **changes),
        "generated": save("generate"),
        "edited": save("edit"),
    }
