"""The reference kernels against PyTorch, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dev.npu_simulator.attention_kernels import UNBOUNDED
from dev.npu_simulator.kernels import KERNELS


B, N, S, D = 2, 4, 6, 16
LAYOUTS = {
    "BNSD": lambda heads: heads,
    "BSND": lambda heads: heads.transpose(1, 2),
    "BSH": lambda heads: heads.transpose(1, 2).flatten(2),
    "SBH": lambda heads: heads.transpose(1, 2).flatten(2).transpose(0, 1),
}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_rms_norm():
    x, weight = noise(B, S, D), noise(D)
    normalised, rstd = KERNELS["npu_rms_norm"](x, weight, 1e-5)
    torch.testing.assert_close(normalised, F.rms_norm(x, (D,), weight, 1e-5))
    assert rstd.shape == (B, S, 1)
    added = KERNELS["npu_add_rms_norm"](x, x, weight, 1e-5)
    torch.testing.assert_close(added[0], F.rms_norm(2 * x, (D,), weight, 1e-5))
    assert torch.equal(added[2], 2 * x)


@pytest.mark.parametrize("gamma", [noise(S), noise(1, D), noise(D).half(), noise()])
def test_rms_norm_refuses(gamma):
    with pytest.raises(RuntimeError, match="gamma"):
        KERNELS["npu_rms_norm"](noise(B, S, D), gamma)


def test_activations():
    x = noise(B, S, 2 * D)
    first, second = x.chunk(2, dim=-1)
    torch.testing.assert_close(KERNELS["npu_swiglu"](x), F.silu(first) * second)
    torch.testing.assert_close(KERNELS["npu_geglu"](x)[0], first * F.gelu(second, approximate="tanh"))
    torch.testing.assert_close(KERNELS["npu_geglu"](x, -1, 0, True)[0], second * F.gelu(first))
    torch.testing.assert_close(KERNELS["npu_gelu"](x, approximate="tanh"), F.gelu(x, approximate="tanh"))
    torch.testing.assert_close(KERNELS["npu_fast_gelu"](x), F.gelu(x), atol=0.021, rtol=0)
    torch.testing.assert_close(KERNELS["npu_layer_norm_eval"](x, [2 * D]), F.layer_norm(x, (2 * D,)))
    with pytest.raises(RuntimeError, match="halves"):
        KERNELS["npu_swiglu"](noise(B, 5))
    with pytest.raises(RuntimeError, match="float64"):
        KERNELS["npu_swiglu"](x.double())


@pytest.mark.parametrize("table", [(1, 1, S, D), (B, 1, S, D), (B, N, S, D)])
def test_rotary(table):
    x, cos, sin = noise(B, N, S, D), noise(*table), noise(*table) + 1
    rotated = torch.cat([-x[..., D // 2 :], x[..., : D // 2]], dim=-1)
    torch.testing.assert_close(KERNELS["npu_rotary_mul"](x, cos, sin), x * cos + rotated * sin)


@pytest.mark.parametrize(
    ("x", "table", "mode"),
    [
        ((B, N, S, D), (B, S, D), "half"),  # three dimensions
        ((B, N, S, D), (1, N, S, D), "half"),  # no layout has these
        ((B, N, S, D), (1, 1, S, D // 2), "half"),
        ((B, N, S, D), (B, 1, S, D), "interleave"),
        ((1000, 1, S, D), (1, 1, S, D), "half"),
        ((B, N, S, 15), (1, 1, S, 15), "half"),
        ((B, N, S, 896), (1, 1, S, 896), "half"),
        ((B, N, S, D), (1, 1, S, D), "quarter"),
    ],
)
def test_rotary_refuses(x, table, mode):
    with pytest.raises(RuntimeError, match="npu_rotary_mul"):
        KERNELS["npu_rotary_mul"](noise(*x), noise(*table), noise(*table), mode)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["npu_fusion_attention", "npu_fusion_attention_v3"])
def test_attention(name, layout, masked):
    q, k, v = noise(B, N, S, D), noise(B, N // 2, S, D), noise(B, N // 2, S, D) + 1
    keep = torch.ones(B, 1, S, S, dtype=torch.bool).tril() if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=True)
    place = LAYOUTS[layout]
    options = {"scale": D**-0.5, "atten_mask": ~keep if keep is not None else None}
    attended, maximum, total, *_ = KERNELS[name](place(q), place(k), place(v), N, layout, **options)
    torch.testing.assert_close(attended, place(expected))
    assert maximum.shape == total.shape == (B, N, S, 8)


@pytest.mark.parametrize("rows", [S, S - 2])
@pytest.mark.parametrize("sparse_mode", [2, 3])
def test_causal_attention(sparse_mode, rows):
    q, k = noise(B, N, rows, D), noise(B, N, S, D)
    triangle = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    options = {"scale": D**-0.5, "atten_mask": triangle, "sparse_mode": sparse_mode}
    keep = torch.ones(rows, S, dtype=torch.bool).tril(0 if sparse_mode == 2 else S - rows)
    expected = F.scaled_dot_product_attention(q, k, k, attn_mask=keep)
    torch.testing.assert_close(KERNELS["npu_fusion_attention"](q, k, k, N, "BNSD", **options)[0], expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((N, "BNDS"), {}, "input_layout"),
        ((N, "BSH"), {}, "dimensions"),
        ((N + 1, "BNSD"), {}, "heads"),
        ((N, "BNSD"), {"atten_mask": torch.zeros(S, S)}, "bool or uint8"),
        ((N, "BNSD"), {"atten_mask": torch.zeros(B, 1, 1, S, dtype=torch.bool)}, "atten_mask"),
        ((N, "BNSD"), {"atten_mask": torch.zeros(1, N, S, S, dtype=torch.bool)}, "atten_mask"),
        ((N, "BNSD"), {"sparse_mode": 2}, "2048"),
        ((N, "BNSD"), {"next_tockens": 0}, "band"),
        ((N, "BNSD"), {"pse": torch.zeros(1)}, "pse is not modelled"),
        ((N, "BNSD"), {"keep_prob": 0.9}, "dropout is not modelled"),
    ],
)
def test_attention_refuses(arguments, options, message):
    q = noise(B, N, S, D)
    with pytest.raises(RuntimeError, match=message):
        KERNELS["npu_fusion_attention_v3"](q, q, q, *arguments, **options)


@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        (noise(B, 3, S, D), noise(B, 3, S, D), "multiple"),
        (noise(B, N, S, D), noise(B, N, S - 1, D), "do not fit"),
        (noise(B, N, S, D).half(), noise(B, N, S, D), "float16"),
        (noise(B, N, S, D).double(), noise(B, N, S, D), "key is torch.float64"),
    ],
)
def test_attention_refuses_keys(k, v, message):
    with pytest.raises(RuntimeError, match=message):
        KERNELS["npu_fusion_attention"](noise(B, N, S, D), k, v, N, "BNSD")


def test_attention_refuses_large_heads():
    q = noise(1, 1, 2, 513)
    with pytest.raises(RuntimeError, match="above 512"):
        KERNELS["npu_fusion_attention"](q, q, q, 1, "BNSD")


def test_attention_for_inference():
    q, k = noise(B, N, S, D).half(), noise(B, N // 2, S, D).half()
    call = {"num_heads": N, "num_key_value_heads": N // 2, "scale_value": D**-0.5, "next_tokens": UNBOUNDED}
    attended = KERNELS["npu_prompt_flash_attention"](q, k, k, input_layout="BNSD_BSND", **call)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), k.float(), enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(attended.float(), expected, atol=2e-3, rtol=1e-3)
    with pytest.raises(RuntimeError, match="causal band"):
        KERNELS["npu_prompt_flash_attention"](q, k, k, input_layout="BNSD", **{**call, "next_tokens": 0})
    with pytest.raises(RuntimeError, match="float32"):
        KERNELS["npu_prompt_flash_attention"](q.float(), k.float(), k.float(), input_layout="BNSD", **call)
