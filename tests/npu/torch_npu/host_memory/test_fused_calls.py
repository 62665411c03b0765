"""Every fused call of ours, replayed on the shape functions that torch_npu itself has for it.

They check names, order and types of arguments, and report the shapes and dtypes of the results, which the reference
kernels must have as well.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from golden import CASES, TINY, differences
from torch._subclasses.fake_tensor import FakeTensorMode

from deepgen_npu import DeepGenPipeline, npu_fallback
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.quantization.layers import PARTS
from deepgen_npu.tools.quantize import plan, quantize
from dev.npu_simulator import host_npu, schemas
from dev.npu_simulator.host_npu import FusedCall


HERE = schemas.of(version("torch_npu"))
ATTENTION = "npu_fusion_attention_v3" if "npu_fusion_attention_v3" in HERE else "npu_fusion_attention"
OURS = {"npu_rms_norm", "npu_rotary_mul", "npu_swiglu", ATTENTION}
OF_INT8 = {"npu_dynamic_quant", "npu_rotate_quant", "npu_quant_matmul"} & HERE.keys()


def shape(value: Any) -> Any:
    """Something hashable that distinguishes calls: tensors by size, stride and dtype."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(shape(entry) for entry in value)
    return value


def tensors(result: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    results = result if isinstance(result, (list, tuple)) else [result]
    return [(tuple(one.shape), one.dtype) for one in results if isinstance(one, torch.Tensor)]


def replay(call: FusedCall, device: str) -> Any:
    def convert(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)

    args = [convert(value) for value in call.args]
    kwargs = {name: convert(value) for name, value in call.kwargs.items()}
    return getattr(torch.ops.npu, call.name)(*args, **kwargs)


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> list[FusedCall]:
    """One of each kind that the golden cases make, in float32 and in bfloat16, and with weights in int8."""
    kinds = {}
    source, quantized = Checkpoint.open(TINY), tmp_path_factory.mktemp("quantized") / "int8"
    quantize(source, quantized, plan(source, "int8_convrot", PARTS))
    for folder, dtype in ((TINY, torch.float32), (TINY, torch.bfloat16), (quantized, torch.bfloat16)):
        pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=dtype, device="npu")
        for case in CASES:
            with host_npu.recorded_fused_calls() as record:
                differences(pipe, case)
            for call in record:
                kind = (call.name, shape(call.args), shape(tuple(sorted(call.kwargs.items(), key=lambda one: one[0]))))
                kinds[kind] = call
    return list(kinds.values())


def test_all_that_we_use_was_called(calls):
    assert {call.name for call in calls} == OURS | OF_INT8
    assert npu_fallback.named() == [], "operators that torch_npu computes on the CPU"


def on_meta(call: FusedCall) -> Any:
    return replay(call, "meta")


def on_a_fake_card(call: FusedCall) -> Any:
    with FakeTensorMode():
        result = replay(call, "npu")
    results = result if isinstance(result, (list, tuple)) else [result]
    assert {one.device.type for one in results if isinstance(one, torch.Tensor)} == {"npu"}
    return result


@pytest.mark.parametrize("run", [on_meta, on_a_fake_card])
def test_torch_npu_accepts_the_call_and_agrees_on_the_result(calls, run: Callable[[FusedCall], Any]):
    for call in calls:
        found, ours = tensors(run(call)), tensors(call.result)
        if call.name == ATTENTION:
            # Attention, and the maximum and sum of the softmax; seed and offset of the dropout follow.
            found, ours = found[:3], ours[:3]
        assert found == ours, (call.name, shape(call.args), call.kwargs)


def test_a_wrong_call_is_not_accepted():
    """Of the replay itself."""
    x = torch.empty(2, 8, device="meta")
    with pytest.raises(RuntimeError, match="gamma"):
        torch.ops.npu.npu_rms_norm(x)
    with pytest.raises(RuntimeError, match="Position: 3"):
        torch.ops.npu.npu_rotary_mul(x, x, x, 0)
