"""LoRAs where weights move, are copied or are read by a graph: they give what merged weights give on one card."""

from __future__ import annotations

import pytest
import torch
from lora_files import Example, equal, latents, merged, state

from dev.npu_simulator.simulated import state as simulated


TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def example(on_cpu) -> Example:
    return Example.of(on_cpu.transformer)


@pytest.fixture
def file(example, tmp_path):
    return example.save(tmp_path / "style.safetensors")


@pytest.fixture(scope="module")
def expected(load, example) -> torch.Tensor:
    """Latents of merged weights, on one card."""
    pipe = load("npu:0")
    plain = latents(pipe)
    pipe.transformer.load_state_dict(merged(state(pipe.transformer), example.deltas()))
    found = latents(pipe)
    assert (found - plain).abs().max() > 0.1
    return found


def off(pipe, expected: torch.Tensor) -> float:
    return (latents(pipe) - expected).abs().max().item()


def test_on_the_card_and_in_a_captured_graph(load, file, expected):
    pipe = load("npu:0")
    before, plain = state(pipe.transformer), latents(pipe)
    pipe.load_lora_weights(file)
    eager = latents(pipe)
    assert (eager - expected).abs().max() <= TOLERANCE
    pipe.capture_graph = True
    assert torch.equal(latents(pipe), eager) and simulated.counts.operators["replay of a graph"] == 4
    pipe.set_adapters("style", 0)
    assert equal(state(pipe.transformer), before) and torch.equal(latents(pipe), plain)


def test_with_offload(load, file, expected):
    """Weights are merged where they wait; another part of the run has moved them in the meantime."""
    pipe = load("cpu")
    before = state(pipe.transformer)
    pipe.enable_model_cpu_offload("npu:0")
    pipe.load_lora_weights(file)
    pipe.placement.activate("transformer")
    pipe.unload_lora_weights()
    assert equal(state(pipe.transformer), before)
    pipe.load_lora_weights(file)
    pipe.placement.release()
    assert off(pipe, expected) <= TOLERANCE
    pipe.unload_lora_weights()
    assert equal(state(pipe.transformer), before)


@pytest.mark.parametrize("first", ["LoRA", "second card"])
def test_with_guidance_on_two_cards(load, file, expected, first):
    pipe = load("npu:0")
    before = state(pipe.transformer)
    if first == "LoRA":
        pipe.load_lora_weights(file)
    pipe.enable_cfg_parallel("npu:1")
    if first != "LoRA":
        pipe.load_lora_weights(file)
    (copy,) = pipe._cfg_transformers
    assert equal(state(copy), state(pipe.transformer)) and str(copy.proj_out.weight.device) == "npu:1"
    assert off(pipe, expected) <= TOLERANCE
    pipe.unload_lora_weights()
    assert equal(state(pipe.transformer), before) and equal(state(copy), before)
