"""The modulation norm of MindIE-SD: used where it is right, in one launch, and nowhere else."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from golden import denoised

from deepgen_npu.model import adaptive_norm
from dev.npu_simulator import simulated_mindiesd
from dev.npu_simulator.simulated import state


NPU = torch.device("npu:0")
NAME = simulated_mindiesd.NAME


def modulated(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """What `modulated_norms` makes of a norm with two modulations, and the same in float32; [2, 2, 6, 32] both."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 6, 32, generator=generator).to(dtype)
    shift, scale = torch.randn(2, 2, 1, 32, generator=generator).to(dtype).unbind()
    given = scale.to(NPU) if adaptive_norm.fused_norm(scale.to(NPU)) else scale.to(NPU) + 1
    found = adaptive_norm.modulated_norms(x.to(NPU), [(shift.to(NPU), given), (scale.to(NPU), given)])
    expected = F.layer_norm(x.float(), (32,), eps=1e-6) * (1 + scale.float())
    return torch.stack([one.cpu() for one in found]), expected + torch.stack([shift, scale]).float()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
def test_it_computes_what_the_plain_form_does(dtype, tolerance):
    with simulated_mindiesd.installed(), torch.no_grad():
        found, expected = modulated(dtype)
    assert state.counts.operators[NAME] == 3  # once for the check
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    found, expected = modulated(dtype)
    assert state.counts.operators[NAME] == 3
    torch.testing.assert_close(found.float(), expected, atol=2 * tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("case", ["edit", "t2i_batch"])
def test_a_run_agrees_with_the_original(load, case, counts_table):
    plain, golden = denoised(load(), case)
    assert (plain - golden).abs().max() <= 1e-4 and not state.counts.operators[NAME]
    norms = state.counts.operators["aten::layer_norm"] + state.counts.operators["aten::native_layer_norm"]
    with simulated_mindiesd.installed():
        pipe = load()
        ours, golden = denoised(pipe, case)
        assert (ours - golden).abs().max() <= 1e-4
        counts_table.append((f"modulation norms of {case}, mindiesd", f"{state.counts.operators[NAME]}"))
        assert state.counts.operators[NAME] > norms / 2 > 0
        pipe.capture_graph = True
        captured, _ = denoised(pipe, case)
        assert torch.equal(captured, ours)


def adds_nothing(x, scale, *others):
    """It does not add one to the scale."""
    return simulated_mindiesd.adaln(x, scale - 1, *others)


def reads_neighbours(x, scale, *others):
    """It takes rows to follow one another in memory, which those of a modulation do not."""
    return simulated_mindiesd.adaln(x, scale.as_strided(scale.shape, (scale.shape[-1],) * 2 + (1,)), *others)


def makes_nan(x, *others):
    return simulated_mindiesd.adaln(x, *others) * float("nan")


@pytest.mark.parametrize("wrong", [adds_nothing, reads_neighbours, makes_nan])
def test_a_wrong_kernel_is_not_used(wrong, caplog):
    with simulated_mindiesd.installed(wrong), caplog.at_level(logging.WARNING):
        found, expected = modulated()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "mindiesd is wrong on npu:0" in caplog.text


def test_a_card_without_the_kernel(caplog):
    def missing(*arguments, **options):
        raise RuntimeError("aclnnAdaLayerNorm not in libopapi.so\nmore")

    with simulated_mindiesd.installed(missing), caplog.at_level(logging.WARNING):
        found, expected = modulated()
        modulated()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    [record] = caplog.records
    assert record.message.endswith("so the plain one is used: aclnnAdaLayerNorm not in libopapi.so")


def test_a_lora_is_trained_through_the_plain_form():
    """The kernel has no gradient."""
    expected = gradients()
    with simulated_mindiesd.installed():
        assert torch.equal(gradients(), expected) and expected.abs().min() > 0
        with torch.no_grad():
            modulated()
    assert state.counts.operators[NAME] == 3  # once for the check


def gradients() -> torch.Tensor:
    """Those of two shifts, [2, 1, 32]."""
    generator = torch.Generator().manual_seed(4)
    x, modulation = (torch.randn(2, tokens, 32, generator=generator).to(NPU) for tokens in (6, 1))
    scale = modulation if adaptive_norm.fused_norm(modulation) else modulation + 1
    shift = modulation.clone().requires_grad_()
    [found] = adaptive_norm.modulated_norms(x, [(shift, scale)])
    return torch.autograd.grad(found.square().sum(), shift)[0].cpu()


def test_where_it_is_not_asked(monkeypatch):
    """float16, whose sums are in float32; cards from before the 910B; the CPU."""
    with simulated_mindiesd.installed():
        assert adaptive_norm.fused_norm(torch.zeros(1, device=NPU)) is not None
        assert adaptive_norm.fused_norm(torch.zeros(1, dtype=torch.float16, device=NPU)) is None
        assert adaptive_norm.fused_norm(torch.zeros(1)) is None
        monkeypatch.setattr(torch.npu, "is_bf16_supported", lambda: False)
        assert adaptive_norm.fused_norm(torch.zeros(1, device=NPU)) is None
