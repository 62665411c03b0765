"""The whole pipeline on the card: the same numbers as on the CPU, by the fused operators."""

from __future__ import annotations

import logging
from importlib.metadata import version

import pytest
import torch
import torch.nn.functional as F
from golden import CASES, TINY, denoised, differences, load_case

from deepgen_npu import DeepGenPipeline, npu_fallback
from deepgen_npu.model.architecture import stacked_states
from dev.npu_simulator import host_npu, schemas


HERE = schemas.of(version("torch_npu"))
TOLERANCE = 1e-4  # of tests/deepgen_npu/test_golden.py, as are those of lower precision below
# torch_npu 2.9.0 has the older one alone.
ATTENTION = f"npu::{'npu_fusion_attention_v3' if 'npu_fusion_attention_v3' in HERE else 'npu_fusion_attention'}"
PARTS = ("vlm", "connector", "transformer", "vae")


def load(dtype: torch.dtype = torch.float32, **options) -> DeepGenPipeline:
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=dtype, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def devices_of(pipe: DeepGenPipeline) -> dict[str, str]:
    return {part: next(getattr(pipe, part).parameters()).device.type for part in PARTS}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_original(npu_pipe, case):
    assert set(devices_of(npu_pipe).values()) == {"npu"}
    found = differences(npu_pipe, case)
    assert {"prompt_embeds", "first_model_output", "final_latents", "image"} <= found.keys()
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.6), (torch.float16, 0.1)])
@pytest.mark.parametrize("case", CASES)
def test_lower_precision_stays_close(case, dtype, tolerance):
    """The fused operators refuse arguments of unequal dtypes."""
    found = differences(load(dtype, device="npu"), case)
    assert found["final_latents"] <= tolerance, found


def test_eager_attention_agrees():
    pipe = load(device="npu", attn_implementation="eager")
    found = differences(pipe, "t2i_batch")
    assert max(found.values()) <= TOLERANCE, found


def test_moving_there_and_back():
    pipe = load()
    assert set(devices_of(pipe).values()) == {"cpu"}
    assert set(devices_of(pipe.to("npu")).values()) == {"npu"}
    assert max(differences(pipe, "edit").values()) <= TOLERANCE
    assert set(devices_of(pipe.to("cpu")).values()) == {"cpu"}


@pytest.mark.parametrize("case", CASES)
def test_model_offload_agrees(case):
    pipe = load()
    before = torch.npu.memory_allocated()
    pipe.enable_model_cpu_offload("npu")
    seen = []
    for part in PARTS:
        getattr(pipe, part).register_forward_pre_hook(lambda *_: seen.append(devices_of(pipe)))
    found = differences(pipe, case)
    assert max(found.values()) <= TOLERANCE, found
    assert seen and all(list(devices.values()).count("npu") == 1 for devices in seen)
    pipe.placement.release()
    assert set(devices_of(pipe).values()) == {"cpu"}
    assert torch.npu.memory_allocated() == before


@pytest.mark.parametrize("case", CASES)
def test_which_operators_run(npu_pipe, case, monkeypatch):
    attentions = []
    original = F.scaled_dot_product_attention

    def spy(*arguments, **options):
        attentions.append(options)
        return original(*arguments, **options)

    # torch_npu's choice is in C++, behind this function.
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with host_npu.counted_calls() as counts:
        differences(npu_pipe, case)

    vlm = npu_pipe.vlm
    layers = stacked_states(len(vlm.model.language_model.layers))[0]  # those above never run
    layers += vlm.config.vision_config.depth if case == "edit" else 0
    assert counts["npu::npu_swiglu"] == layers
    assert counts["npu::npu_rotary_mul"] == 2 * layers  # queries and keys
    assert counts["npu::npu_rms_norm"] > 2 * layers  # two a layer, and those of the DiT
    # The VAE's attention goes through PyTorch's function, all else calls the operator.
    images = len(load_case(case)[0]["prompt"])
    assert len(attentions) == images + (case == "edit")
    assert counts[ATTENTION] > len(attentions) + layers
    # What a float mask, three dimensions or a head above 512 would get: the whole matrix of scores in memory.
    assert "aten::softmax" not in counts and "aten::_softmax" not in counts
    assert npu_fallback.named() == [], "operators that torch_npu computes on the CPU"


def test_a_float_mask_takes_the_unfused_route():
    """Of the stand-in itself: what the test above looks for is what torch_npu does."""
    q = torch.randn(1, 2, 8, 16, device="npu")
    with host_npu.counted_calls() as counts:
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros(1, 1, 8, 8, device="npu"))
    assert counts["aten::softmax"] == 1
    assert ATTENTION not in counts


def test_graphs_that_cannot_be_captured_cost_nothing_but_a_warning(npu_pipe, caplog):
    """The stand-in has no graphs, as an old CANN has none."""
    latents, stream = [], torch.npu.current_stream()
    try:
        for captured in (False, True):
            npu_pipe.capture_graph = captured
            with caplog.at_level(logging.WARNING):
                latents.append(denoised(npu_pipe, "t2i")[0])
            assert ("could not be captured in a graph" in caplog.text) is captured
    finally:
        npu_pipe.capture_graph = False
    assert torch.equal(*latents)
    assert torch.npu.current_stream() == stream, "not that of the graph"
