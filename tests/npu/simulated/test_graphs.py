"""Capture of the denoising step: the same to the bit, and one log line where it cannot be used."""

from __future__ import annotations

import pytest
import torch
from golden import denoised, load_case

from deepgen_npu.graphs import capture
from dev.npu_simulator.simulated import state


@pytest.mark.parametrize("case", ["edit", "t2i_batch"])
def test_the_pipeline_captures_on_request(load, case):
    pipe = load()
    expected, _ = denoised(pipe, case)
    assert state.counts.operators["replay of a graph"] == 0
    pipe.capture_graph = True
    assert torch.equal(denoised(pipe, case)[0], expected)
    assert state.counts.operators["replay of a graph"] == load_case(case)[0]["num_inference_steps"]


def test_on_the_cpu_it_falls_back_with_one_line(load, caplog):
    pipe = load("cpu")
    expected, _ = denoised(pipe, "edit")
    pipe.capture_graph = True
    assert torch.equal(denoised(pipe, "edit")[0], expected)
    (record,) = caplog.records
    assert "capture_graph needs an NPU or a CUDA device" in record.getMessage()


def test_what_cannot_be_captured_runs_eagerly_with_one_line(caplog):
    def waits(latents, modulation):
        return latents * modulation.sum().item()

    latents, modulation = torch.ones(2, device="npu"), torch.full((3,), 2.0, device="npu")
    step = capture(waits, latents, modulation)
    assert step is waits
    (record,) = caplog.records
    assert "could not be captured" in record.getMessage() and "waits for the device" in record.getMessage()
    assert state.capture is None, "the capture was ended"
    assert torch.equal(step(latents, modulation).cpu(), torch.full((2,), 6.0))


def test_a_replay_sees_new_inputs():
    step = capture(lambda latents, modulation: latents * 2 + modulation, *torch.ones(2, 3, device="npu").unbind())
    for value in (1.0, 5.0):
        result = step(torch.full((3,), value, device="npu"), torch.full((3,), 10.0, device="npu"))
        assert torch.equal(result.cpu(), torch.full((3,), 2 * value + 10))
