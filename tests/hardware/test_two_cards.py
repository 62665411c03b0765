"""On two cards: the same images as on one."""

from __future__ import annotations

import pytest
import torch
from golden import CASES, TINY, denoised

from deepgen_npu import DeepGenPipeline


TOLERANCE = 1e-3  # float32, as in test_accuracy


@pytest.fixture
def second(device) -> torch.device:
    count = getattr(torch, device.type).device_count()
    if count < 2:
        pytest.skip(f"this machine has {count} card")
    return torch.device(device.type, 1)


@pytest.mark.parametrize("case", CASES)
def test_vlm_and_connector_on_the_second_card(device, second, case):
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device=device, text_encoder_device=second)
    pipe.set_progress_bar_config(disable=True)
    ours, golden = denoised(pipe, case)
    assert (ours - golden).abs().max() <= TOLERANCE


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_branch_of_guidance_on_each_card(device, second, case, captured):
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device=device)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_cfg_parallel(second)
    pipe.capture_graph = captured
    ours, golden = denoised(pipe, case)
    assert (ours - golden).abs().max() <= TOLERANCE
