"""A model in float16 whose sums are larger than float16 can hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import TINY
from large_sums import difference, with_large_sums
from PIL import Image
from torch import nn

from deepgen_npu import DeepGenPipeline
from deepgen_npu.model import connector, float16, numerics, ops, transformer, vision_language, vision_tower


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def latents(dtype: str, image: Image.Image | None) -> torch.Tensor:
    pipe = with_large_sums(DeepGenPipeline.from_pretrained(TINY, torch_dtype=dtype, device="cpu"))
    pipe.set_progress_bar_config(disable=True)
    conditioning = pipe.encode("a red cat", image, "", 64, 64)
    return pipe.denoise(conditioning, pipe.prepare_latents(1, 64, 64, seed=1), 3, 4.0)


@pytest.fixture(scope="module", params=[None, IMAGE], ids=["generate", "edit"])
def expected(request) -> tuple[Image.Image | None, torch.Tensor]:
    return request.param, latents("float32", request.param)


def test_sums_stay_within_range(expected):
    image, in_float32 = expected
    found = latents("float16", image)
    assert found.dtype == torch.float16
    assert difference(found, in_float32) < 0.02  # bfloat16 differs by more, without leaving its range


@pytest.mark.parametrize(
    ("modules", "what"),
    [
        ((ops, vision_language, vision_tower), "The prompt embeddings became NaN or infinite in torch.float16"),
        ((transformer,), "The latents became NaN or infinite in torch.float16"),
    ],
)
def test_without_wide_sums_they_leave_it_and_that_is_said(monkeypatch, modules, what):
    """So the test above can fail, and nothing is drawn from embeddings that are not numbers."""
    for module in modules:
        monkeypatch.setattr(module, "sum_dtype", lambda dtype: dtype)
    with pytest.raises(FloatingPointError, match=what):
        latents("float16", None)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_takes_rows_of_any_size(bias):
    torch.manual_seed(0)
    layer = nn.Linear(48, 24, bias=bias).half().requires_grad_(False)
    rows = torch.randn(5, 48) * torch.tensor([1e-3, 1.0, 250.0, 1e5, 1e9])[:, None]
    found = float16.scaled_linear(layer, rows, torch.float16)
    assert found.dtype == torch.float32
    exact = layer.double()(rows.double())
    for one, other in zip(found, exact, strict=True):
        assert difference(one, other) < 2e-3
    assert not torch.isfinite(layer.half()(rows.half())).all()


def test_in_other_dtypes_nothing_is_scaled():
    layer, x = nn.Linear(8, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    assert torch.equal(float16.scaled_linear(layer, x, torch.bfloat16), layer(x))
    assert float16.sum_dtype(torch.bfloat16) == torch.bfloat16


def test_the_connector_normalises_what_float16_cannot_hold():
    torch.manual_seed(0)
    norm = nn.LayerNorm(32, eps=1e-6).half()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    large = torch.randn(4, 32) * 1e6
    found = connector.layer_norm(norm, large, torch.float16)
    assert found.dtype == torch.float16 and difference(found, norm.double()(large.double())) < 2e-3


@pytest.mark.parametrize("largest", [65504.0, -65504.0, float("inf"), float("nan")])
def test_a_card_without_infinity_stops_at_the_largest_number(largest):
    numerics.require_finite(torch.tensor([1.0, 65472.0]).half(), "The latents", {})
    with pytest.raises(FloatingPointError, match=r"The latents became NaN or infinite in torch\.float16"):
        numerics.require_finite(torch.tensor([1.0, largest]).half(), "The latents", {})
