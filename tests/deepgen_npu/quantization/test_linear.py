"""Quantised layers: what they compute, against the weights before and against comfy-kitchen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepgen_npu.quantization import linear
from deepgen_npu.quantization.formats import FP8, INT8, LayerFormat
from deepgen_npu.quantization.linear import QuantizedLinear, quantized_layers, replace_layers
from deepgen_npu.quantization.rotation import hadamard, rotate
from deepgen_npu.quantization.values import dequantize, quantize


CPU = torch.device("cpu")
FORMATS = [LayerFormat(INT8), LayerFormat(INT8, 4), LayerFormat(INT8, 64), LayerFormat(FP8)]
ERROR = {FORMATS[0]: 0.02, FORMATS[1]: 0.02, FORMATS[2]: 0.01, FORMATS[3]: 0.04}
"""Of the result, relative to its length: several times what was measured."""


def random_linear(dtype: torch.dtype = torch.float32, outs: int = 24, ins: int = 128) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(ins, outs)
    layer.weight.data[0] = 0  # a row of zeros has a scale, too
    return layer.to(dtype).requires_grad_(False)


def quantized(layer: LayerFormat, plain: nn.Linear) -> QuantizedLinear:
    model = nn.Sequential(nn.Linear(plain.in_features, plain.out_features, device="meta", dtype=plain.weight.dtype))
    replace_layers(model, {"0": layer})
    assert quantized_layers(model) == {"0": layer}
    made = model.to_empty(device="cpu")[0]
    assert isinstance(made, QuantizedLinear)
    made.bias.data.copy_(plain.bias)
    made.quantize_(plain.weight)
    return made


def test_the_matrix_is_orthogonal_symmetric_and_regular():
    for size in (4, 16, 64, 256):
        matrix = hadamard(size, CPU, torch.float32)
        torch.testing.assert_close(matrix @ matrix, torch.eye(size))
        assert torch.equal(matrix, matrix.T)
        assert set(matrix.abs().flatten().tolist()) == {size**-0.5}
        torch.testing.assert_close(matrix.sum(0), torch.ones(size))  # regular: every column has one sum
    x = torch.randn(3, 5, 48)
    torch.testing.assert_close(rotate(rotate(x, 16), 16), x)


@pytest.mark.parametrize("layer", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result(layer, dtype):
    plain = random_linear(dtype)
    made = quantized(layer, plain)
    x = torch.randn(2, 5, 128).to(dtype)
    y = made(x)
    expected = F.linear(x.float(), plain.weight.float(), plain.bias.float())
    assert y.dtype == dtype and y.shape == (2, 5, 24)
    assert (y.float() - expected).norm() < ERROR[layer] * expected.norm()
    whole = F.linear(x.float(), made.dequantized(torch.float32), plain.bias.float())
    assert (y.float() - whole).norm() < (1e-5 if dtype == torch.float32 else 0.01) * whole.norm()


@pytest.mark.parametrize("layer", FORMATS)
def test_weights_stay_where_they_are(layer):
    made = quantized(layer, random_linear())
    before, place = made.weight.clone(), made.weight.data_ptr()
    made.quantize_(2 * made.dequantized(torch.float32))
    assert made.weight.data_ptr() == place
    assert made.weight.dtype == (torch.float8_e4m3fn if layer.name == FP8 else torch.int8)
    # Twice the weight has twice the scale, and the same values.
    assert torch.equal(made.weight.float(), before.float())


@pytest.mark.parametrize("layer", FORMATS[:3])
def test_comfy_kitchen_stores_the_same(layer):
    kitchen = pytest.importorskip("comfy_kitchen.tensor", reason="comfy-kitchen is in one of the two library pairs")
    weight = random_linear().weight
    options = {"convrot": True, "convrot_groupsize": layer.group} if layer.group else {}
    theirs, parameters = kitchen.TensorWiseINT8Layout.quantize(weight, per_channel=True, **options)
    ours, scale = quantize(weight, layer)
    torch.testing.assert_close(scale, parameters.scale)
    assert (ours.int() - theirs.int()).abs().max() <= 1  # where a value lies between two
    assert (ours != theirs).float().mean() < 0.01
    back = kitchen.TensorWiseINT8Layout.dequantize(ours, parameters)
    torch.testing.assert_close(dequantize(ours, scale, layer, torch.float32), back)


@pytest.mark.parametrize("layer", FORMATS[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_comfy_kitchen_computes_the_same(layer, dtype):
    """Its way on a GPU, here by its form for any device: inputs are rounded to int8 as well."""
    pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is in one of the two library pairs")
    made = quantized(layer, random_linear(dtype))
    x = torch.randn(2, 5, 128).to(dtype)
    ours, theirs = made(x).float(), made._by_kitchen(x).float()
    assert theirs.shape == ours.shape
    assert (theirs - ours).norm() < 0.015 * ours.norm()


def test_a_comfy_kitchen_that_does_not_load(monkeypatch, caplog):
    def fail(name):
        raise ImportError("libcudart.so.13: cannot open shared object file")

    linear.comfy_kitchen.cache_clear()
    monkeypatch.setattr(linear.importlib, "import_module", fail)
    assert linear.comfy_kitchen() is None and linear.comfy_kitchen() is None
    assert caplog.text.count("libcudart.so.13") == 1
    linear.comfy_kitchen.cache_clear()


def test_only_linear_layers_are_replaced():
    with pytest.raises(TypeError, match="0 is not a linear layer but LayerNorm"):
        replace_layers(nn.Sequential(nn.LayerNorm(4)), {"0": FORMATS[0]})


def test_the_largest_weight_counts_as_workspace():
    model = nn.Sequential(random_linear(), random_linear(outs=48), nn.Linear(512, 512))
    assert linear.workspace_bytes(model, 2) == 0
    replace_layers(model, {"0": FORMATS[0], "1": FORMATS[0]})
    assert linear.workspace_bytes(model, 2) == (4 + 2) * 48 * 128
