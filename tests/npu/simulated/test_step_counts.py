"""What a denoising step costs the host, at the depth of DeepGen 1.0 (24 blocks, 13 of them dual) and narrow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from deepgen_npu.conditioning import Conditioning
from deepgen_npu.denoising import denoise
from deepgen_npu.model.projections import lay_together
from dev.npu_simulator import simulated_mindiesd
from dev.npu_simulator.simulated import reset, state
from dev.speed import deep, launches


NPU = torch.device("npu:0")
# The original makes 1,933 launches and 74 copies to the device.
MOST_LAUNCHES = {launches.TOGETHER: 817, launches.APART: 937, launches.MINDIESD: 721, launches.CAPTURED: 9}
"""Of a step, by its form. Captured: the replay, the two inputs copied in, guidance and the scheduler's step."""


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


def run(transformer, given, steps, **options):
    with torch.no_grad():
        return denoise([transformer], deep.scheduler(), given, latents(), steps, 4.0, **options)


def described(counts: dict[str, int]) -> str:
    others = ", ".join(f"{counts.get(name, 0)} {name}" for name in launches.NO_LAUNCHES)
    return f"{launches.launches(counts)} launches, {others}"


def test_each_form_of_a_step(counts_table):
    """As the table of `dev.speed` has them. The stock blocks are the baseline, and show that the counter counts."""
    found = launches.forms()
    for form, cases in found.items():
        for case, counts in cases.items():
            count = launches.launches(counts)
            counts_table.append((f"a step, 24 blocks, {case}, {launches.TITLES[form]}", f"{count} launches"))
            assert not counts.keys() & launches.NO_LAUNCHES, (form, case)
            if form == launches.STOCK:
                assert count > 1450
            else:
                assert count <= MOST_LAUNCHES[form], (form, case)
    assert found.keys() == {launches.STOCK, *MOST_LAUNCHES}


def test_a_second_reference_costs_no_launch(transformer, conditioning, counts_table):
    given = conditioning(2)
    counts = launches.of_one_step(lambda steps: run(transformer, given, steps))
    counts_table.append(("a step, 24 blocks, 2 references", described(counts)))
    assert launches.launches(counts) <= MOST_LAUNCHES[launches.TOGETHER] and not counts.keys() & launches.NO_LAUNCHES


def test_weights_that_have_moved_compute_the_same(transformer, conditioning):
    given = conditioning(1)
    expected = run(transformer, given, 2)
    transformer.to("cpu").to(NPU)
    try:
        found = run(transformer, given, 2)
    finally:
        lay_together(transformer)
    torch.testing.assert_close(found.cpu(), expected.cpu(), atol=1e-4, rtol=1e-4)


def test_the_norm_of_mindiesd_computes_the_same(transformer, conditioning):
    given = conditioning(1)
    expected = run(transformer, given, 2)
    with simulated_mindiesd.installed():
        found = run(transformer, given, 2)
    assert state.counts.operators[simulated_mindiesd.NAME] > 0
    torch.testing.assert_close(found.cpu(), expected.cpu(), atol=1e-4, rtol=1e-4)


def test_a_captured_step_is_one_replay_and_equal_to_the_bit(transformer, conditioning, caplog):
    given = conditioning(1)
    expected = run(transformer, given, 4)
    reset()
    captured = run(transformer, given, 4, capture_graph=True)
    assert state.counts.operators["replay of a graph"] == 4
    assert torch.equal(captured.cpu(), expected.cpu())
    assert not caplog.records


def test_a_preview_costs_one_copy_a_step(transformer, conditioning, counts_table):
    given = conditioning(0)

    def preview(step, timestep, latents, x0):
        x0.cpu()
        return latents

    counts = launches.of_one_step(lambda steps: run(transformer, given, steps, on_step=preview))
    counts_table.append(("a step, 24 blocks, with a preview", described(counts)))
    assert [counts.get(name, 0) for name in launches.NO_LAUNCHES] == [0, 1, 1]


def test_modulation_in_pieces_is_the_same(transformer, conditioning, monkeypatch):
    given = conditioning(1)
    expected = run(transformer, given, 5)
    monkeypatch.setattr("deepgen_npu.model.modulation.MODULATION_BYTES", 1)
    # Not to the bit: a matrix product of other rows rounds differently.
    torch.testing.assert_close(run(transformer, given, 5).cpu(), expected.cpu(), atol=1e-4, rtol=1e-4)
