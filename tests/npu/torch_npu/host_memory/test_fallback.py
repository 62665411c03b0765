"""Operators that the real torch_npu computes on the CPU, and what it does with a kernel in front of its fallback."""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version

import pytest
import torch

from deepgen_npu import npu_fallback
from deepgen_npu.devices import resolve_device


def of_one_tensor(x: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(x, x)


def in_place(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32, copy=True).lgamma_()


def of_several_results(x: torch.Tensor) -> torch.Tensor:
    return torch.cat(torch.geqrf(x.float())[:1])


CASES = {"aten::_int_mm": of_one_tensor, "aten::lgamma.out": in_place, "aten::geqrf": of_several_results}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    resolve_device("npu")
    monkeypatch.setattr(npu_fallback, "_named", [])


@pytest.mark.parametrize("name", CASES)
def test_it_is_named_once_and_computed(name, caplog):
    x = torch.randint(-9, 9, (32, 32), dtype=torch.int8)
    on_card = x.to("npu")
    with torch.inference_mode():
        results = [CASES[name](on_card) for _ in range(2)]
        expected = CASES[name](x)
    for result in results:
        assert result.device.type == "npu"
        torch.testing.assert_close(result.cpu(), expected)
    (record,) = [record for record in caplog.records if record.name == npu_fallback.__name__]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{name} has no NPU kernel in torch_npu {version('torch_npu')} and runs on")
    assert npu_fallback.named() == [name]


def test_pythons_warnings_do_not_show_it():
    """Why a kernel is needed to notice it: torch_npu writes past them."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.lgamma(torch.rand(3, device="npu"))
    assert not [one for one in seen if "fall back to run on the CPU" in str(one.message)]


def test_what_has_a_kernel_keeps_it():
    """All that the dispatcher would send to torch_npu's fallback is watched, and nothing else."""
    assert npu_fallback.without_kernel() == []
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
            chosen = next(
                line for line in torch._C._dispatch_dump_table(name).splitlines() if line.startswith("PrivateUse1:")
            )
            assert "backend fallback" not in chosen, name
    assert "npu_fallback.py" not in torch._C._dispatch_dump_table("aten::mm")


def test_a_pack_may_bring_the_kernel():
    """Registered later, it is the one that runs."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that a kernel is replaced
        library.impl("_int_mm", lambda a, b: torch.zeros(2, device=a.device), "PrivateUse1")
    x = torch.ones(32, 32, dtype=torch.int8, device="npu")
    assert torch.equal(of_one_tensor(x).cpu(), torch.zeros(2))
    assert npu_fallback.named() == []
    library._destroy()
    assert of_one_tensor(x).shape == (32, 32)
    assert npu_fallback.named() == ["aten::_int_mm"]
