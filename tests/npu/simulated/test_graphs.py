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


def drawn(pipe, prompt, seed=0, steps=3, callback=None):
    conditioning = pipe.encode(prompt, None, "", 64, 64)
    state.counts.operators.clear()
    return pipe.denoise(conditioning, pipe.prepare_latents(1, 64, 64, seed=seed), steps, 4.0, callback)


@pytest.fixture(scope="module")
def expected(load):
    pipe = load()
    return {prompt: drawn(pipe, prompt) for prompt in ("a red circle", "a red square", "a green line")}


@pytest.fixture
def captured(load):
    pipe = load()
    pipe.capture_graph = True
    return pipe


CAPTURES = 2 + 1
"""Evaluations before the first replay: to warm up, and captured."""


def launched() -> int:
    """Evaluations whose operators the host launched, by one that each has once."""
    return state.counts.operators["aten::convolution"]


def test_the_next_run_replays_the_same_graph(captured, expected):
    """With its own prompt: what a run fixes is copied to where the graph reads it."""
    for number, (prompt, latents) in enumerate(expected.items()):
        assert torch.equal(drawn(captured, prompt), latents)
        assert state.counts.operators["replay of a graph"] == 3
        assert launched() == (CAPTURES if number == 0 else 0)
    assert len(captured.graphs) == 1


def test_weights_that_moved_are_captured_again(captured, expected):
    drawn(captured, "a green line")
    captured.to("npu:1")
    assert len(captured.graphs) == 0
    drawn(captured, "a green line")
    projection = captured.transformer.proj_out  # behind the pipeline's back
    projection.weight = torch.nn.Parameter(projection.weight.clone(), requires_grad=False)
    assert torch.equal(drawn(captured, "a green line").cpu(), expected["a green line"].cpu())
    assert launched() == CAPTURES


def test_a_run_within_a_run_has_a_graph_of_its_own(captured, expected):
    drawn(captured, "a green line")
    within = []

    def callback(pipe, step, timestep, kwargs):
        if step == 1:
            conditioning = pipe.encode("a red square", None, "", 64, 64)
            within.append(pipe.denoise(conditioning, pipe.prepare_latents(1, 64, 64, seed=0), 3, 4.0))

    assert torch.equal(drawn(captured, "a red circle", callback=callback), expected["a red circle"])
    assert torch.equal(within[0], expected["a red square"])


def test_turned_off_it_gives_the_memory_back(captured, expected):
    drawn(captured, "a green line")
    assert len(captured.graphs) == 1
    captured.capture_graph = False
    assert torch.equal(drawn(captured, "a green line"), expected["a green line"])
    assert len(captured.graphs) == 0


def test_offloaded_parts_leave_no_graph_on_the_card(captured):
    captured.enable_model_cpu_offload("npu:0")
    drawn(captured, "a green line")
    captured.placement.release()
    assert len(captured.graphs) == 0


def test_graphs_make_room_when_memory_is_short(captured, monkeypatch):
    drawn(captured, "a green line")
    assert len(captured.graphs) == 1
    decode, tries = captured.vae.decode, []

    def out_of_memory_once(latents):
        tries.append(len(captured.graphs))
        if len(tries) == 1:
            raise RuntimeError("NPU out of memory. Tried to allocate 1 GiB")
        return decode(latents)

    monkeypatch.setattr(captured.vae, "decode", out_of_memory_once)
    captured.decode_latents(captured.prepare_latents(1, 64, 64, seed=0))
    assert tries == [1, 0]


def test_no_more_graphs_are_kept_than_there_should_be(captured):
    for steps, side in ((1, 64), (1, 96), (1, 128)):
        conditioning = captured.encode("a green line", None, "", side, side)
        captured.denoise(conditioning, captured.prepare_latents(1, side, side, seed=0), steps, 4.0)
    assert len(captured.graphs) == 2
