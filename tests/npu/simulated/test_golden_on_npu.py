"""Agreement with the original implementation, on the card and on the CPU of the same host."""

from __future__ import annotations

import pytest
import torch
from golden import CASES, differences

from dev.npu_simulator.simulated import state


TOLERANCE = 1e-4


@pytest.mark.parametrize("case", CASES)
def test_the_card_agrees_with_the_original(on_npu, case, golden_table):
    found = differences(on_npu, case)
    golden_table.extend(
        (f"{case} (simulated NPU)", tensor, found[tensor]) for tensor in ("prompt_embeds", "final_latents", "image")
    )
    assert found["initial_latents"] == 0
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("case", CASES)
def test_the_cpu_agrees_although_torch_npu_is_installed(on_cpu, case, golden_table):
    """diffusers' RMSNorm calls npu_rms_norm wherever the package is: the report's known problem."""
    from diffusers.models.normalization import RMSNorm
    from diffusers.utils import is_torch_npu_available

    assert is_torch_npu_available()
    with pytest.raises(NotImplementedError, match="npu_rms_norm"):
        RMSNorm(8, eps=1e-6)(torch.randn(2, 8))
    found = differences(on_cpu, case)
    golden_table.append((f"{case} (CPU, torch_npu installed)", "final_latents", found["final_latents"]))
    assert max(found.values()) <= TOLERANCE, found
    assert not any(name.startswith("npu::") for name in state.counts.operators)


def test_card_and_cpu_from_the_same_noise(on_npu, on_cpu, counts_table):
    arguments = {"height": 64, "width": 96, "num_inference_steps": 4, "seed": 7, "output_type": "pt"}
    here, there = (pipe("a red circle", **arguments).images for pipe in (on_cpu, on_npu))
    assert there.device.type == "cpu" or there.device.type == "npu"
    difference = (here - there.cpu()).abs().max().item()
    counts_table.append(("image on the CPU against the card, same seed", f"{difference:.1e}"))
    assert difference <= TOLERANCE


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.6), (torch.float16, 0.1)])
def test_lower_precision_on_the_card(load, dtype, tolerance):
    """No float64, no complex, no Conv3D in bfloat16: the device refuses them. The bound is that of the CPU's test."""
    pipe = load(torch_dtype=dtype)
    for case in CASES:
        found = differences(pipe, case)
        assert found["final_latents"] <= tolerance, (case, found)


@pytest.mark.parametrize("case", CASES)
def test_masks_are_boolean_or_absent_and_never_expanded(on_npu, case):
    differences(on_npu, case)
    assert state.counts.operators["npu::npu_fusion_attention_v3"] > 0
    assert state.counts.operators["unfused attention"] == 0
    assert state.counts.operators["expansion of a mask"] == 0
