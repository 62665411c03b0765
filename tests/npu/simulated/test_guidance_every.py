"""The negative branch of guidance in every n-th step: what a step costs then, its two graphs, and two cards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dev.npu_simulator.simulated import reset, state


PROMPTS = "a red circle", "a green line"


@pytest.fixture(scope="module")
def given(on_npu):
    """Conditioning by prompt and side, and noise by side."""
    encoded = {prompt: on_npu.encode(prompt, None, "", 64, 64) for prompt in PROMPTS}
    conditionings = {
        (prompt, side): replace(one, height=side, width=side)  # texts have no size of their own
        for prompt, one in encoded.items()
        for side in (64, 96, 128)
    }
    return conditionings, {side: on_npu.prepare_latents(1, side, side, seed=0) for side in (64, 96, 128)}


@pytest.fixture(scope="module")
def draw(given):
    """Latents of a run, on the CPU."""
    conditionings, noise = given

    def draw(pipe, prompt=PROMPTS[0], every=2, *, steps=4, scale=4.0, side=64, callback=None):
        reset()
        latents = pipe.denoise(conditionings[prompt, side], noise[side], steps, scale, callback, guidance_every=every)
        return latents.cpu()

    return draw


@pytest.fixture
def captured(load):
    pipe = load()
    pipe.capture_graph = True
    return pipe


def replays() -> int:
    return state.counts.operators["replay of a graph"]


def launched() -> int:
    """Evaluations whose operators the host launched, by one that each has once."""
    return state.counts.operators["aten::convolution"]


def of_two_steps(draw, *arguments, **options) -> tuple[int, int]:
    """Launches, and copies and waits, that two more steps cost."""
    counts = []
    for steps in (2, 4):
        draw(*arguments, steps=steps, **options)
        found = state.counts
        moved = found.host_to_device[0] + found.device_to_host[0] + sum(found.waits.values())
        counts.append((found.launches(), moved))
    (few, before), (many, after) = counts
    return many - few, after - before


def test_a_step_without_the_negative_rows_costs_an_unguided_one_and_a_sum(on_npu, draw):
    guided, unguided = (of_two_steps(draw, on_npu, every=1, scale=scale) for scale in (4.0, 1.0))
    launches, moved = of_two_steps(draw, on_npu)
    assert launches == guided[0] / 2 + unguided[0] / 2 + 1
    assert moved == guided[1] == unguided[1] == 0


def test_two_graphs_give_the_same_bits_and_serve_the_next_run(on_npu, captured, draw):
    for number, prompt in enumerate((*PROMPTS, PROMPTS[0])):
        expected = draw(on_npu, prompt)
        assert torch.equal(draw(captured, prompt), expected)
        assert replays() == 4
        assert launched() == (2 * 3 if number == 0 else 0), "two evaluations to warm up, and one captured, of each"
        assert len(captured.graphs) == 2
    launches, moved = of_two_steps(draw, captured)
    # Each: the replay, two inputs copied in, the scheduler's step. The first has guidance's three, the other its sum.
    assert (launches, moved) == (9 + 7, 0)


def test_no_graph_reads_what_another_writes(on_npu, captured, draw):
    """In a guided run, one without guidance takes the graph of the positive rows, with a prompt of its own."""
    draw(captured)
    assert len(captured.graphs) == 2
    within = []

    def callback(pipe, step, timestep, kwargs):
        if step == 0:
            within.append(draw(pipe, PROMPTS[1], 1, scale=1.0))

    expected = draw(on_npu, every=1), draw(on_npu, PROMPTS[1], 1, scale=1.0)
    assert torch.equal(draw(captured, every=1, callback=callback), expected[0])
    assert torch.equal(within[0], expected[1])


def test_two_settings_do_not_drop_each_others_graphs_and_three_do(captured, draw):
    """The graph of a run without guidance becomes that of steps in between."""
    draw(captured, every=1, scale=1.0, steps=2)
    for side in (64, 96):
        draw(captured, side=side, steps=2)
    for side in (64, 96):
        draw(captured, side=side, steps=2)
        assert (launched(), replays()) == (0, 2)
    draw(captured, side=128, steps=2)
    assert len(captured.graphs) == 4


def test_the_card_of_the_negative_branch_rests_in_between(on_npu, load, draw):
    expected = draw(on_npu, every=3)
    pipe = load()
    pipe.enable_cfg_parallel("npu:1")
    for capture in (False, True):
        pipe.capture_graph = capture
        latents = draw(pipe, every=3)
        assert (latents - expected).abs().max() < 1e-4
        # Timesteps and embeddings once; latents there and the velocity back in the steps 0 and 3.
        assert state.counts.between_devices[0] == 3 + 2 * 2
        assert replays() == (4 + 2 if capture else 0)
