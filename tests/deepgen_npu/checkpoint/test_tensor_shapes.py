"""Names and shapes that are computed without a library are those of the libraries' models."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from deepgen_npu import Checkpoint, CheckpointError
from deepgen_npu.checkpoint.folder import PARTS
from deepgen_npu.checkpoint.schema import CONFIG_FILES, settings
from deepgen_npu.checkpoint.structure import by_model_names, check_structure
from deepgen_npu.checkpoint.tensor_shapes import SHAPES
from deepgen_npu.checkpoint.weights import empty_model
from deepgen_npu.locations import DEMO_FOLDER
from deepgen_npu.tools.model_sizes import SIZES
from deepgen_npu.tools.random_model import RandomModel


FILE = Path("config.json")

# Variants of the tiny size that diffusers knows, too.
VARIANTS = [
    ("transformer", {"qk_norm": None}),
    ("transformer", {"dual_attention_layers": []}),
    ("transformer", {"num_layers": 1, "patch_size": 4, "dual_attention_layers": [0]}),
    ("vae", {"mid_block_add_attention": False}),
    ("vae", {"use_quant_conv": True, "use_post_quant_conv": True, "layers_per_block": 1}),
    (
        "vae",
        {
            "block_out_channels": [8, 4],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
    ),
]


def shapes_of_the_library(part: str, config: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in empty_model(part, config).state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", PARTS)
def test_every_size(size, part):
    config = SIZES[size].configs[part]
    assert SHAPES[part](settings(part, FILE, config)) == shapes_of_the_library(part, config)


@pytest.mark.parametrize(("part", "changes"), VARIANTS)
def test_variants(part, changes):
    config = {**SIZES["tiny"].configs[part], **changes}
    assert SHAPES[part](settings(part, FILE, config)) == shapes_of_the_library(part, config)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits_its_own_config(size):
    checkpoint = RandomModel.of_size(size).checkpoint
    for part in PARTS:
        tensors = by_model_names(part, FILE, checkpoint.tensors[part])
        check_structure(part, FILE, FILE, checkpoint.configs[part], tensors)


def test_the_spelling_of_the_base_model():
    """The config of Qwen2.5-VL-3B: the decoder at the top level, other names for the channels and the rotation."""
    nested = SIZES["published"].configs["vlm"]
    flat = {**nested["text_config"], **nested}
    del flat["text_config"], flat["layer_types"]
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    flat["sliding_window"] = 32768
    flat["vision_config"] = {**nested["vision_config"], "in_chans": 3, "spatial_patch_size": 14}
    del flat["vision_config"]["in_channels"]
    assert settings("vlm", FILE, flat) == settings("vlm", FILE, nested)


@pytest.mark.parametrize("part", [*PARTS, "scheduler"])
def test_settings_are_settings_of_themselves(part):
    once = settings(part, FILE, SIZES["published"].configs[part])
    assert settings(part, FILE, json.loads(json.dumps(once))) == once


# What no tensor shows: other numbers are other models, as far as their range allows.
FREE = {"max_position_embeddings", "sample_size", "fullatt_block_indexes"}
# The tokenizer shows these.
FREE |= {"image_token_id", "vision_start_token_id", "vision_end_token_id"}


def numbers(config: dict, before: tuple[str, ...] = ()):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from numbers(value, (*before, key))
        elif key not in FREE and (type(value) is int or (isinstance(value, list) and type(value[0]) is int)):
            yield (*before, key)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", [-1, 1, 10**9])
def test_every_structural_number_is_compared_and_named(part, change):
    checkpoint = Checkpoint.open(DEMO_FOLDER)
    tensors = by_model_names(part, FILE, checkpoint.tensors[part])
    found, file = list(numbers(checkpoint.configs[part])), Path(CONFIG_FILES[part])
    assert len(found) >= {"vlm": 17, "connector": 12, "transformer": 11, "vae": 6}[part]
    for *parents, key in found:
        config = copy.deepcopy(checkpoint.configs[part])
        holder = config
        for parent in parents:
            holder = holder[parent]
        value = holder[key]
        if key in ("num_heads", "num_attention_heads") and part != "transformer" and change == -1:
            continue  # 3 heads are as possible as 4
        holder[key] = value + change if isinstance(value, int) else [*value[:-1], value[-1] + change]
        with pytest.raises(CheckpointError) as caught:
            check_structure(part, FILE, file, settings(part, file, config), tensors)
        assert CONFIG_FILES[part] in str(caught.value) and f"{key} must be " in str(caught.value), str(caught.value)
