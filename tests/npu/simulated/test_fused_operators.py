"""Every fused call, checked three ways: arguments, rules, numbers.

The simulated operators have the real schemas (tests/npu/torch_npu compares them with the package), so arguments that
do not fit never arrive; their kernels refuse what CANN's rules forbid; and here the numbers are compared with the
plain path.
"""

from __future__ import annotations

import inspect
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from golden import denoised, load_case

from deepgen_npu.model import ops
from dev.npu_simulator.simulated import state


NPU = torch.device("npu:0")
EXACT = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Largest relative difference: float32 rounds in another order; the others round once less than the plain path."""


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(name: str, given: dict) -> torch.Tensor:
    """What `ops` computes on every other device."""
    if name == "npu_rms_norm":
        return ops.rms_norm(given["input"], given["gamma"], given["epsilon"])
    if name == "npu_swiglu":
        return ops.swiglu(*given["input"].chunk(2, dim=given["dim"]))
    assert name == "npu_rotary_mul" and given["rotary_mode"] == "half"
    return ops.rotary(given["input"], given["r1"], given["r2"])


@pytest.fixture
def recorded(monkeypatch):
    """(operator, arguments by name, result) of each fused call, as plain tensors."""
    calls = []

    def record(name, kernel):
        def call(*arguments, **options):
            result = kernel(*arguments, **options)
            given = inspect.signature(kernel).bind(*arguments, **options)
            given.apply_defaults()  # the dispatcher leaves them out
            calls.append((name, given.arguments, result[0] if isinstance(result, tuple) else result))
            return result

        return call

    for key, kernel in list(state.references.items()):
        if key.startswith("npu::"):
            monkeypatch.setitem(state.references, key, record(key.removeprefix("npu::"), kernel))
    return calls


@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize("case", ["edit", "t2i_batch"])
def test_each_fused_call_of_a_run_computes_the_plain_path(load, recorded, case, dtype, counts_table):
    pipe = load(torch_dtype=dtype)
    call, references, golden = load_case(case)
    steps, scale = call.pop("num_inference_steps"), call.pop("guidance_scale")
    conditioning = pipe.encode(image=references or None, **call)
    latents = pipe.denoise(conditioning, golden["initial_latents"], steps, scale)
    pipe.decode(latents)

    worst: dict[str, float] = {}
    for name, given, result in recorded:
        if name == "npu_fusion_attention_v3":
            left_out = given["atten_mask"]
            mask = None if left_out is None else ~left_out
            assert mask is None or mask.any(dim=-1).all(), "a row that may attend to nothing"
            q, k, v = (given[tensor] for tensor in ("query", "key", "value"))
            if given["input_layout"] == "BNSD":  # through PyTorch's function: the VAE
                expected = F.scaled_dot_product_attention(q, k, v, mask)
            else:
                expected = ops.attention(q, k, v, mask)
        else:
            expected = plain(name, given)
        difference = (result.float() - expected.float()).abs().max() / expected.float().abs().max()
        worst[name] = max(worst.get(name, 0.0), difference.item())
    calls = Counter(name for name, *_ in recorded)
    vlm_layers, blocks = 35, pipe.transformer.config["num_layers"]
    duals = len(pipe.transformer.config["dual_attention_layers"])
    vision = pipe.vlm.config.vision_config.depth if references else 0
    assert calls["npu_swiglu"] == vlm_layers + vision
    assert calls["npu_rotary_mul"] == 2 * (vlm_layers + vision)
    # Queries and keys: two norms for each side of the joint attention, two for the second attention. Of the last block
    # the queries of the context are not read.
    assert calls["npu_rms_norm"] == 2 * vlm_layers + (2 * vision + bool(vision)) + steps * (4 * blocks + 2 * duals - 1)
    if dtype == torch.float32:
        counts_table.append(
            (f"fused calls of {case}", ", ".join(f"{n} x {name}" for name, n in sorted(calls.items())))
        )
    assert all(value <= EXACT[dtype] for value in worst.values()), worst
    assert set(calls) == {"npu_rms_norm", "npu_rotary_mul", "npu_swiglu", "npu_fusion_attention_v3"}


@pytest.mark.parametrize("case", ["edit", "t2i_batch"])
def test_a_release_without_the_third_form_of_attention(on_npu, monkeypatch, case):
    monkeypatch.setattr(ops, "_fused_attention", lambda: torch.ops.npu.npu_fusion_attention)
    ours, golden = denoised(on_npu, case)
    assert (ours - golden).abs().max() <= 1e-4
    assert state.counts.operators["npu::npu_fusion_attention"] > 0


def test_gelu_stays_the_tanh_form(on_npu):
    """npu_fast_gelu is up to 0.02 away from what the model was trained with."""
    on_npu("a red circle", height=64, width=64, num_inference_steps=1, seed=0, output_type="latent")
    assert state.counts.operators["aten::gelu"] > 0
    assert not {"npu::npu_fast_gelu", "npu::npu_gelu", "npu::npu_geglu"} & set(state.counts.operators)
    x = torch.linspace(-4, 4, 101)
    apart = (torch.ops.npu.npu_fast_gelu(x.to(NPU)).cpu() - F.gelu(x, approximate="tanh")).abs().max()
    assert 0.01 < apart < 0.03


class TestRules:
    """What the checks refuse, so that their silence says something."""

    def test_arguments(self):
        x = noise(2, 8).to(NPU)
        with pytest.raises(RuntimeError, match="gamma"):
            torch.ops.npu.npu_rms_norm(x)
        with pytest.raises(RuntimeError, match="Unknown keyword"):
            torch.ops.npu.npu_rms_norm(x, x[0], eps=1e-6)

    def test_norms(self):
        with pytest.raises(RuntimeError, match="gamma"):
            ops.rms_norm(noise(2, 8).to(NPU), noise(4).to(NPU), 1e-6)
        with pytest.raises(RuntimeError, match=r"gamma must be torch\.bfloat16 like the input, got torch\.float32"):
            ops.rms_norm(noise(2, 8, dtype=torch.bfloat16).to(NPU), noise(8).to(NPU), 1e-6)

    def test_rotary_tables(self):
        with pytest.raises(RuntimeError, match="no layout"):
            ops.rotary(noise(2, 4, 6, 8).to(NPU), noise(2, 1, 5, 8).to(NPU), noise(2, 1, 5, 8).to(NPU))
        with pytest.raises(RuntimeError, match="4 dimensions"):
            ops.rotary(noise(4, 6, 8).to(NPU), noise(1, 6, 8).to(NPU), noise(1, 6, 8).to(NPU))

    def test_float_masks_are_not_fused(self):
        q = noise(1, 2, 4, 8).to(NPU)
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros(1, 1, 4, 4).to(NPU))
        assert state.counts.operators["unfused attention"] == 1

    def test_masks_with_one_row_are_expanded(self):
        q = noise(1, 2, 4, 8).to(NPU)
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(1, 1, 1, 4, dtype=torch.bool).to(NPU))
        assert state.counts.operators["expansion of a mask"] == 1

    def test_the_sense_of_a_mask(self):
        q = noise(1, 2, 4, 8)
        mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
        on_npu = F.scaled_dot_product_attention(*(q.to(NPU),) * 3, attn_mask=mask.to(NPU)).cpu()
        torch.testing.assert_close(on_npu, F.scaled_dot_product_attention(q, q, q, attn_mask=mask))
        with pytest.raises(RuntimeError, match="bool or uint8"):
            torch.ops.npu.npu_fusion_attention(*(q.to(NPU),) * 3, 2, "BNSD", atten_mask=torch.zeros(4, 4).to(NPU))

    @pytest.mark.parametrize(("heads", "layout"), [(3, "BNSD"), (2, "BSND"), (2, "XXXX")])
    def test_heads_and_layouts(self, heads, layout):
        q = noise(1, 2, 4, 8).to(NPU)
        with pytest.raises(RuntimeError, match=r"heads|layout"):
            torch.ops.npu.npu_fusion_attention(q, q, q, heads, layout)

    def test_wide_numbers(self):
        with pytest.raises(RuntimeError, match="float64 is not supported"):
            torch.ones(2, dtype=torch.float64).to(NPU)
        with pytest.raises(RuntimeError, match="Conv3D does not support bfloat16"):
            F.conv3d(noise(1, 1, 2, 4, 4, dtype=torch.bfloat16).to(NPU), noise(1, 1, 2, 2, 2).bfloat16().to(NPU))

    def test_cards_do_not_mix(self):
        with pytest.raises(RuntimeError, match=r"npu:0 and npu:1"):
            torch.ones(2, device="npu:0") + torch.ones(2, device="npu:1")
        with pytest.raises(RuntimeError, match=r"npu:0 and cpu"):
            torch.ones(2, device="npu:0") + torch.ones(2)
