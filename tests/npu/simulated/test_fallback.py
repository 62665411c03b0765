"""Operators without a kernel on the card: each is named once, and the others are left alone."""

from __future__ import annotations

import threading
from importlib.metadata import version

import pytest
import torch
from golden import denoised

from deepgen_npu import denoising, npu_fallback, pipeline
from deepgen_npu.devices import resolve_device
from deepgen_npu.graphs import capture
from deepgen_npu.tools import bench
from deepgen_npu.tools.runs import RunSettings
from dev.npu_simulator.simulated import state


INT_MM = "aten::_int_mm"  # no release of torch_npu up to 2.14.0 has a kernel for it


@pytest.fixture
def int_mm(monkeypatch):
    """An operator that the card has no kernel for; on the CPU it needs 2-d int8."""
    monkeypatch.delenv("TORCH_NPU_FALLBACK_CPU_DISABLE", raising=False)  # tests/hardware sets it
    resolve_device("npu")
    monkeypatch.setattr(state, "without_kernel", {INT_MM})
    monkeypatch.setattr(npu_fallback, "_named", [])

    def int_mm(x: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(x, x)

    return int_mm


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == npu_fallback.__name__]


def test_an_operator_is_named_once_in_all_threads(int_mm, caplog):
    x = torch.randint(-9, 9, (32, 32), dtype=torch.int8)
    on_card = x.to("npu")
    results = []
    threads = [threading.Thread(target=lambda: results.append(int_mm(on_card).cpu())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, int_mm(x)) for result in results)
    assert state.counts.fallbacks[INT_MM] == 4
    (line,) = lines(caplog)
    assert line.startswith(f"{INT_MM} has no NPU kernel in torch_npu {version('torch_npu')} and runs on the CPU")
    assert npu_fallback.named() == [INT_MM]


def test_what_has_a_kernel_is_not_touched(int_mm, on_npu, caplog):
    """Neither in a run nor in what the dispatcher calls for it."""
    denoised(on_npu, "edit")
    assert not state.counts.fallbacks and not lines(caplog) and not npu_fallback.named()
    tables = [torch._C._dispatch_dump_table(name) for name in ("aten::add.Tensor", "aten::mm", INT_MM)]
    assert ["npu_fallback.py" in table for table in tables] == [False, False, True]


def test_where_a_graph_is_captured_it_is_named_too(int_mm, caplog):
    def step(latents, modulation):
        return int_mm(latents) + modulation

    given = torch.ones(32, 32, dtype=torch.int8, device="npu"), torch.ones((), dtype=torch.int32, device="npu")
    assert capture(step, *given) is step
    assert len(lines(caplog)) == 1
    assert "could not be captured" in caplog.text and f"{INT_MM} copies to the host" in caplog.text


@pytest.mark.parametrize("reason", ["PyTorch 2.8", "an error is wanted"])
def test_what_cannot_be_watched_is_left_alone(int_mm, reason, monkeypatch):
    monkeypatch.setattr(npu_fallback, "_libraries", [])
    monkeypatch.setattr(npu_fallback, "without_kernel", lambda: [INT_MM])
    if reason == "PyTorch 2.8":
        monkeypatch.delattr(torch.library, "get_kernel")
    else:
        monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")
    before = torch._C._dispatch_dump_table(INT_MM)
    npu_fallback.watch()
    assert torch._C._dispatch_dump_table(INT_MM) == before


def test_bench_lists_it(int_mm, on_npu, monkeypatch):
    settings = RunSettings("a red circle", 64, 64, seed=0, num_inference_steps=1, guidance_scale=1.0)
    before = bench.measure(on_npu, torch.device("npu:0"), settings, 1)
    assert before.as_dict()["on_cpu"] == [] and "on the CPU" not in bench.as_markdown(before)

    def denoise(*arguments, **options):
        int_mm(torch.ones(32, 32, dtype=torch.int8, device="npu"))
        return denoising.denoise(*arguments, **options)

    monkeypatch.setattr(pipeline, "denoise", denoise)
    result = bench.measure(on_npu, torch.device("npu:0"), settings, 1)
    assert result.as_dict()["on_cpu"] == [INT_MM]
    assert bench.as_markdown(result).endswith(f"Without a kernel on the NPU, computed on the CPU: {INT_MM}.")
