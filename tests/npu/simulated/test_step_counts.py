"""What a denoising step costs the host, at the depth of DeepGen 1.0 (24 blocks, 13 of them dual) and narrow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from deepgen_npu.conditioning import Conditioning
from deepgen_npu.denoising import denoise
from deepgen_npu.model.projections import lay_together
from deepgen_npu.model.transformer import predict_velocity
from dev.npu_simulator import simulated_mindiesd
from dev.npu_simulator.simulated import reset, state
from dev.speed import deep


NPU = torch.device("npu:0")
# The original makes 1,933 launches and 74 copies to the device.
MOST_LAUNCHES = 817
OF_EACH_LAYER = 937
"""Where queries, keys and values are products of their own."""
WITH_MINDIESD = 721


@pytest.fixture(scope="module")
def transformer():
    model = deep.transformer().to(NPU)
    lay_together(model)
    return model


@pytest.fixture
def conditioning(transformer) -> Callable[[int], Conditioning]:
    return lambda references: deep.conditioning(transformer, references, device=NPU)


def latents() -> torch.Tensor:
    return deep.latents(device=NPU)


def of_one_step(run) -> tuple[int, int, int, int]:
    """Launches, copies to the device, copies back and waits of one step: what two further steps add, halved.

    Args:
        run: Called with a number of steps.
    """

    def count(steps: int) -> tuple[int, int, int, int]:
        reset()
        run(steps)
        counts = state.counts
        copies = counts.host_to_device[0], counts.device_to_host[0]
        return counts.launches(), *copies, sum(counts.waits.values())

    few, many = count(2), count(4)
    differences = [after - before for before, after in zip(few, many, strict=True)]
    assert all(difference % 2 == 0 for difference in differences), differences
    launches, to_device, to_host, waits = (difference // 2 for difference in differences)
    return launches, to_device, to_host, waits


def run(transformer, given, steps, **options):
    with torch.no_grad():
        return denoise([transformer], deep.scheduler(), given, latents(), steps, 4.0, **options)


def described(counts: tuple[int, int, int, int]) -> str:
    launches, to_device, to_host, waits = counts
    return f"{launches} launches, {to_device} copies to the device, {to_host} copies back, {waits} waits"


@pytest.mark.parametrize("references", [0, 1, 2])
def test_an_eager_step(transformer, conditioning, references, counts_table):
    given = conditioning(references)
    counts = of_one_step(lambda steps: run(transformer, given, steps))
    counts_table.append((f"a step, 24 blocks, {references} reference(s), eager", described(counts)))
    assert counts[0] <= MOST_LAUNCHES
    assert counts[1:] == (0, 0, 0)


@pytest.mark.parametrize("references", [0, 1])
def test_a_step_of_weights_that_have_moved(transformer, conditioning, references, counts_table):
    given = conditioning(references)
    expected = run(transformer, given, 2)
    transformer.to("cpu").to(NPU)
    try:
        counts = of_one_step(lambda steps: run(transformer, given, steps))
        torch.testing.assert_close(run(transformer, given, 2).cpu(), expected.cpu(), atol=1e-4, rtol=1e-4)
    finally:
        lay_together(transformer)
    counts_table.append((f"the same, {references} reference(s), weights have moved", described(counts)))
    assert MOST_LAUNCHES < counts[0] <= OF_EACH_LAYER
    assert counts[1:] == (0, 0, 0)


@pytest.mark.parametrize("references", [0, 1])
def test_a_step_with_the_norm_of_mindiesd(transformer, conditioning, references, counts_table):
    given = conditioning(references)
    expected = run(transformer, given, 2)
    with simulated_mindiesd.installed():
        torch.testing.assert_close(run(transformer, given, 2).cpu(), expected.cpu(), atol=1e-4, rtol=1e-4)
        counts = of_one_step(lambda steps: run(transformer, given, steps))
    counts_table.append((f"the same, {references} reference(s), mindiesd", described(counts)))
    assert counts[0] <= WITH_MINDIESD
    assert counts[1:] == (0, 0, 0)


def test_a_step_of_the_stock_blocks(transformer, conditioning, counts_table):
    """The baseline, and that the counter counts."""
    given, x = conditioning(1), latents().repeat(2, 1, 1, 1)

    def stock(steps: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                predict_velocity(
                    transformer,
                    x,
                    torch.full((2,), 500.0, device=NPU),
                    given.prompt_embeds.repeat(2, 1, 1),
                    given.pooled_prompt_embeds.repeat(2, 1),
                    [given.reference_latents[0].repeat(2, 1, 1, 1)],
                )

    counts = of_one_step(stock)
    counts_table.append(("the same, 1 reference, blocks of diffusers", described(counts)))
    assert counts[0] > 1.4 * MOST_LAUNCHES


def test_a_captured_step_is_one_replay_and_equal_to_the_bit(transformer, conditioning, counts_table, caplog):
    given = conditioning(1)
    expected = run(transformer, given, 4)
    counts = of_one_step(lambda steps: run(transformer, given, steps, capture_graph=True))
    counts_table.append(("a step, 24 blocks, 1 reference(s), captured", described(counts)))
    reset()
    captured = run(transformer, given, 4, capture_graph=True)
    assert state.counts.operators["replay of a graph"] == 4
    # The replay, the two inputs copied in, guidance and the scheduler's step.
    assert counts[0] <= 12
    assert counts[1:] == (0, 0, 0)
    assert torch.equal(captured.cpu(), expected.cpu())
    assert not caplog.records


def test_a_preview_costs_one_copy_a_step(transformer, conditioning, counts_table):
    given = conditioning(0)

    def preview(step, timestep, latents, x0):
        x0.cpu()
        return latents

    counts = of_one_step(lambda steps: run(transformer, given, steps, on_step=preview))
    counts_table.append(("a step, 24 blocks, with a preview", described(counts)))
    assert counts[1:] == (0, 1, 1)


def test_modulation_in_pieces_is_the_same(transformer, conditioning, monkeypatch):
    given = conditioning(1)
    expected = run(transformer, given, 5)
    monkeypatch.setattr("deepgen_npu.model.modulation.MODULATION_BYTES", 1)
    # Not to the bit: a matrix product of other rows rounds differently.
    torch.testing.assert_close(run(transformer, given, 5).cpu(), expected.cpu(), atol=1e-4, rtol=1e-4)
