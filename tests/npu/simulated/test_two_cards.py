"""Parts on two cards, and the two branches of guidance on two cards: the same images as on one card."""

from __future__ import annotations

import pytest
from golden import CASES, denoised, differences, load_case

from dev.npu_simulator.simulated import reset, state


TOLERANCE = 1e-4


def devices_of(pipe) -> dict[str, str]:
    parts = ("vlm", "connector", "transformer", "vae")
    return {part: str(next(pipe.components[part].parameters()).device) for part in parts}


@pytest.fixture(scope="module")
def apart(load):
    return load("npu:0", text_encoder_device="npu:1")


def test_vlm_and_connector_have_a_card_of_their_own(apart, load):
    expected = {"vlm": "npu:1", "connector": "npu:1", "transformer": "npu:0", "vae": "npu:0"}
    assert devices_of(apart) == expected
    moved = load("cpu")
    moved.to("npu:0", text_encoder_device="npu:1")
    assert devices_of(moved) == expected
    moved.to("npu:1")
    assert set(devices_of(moved).values()) == {"npu:1"}


@pytest.mark.parametrize("case", CASES)
def test_parts_on_two_cards_agree_with_the_original(apart, case, golden_table):
    found = differences(apart, case)
    golden_table.append((f"{case} (VLM on npu:1, DiT on npu:0)", "final_latents", found["final_latents"]))
    assert max(found.values()) <= TOLERANCE, found
    assert state.counts.between_devices[0] > 0


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_guidance_on_two_cards_agrees_with_the_original(load, case, captured, golden_table):
    pipe = load("npu:0")
    pipe.enable_cfg_parallel("npu:1")
    pipe.capture_graph = captured
    reset()  # the weights went over
    ours, golden = denoised(pipe, case)
    difference = (ours - golden).abs().max().item()
    kind = "captured" if captured else "eager"
    golden_table.append((f"{case} (CFG on two cards, {kind})", "final_latents", difference))
    assert difference <= TOLERANCE
    # A step sends the latents over and the velocity back; timesteps, embeddings and references went over once.
    call, references, _ = load_case(case)
    steps = call["num_inference_steps"]
    assert state.counts.between_devices[0] == 2 * steps + 3 + len(references)
    assert state.counts.operators["replay of a graph"] == (2 * steps if captured else 0)


def test_the_second_dit_needs_a_second_card_and_is_given_back(load):
    pipe = load("npu:0")
    with pytest.raises(
        ValueError, match=r"^device must be another device than npu:0, which the DiT is on, got 'npu:0'\.$"
    ):
        pipe.enable_cfg_parallel("npu:0")
    before = state.memory[1].now
    pipe.enable_cfg_parallel("npu:1")
    weights = sum(tensor.nbytes for tensor in pipe.transformer.state_dict().values() if not tensor.is_cpu)
    assert state.memory[1].now - before == weights
    pipe.to("npu:0")
    assert state.memory[1].now == before
    pipe.enable_model_cpu_offload("npu:0")
    with pytest.raises(ValueError, match=r"^CFG parallel and model offload cannot be combined: call to\(\) first"):
        pipe.enable_cfg_parallel("npu:1")


def test_without_guidance_the_second_card_is_left_alone(load):
    pipe = load("npu:0")
    expected = pipe("a red circle", height=64, width=64, num_inference_steps=2, guidance_scale=1.0, seed=0)
    pipe.enable_cfg_parallel("npu:1")
    before = list(state.counts.between_devices)
    again = pipe("a red circle", height=64, width=64, num_inference_steps=2, guidance_scale=1.0, seed=0)
    assert list(state.counts.between_devices) == before
    assert again.images[0].tobytes() == expected.images[0].tobytes()
