"""The simulated NPU, for this whole process: two cards of 64 GiB.

`tests/npu/test_simulated.py` runs this folder, and the hardware tests, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from dev.npu_simulator import simulated
from dev.npu_simulator.simulated_torch_npu import install


install(cards=2)  # before diffusers and transformers are imported

from golden import TINY  # noqa: E402

from deepgen_npu import DeepGenPipeline  # noqa: E402


_table: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def _fresh_counts():
    """Counts begin at zero, and a test that shrank a card gives its memory back."""
    totals = [memory.total for memory in simulated.state.memory]
    simulated.reset()
    yield
    for memory, total in zip(simulated.state.memory, totals, strict=True):
        memory.total = total


@pytest.fixture
def counts_table():
    """Rows (what, counts) appended here are printed at the end of the run."""
    return _table


@pytest.fixture(scope="session")
def load():
    """Loads the tiny checkpoint in float32, to ``npu:0`` by default."""

    def load(device: str = "npu", torch_dtype: torch.dtype = torch.float32, **options) -> DeepGenPipeline:
        pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch_dtype, device=device, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture(scope="session")
def on_npu(load) -> DeepGenPipeline:
    """The tiny checkpoint on npu:0; leave it as you found it."""
    return load()


@pytest.fixture(scope="session")
def on_cpu(load) -> DeepGenPipeline:
    """The tiny checkpoint on the CPU of a host with torch_npu installed; leave it as you found it."""
    return load("cpu")


def pytest_terminal_summary(terminalreporter):
    if _table:
        terminalreporter.section("counted on the simulated NPU")
        width = max(len(what) for what, _ in _table)
        for what, counts in _table:
            terminalreporter.write_line(f"{what:{width}}  {counts}")
