"""Latents out of graphs of ComfyUI's own nodes: what they drew, before any decoding and rounding to levels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load

from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, core, encoding, ksampler, load_image, loader, save_latent
from dev.comfyui.result import RunResult
from dev.comfyui.server import ComfyServer


ROUNDING = 1e-4
"""Of float32 latents, whose largest value is about 4, where the same numbers are added up in another order."""
SEEN = 1e-3
"""What is meant to change a latent changes it by more."""

IMAGES = ("core_a.png", "core_b.png")
"""Of 64 x 64 pixels, so that no node resizes them."""
SAVED = "_kept"
_nonces = itertools.count(1)


def lay_images(server: ComfyServer) -> None:
    """Smooth ones: of areas in one colour the VAE's norms make numbers of the last bits."""
    across, around = (make("L").resize((64, 64)) for make in (Image.linear_gradient, Image.radial_gradient))
    Image.merge("RGB", (across, around, across.transpose(Image.Transpose.ROTATE_90))).save(server.input / IMAGES[0])
    around.convert("RGB").save(server.input / IMAGES[1])


def text(**changes) -> Graph:
    """A loader, the encoding of a prompt and ``base``, which is drawn from it; changes go to the sampler."""
    return {"loader": loader(), "encode": encoding(), "base": ksampler(**changes)}


def advanced(**changes: Any) -> dict[str, Any]:
    """KSamplerAdvanced with what a `ksampler` has: all of its steps, unless changes say otherwise."""
    inputs = ksampler()["inputs"]
    inputs["noise_seed"] = inputs.pop("seed")
    del inputs["denoise"]
    parts = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    return core("KSamplerAdvanced", **{**inputs, **parts, **changes})


def in_two_parts(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> Graph:
    """``first``, three of six steps, and ``second``, the other three; each with changes of its own."""
    until = {"end_at_step": 3, "return_with_leftover_noise": "enable"}
    since = {"latent_image": ["first", 0], "add_noise": "disable", "start_at_step": 3}
    return {
        "first": advanced(steps=6, **until, **(first or {})),
        "second": advanced(steps=6, **since, **(second or {})),
    }


def two_images() -> Graph:
    return {"a": load_image(IMAGES[0]), "b": load_image(IMAGES[1])}


def not_cached(cfg: float = 4.0) -> float:
    """A cfg that is another input for ComfyUI's cache and the same number in float32."""
    return cfg + next(_nonces) * 1e-9


def with_defaults(client: Client, node: str, **given: Any) -> dict[str, Any]:
    """A node whose widgets are as they come, but for those that are given: versions differ in which there are."""
    inputs = {}
    for name, (kind, *settings) in client.object_info(node)[node]["input"]["required"].items():
        options = settings[0] if settings else {}
        if isinstance(kind, list) or kind == "COMBO":
            choices = kind if isinstance(kind, list) else options["options"]
            inputs[name] = options.get("default", choices[0] if choices else "")
        elif "default" in options:
            inputs[name] = options["default"]
    return core(node, **{**inputs, **given})


def latents_of(result: RunResult) -> dict[str, np.ndarray]:
    """Of each node that `drawn` kept."""
    assert result.ok, f"{(result.error or {}).get('node_id')}: {result.error_text}"
    # ComfyUI runs what it can of a graph, and leaves out the rest.
    assert not result.node_errors, result.node_errors
    return {
        file.node.removesuffix(SAVED): load(file.data)["latent_tensor"].numpy()
        for file in result.files
        if file.key == "latents"
    }


def keeping(graph: Graph, *nodes: str) -> Graph:
    return graph | {node + SAVED: save_latent(node) for node in nodes}


def drawn(client: Client, graph: Graph, *nodes: str) -> dict[str, np.ndarray]:
    """The latents [b, 16, h, w] that these nodes give; without any, all samplers."""
    samplers = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced", "DeepGenSample")
    nodes = nodes or tuple(name for name, node in graph.items() if node["class_type"] in samplers)
    found = latents_of(client.run(keeping(graph, *nodes)))
    assert set(found) == set(nodes)
    infinite = [name for name, latents in found.items() if not np.isfinite(latents).all()]
    assert not infinite, infinite
    return found


def assert_unchanged(client: Client, base: np.ndarray, **settings: Any) -> None:
    """Drawn again with the loader's MODEL, it is what it was with these settings."""
    assert gap(drawn(client, text(cfg=not_cached(), **settings))["base"], base) == 0


def gap(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape, (one.shape, other.shape)
    return float(np.abs(one.astype(np.float64) - other).max())
