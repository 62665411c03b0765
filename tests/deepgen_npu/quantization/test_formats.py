"""Formats and layers: what is written is what is read, and which layers stay as they are."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deepgen_npu.checkpoint.structure import model_name
from deepgen_npu.quantization import layers
from deepgen_npu.quantization.formats import FORMATS, FP8, INT8, LayerFormat, format_for, groups_of
from deepgen_npu.quantization.layers import PARTS, plan, summarise
from deepgen_npu.tools.random_model import RandomModel


GIB = 2**30


@pytest.mark.parametrize("layer", [LayerFormat(INT8), LayerFormat(INT8, 64), LayerFormat(FP8)])
def test_a_mark_is_read_as_it_was_written(layer):
    assert LayerFormat.parse(json.loads(layer.mark())) == layer


def test_marks_are_those_of_comfyui():
    assert LayerFormat(INT8, 256).settings() == {"format": INT8, "convrot": True, "convrot_groupsize": 256}
    assert LayerFormat(FP8).settings() == {"format": FP8, "full_precision_matrix_mult": True}
    # Other converters leave out what ComfyUI takes for granted, or put it one level down.
    assert LayerFormat.parse({"format": INT8, "convrot": True}).group == 256
    assert LayerFormat.parse({"format": INT8, "params": {"convrot": True, "convrot_groupsize": 16}}).group == 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "format must be int8_tensorwise or float8_e4m3fn, got None"),
        ({"format": "nvfp4"}, "got 'nvfp4'. Files are made by `quantize`, in one of the formats int8_convrot, int8"),
        ({"format": INT8, "convrot": True, "convrot_groupsize": 128}, "must be one of 256, 64, 16, 4, got 128"),
        ({"format": INT8, "convrot": True, "convrot_groupsize": True}, "got True"),
    ],
)
def test_other_formats_are_named(settings, words):
    with pytest.raises(ValueError) as caught:
        LayerFormat.parse(settings)
    assert words in str(caught.value)


def test_the_group_is_the_largest_power_of_four_that_divides():
    assert [groups_of(width)[:1] for width in (1536, 160, 48, 12, 11946)] == [[256], [16], [16], [4], []]
    assert format_for("int8_convrot", 11946) is None
    assert format_for("int8", 11946) == LayerFormat(INT8)


@pytest.fixture(scope="module")
def published() -> RandomModel:
    """The dimensions of the published model; nothing is allocated."""
    return RandomModel.of_size("published")


def test_what_is_left_of_the_published_model(published):
    left = {}
    for part in PARTS:
        tensors = published.checkpoint.tensors[part]
        chosen, rest = plan(part, "int8_convrot", {model_name(part, name): one.shape for name, one in tensors.items()})
        left[part] = " | ".join(summarise(names) for names in rest.values())
        assert all(layer == LayerFormat(INT8, 256) for layer in chosen.values()), part
    assert left["connector"] == "connector.layers.*.mlp.fc2 (6)"
    assert "visual.blocks.*.mlp.down_proj (32)" in left["vlm"] and "embed_tokens" in left["vlm"]
    for name in ("norm1.linear (24)", "norm1_context.linear (24)", "norm_out.linear", "proj_out", "context_embedder"):
        assert name in left["transformer"]


@pytest.mark.parametrize("title", FORMATS)
def test_memory_of_the_published_model(published, title):
    """What the README's table says, in bfloat16 otherwise."""
    plain, small = published, RandomModel.of_size("published", title=title)
    dtype = torch.bfloat16
    of_all = small.nbytes(dtype) / GIB
    assert of_all < 8.2 and small.nbytes(dtype, "vlm") / GIB < 4.5
    print(
        {part: f"{small.nbytes(dtype, part) / GIB:.2f} of {plain.nbytes(dtype, part) / GIB:.2f} GiB" for part in PARTS}
    )
    # Counted again by hand, layer by layer.
    for part in PARTS:
        chosen = small.checkpoint.quantized[part]
        total = 0
        for name, tensor in small.checkpoint.tensors[part].items():
            layer = chosen.get(model_name(part, name).removesuffix(".weight"))
            scales = 0 if layer is None else 4 * (tensor.shape[0] if layer.name == INT8 else 1)
            total += math.prod(tensor.shape) * (2 if layer is None else 1) + scales
        assert total == small.nbytes(dtype, part)


def test_layers_are_summarised():
    assert summarise(["a.0.b", "a.1.b", "c"]) == "a.*.b (2), c"
    assert layers.PARTS == ("vlm", "connector", "transformer")
