"""Tests for a machine with a card: ``pytest tests/hardware -m npu`` or ``-m cuda``.

`DEEPGEN_HARDWARE_SIZE` is the size of the random weights that are measured: published (14 GB, the default), benchmark
(2 GB) or tiny. The simulated NPU also runs these tests, so that they are known to work before a card does.
"""

from __future__ import annotations

import os


# Before torch is imported. An operator that the NPU lacks would silently run on the CPU.
os.environ.setdefault("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")

import pytest
import torch


_table: list[tuple[str, str]] = []


@pytest.fixture
def hardware_table():
    """Rows (what, value) appended here are printed at the end of the run."""
    return _table


@pytest.fixture(
    scope="session", params=[pytest.param("npu", marks=pytest.mark.npu), pytest.param("cuda", marks=pytest.mark.cuda)]
)
def device(request) -> torch.device:
    """The card; requested by name: a machine without it fails with the reason."""
    from deepgen_npu.devices import resolve_device

    return resolve_device(request.param)


@pytest.fixture(autouse=True)
def _plain_float32(request):
    """float32 means float32: no TF32 or HF32 in matrix products and convolutions."""
    if "device" not in request.fixturenames:
        yield
        return
    kind = request.getfixturevalue("device").type
    if kind == "cuda":
        switches = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    else:
        npu = torch.npu
        switches = [(getattr(npu, part), "allow_hf32") for part in ("matmul", "conv") if hasattr(npu, part)]
    # torch_npu's switches are read in some releases only; what they were is then not known.
    before = [getattr(owner, name, None) for owner, name in switches]
    for owner, name in switches:
        setattr(owner, name, False)
    yield
    for (owner, name), value in zip(switches, before, strict=True):
        if value is not None:
            setattr(owner, name, value)


def pytest_terminal_summary(terminalreporter):
    if _table:
        terminalreporter.section("measured on this machine")
        width = max(len(what) for what, _ in _table)
        for what, value in _table:
            terminalreporter.write_line(f"{what:{width}}  {value}")
