"""The colours of live previews: those of the image that comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepgen_npu.checkpoint.index_keys import LATENT_RGB_FACTORS_KEY
from deepgen_npu.locations import DEMO_FOLDER
from dev.comfyui.graphs import generation, loader, save


PROMPT = "a red circle on the left on a white background"


def latents_of(image: Image.Image) -> np.ndarray:
    """Mean colours [8, 8, 3] of an image or preview of the demo's size: one for each latent."""
    image = image.convert("RGB")
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX)).astype(float)


@pytest.fixture
def copied_demo(comfy) -> Iterator[Path]:
    """The demo under a name of its own, with a ``model_index.json`` that can be changed."""
    folder = Path(shutil.copytree(DEMO_FOLDER, comfy.models / "deepgen" / "changed-demo"))
    yield folder
    shutil.rmtree(folder)


def change_factors(folder: Path, factors: object) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    if factors is None:
        del index[LATENT_RGB_FACTORS_KEY]
    else:
        index[LATENT_RGB_FACTORS_KEY] = factors
    path.write_text(json.dumps(index), encoding="utf-8")


def draw(comfy_client):
    graph = {
        "loader": loader("changed-demo"),
        "make": generation(prompt=PROMPT, width=512, height=512, steps=12),
        "saved": save("make"),
    }
    return comfy_client.run(graph)


def difference(result) -> float:
    """Levels by which the colours of the last preview differ from those of the image, on average."""
    (image,) = result.images
    return float(np.abs(latents_of(result.previews[-1].image) - latents_of(image)).mean())


BOUND = 25
"""Levels; 9 with the demo's own factors and 133 with SD3's."""


def test_the_last_preview_has_the_colours_of_the_image(comfy_client, copied_demo):
    result = draw(comfy_client)
    assert result.ok, result.error_text
    assert difference(result) < BOUND
    preview = latents_of(result.previews[-1].image)
    assert preview[:, 7].min() > 220, "the background is white"
    red, green, blue = preview[3:5, 1:3].mean((0, 1))
    assert red > green + 60 and red > blue + 60, "a red circle on the left"


def test_the_colours_of_another_vae_would_be_seen(comfy_client, copied_demo):
    change_factors(copied_demo, None)
    result = draw(comfy_client)
    assert result.ok, result.error_text
    assert difference(result) > 2 * BOUND


@pytest.mark.parametrize(
    "factors",
    [[[0.1, 0.2, 0.3]] * 16, [[0.1, 0.2]] * 17, [[0.1, 0.2, "0.3"]] * 17, {"0": 1}, []],
    ids=["no row to add", "two colours", "a text", "no list", "empty"],
)
def test_factors_that_cannot_be_right_are_named(comfy_client, copied_demo, factors):
    change_factors(copied_demo, factors)
    result = draw(comfy_client)
    assert "CheckpointError" in result.error_text and "changed-demo" in result.error_text
    assert f"model_index.json: {LATENT_RGB_FACTORS_KEY} must be a list of" in result.error_text
    assert "17 lists of 3 numbers" in result.error_text
    assert "DeepGenLoader" in result.error_text, "before weights are read"
