"""The real torch_npu with one card whose memory is host memory.

Device module, allocator, storages, dispatch, schemas and Python patches are those of torch_npu. Arithmetic is that of
PyTorch on the CPU, and of `kernels` for the fused operators.

It works in a process that was started with `environment` (see README.md).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from .torch_npu_build import KERNELS, LIBRARIES


# Operators that allocate, view or move memory stay those of torch_npu, as does the choice of the attention kernel.
_KEPT = (
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty_strided",
    "aten::empty_with_swapped_memory",
    "aten::resize_",
    "aten::resize_as_",
    "aten::set_",
    "aten::is_set_to",
    "aten::record_stream",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::as_strided",
    "aten::as_strided_",
    "aten::view",
    "aten::_reshape_alias",
    "aten::_lazy_clone",
    "aten::_copy_from_and_resize",
    "aten::scaled_dot_product_attention",
    "npu::empty_with_format",
    "npu::unsafe_empty_with_format",
    "npu::get_npu_format",
    "npu::get_storage_size",
)


def environment(cards: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that loads the stand-ins instead of CANN.

    Args:
        cards: 0 or 1.
        base: Other variables; those of this process by default.
    """
    variables = dict(os.environ if base is None else base)
    variables["ASCEND_STUB_DEVICES"] = str(cards)
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(LIBRARIES), variables.get("LD_LIBRARY_PATH")]))
    # The boxed kernels read device memory immediately, so no other thread may have operators left to launch.
    variables["TASK_QUEUE_ENABLE"] = "0"
    # As on a host with CANN, importing torch imports torch_npu.
    variables.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    # Compiled by Python in each process, the packages would cost ten seconds a process.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def require(cards: int) -> None:
    """Stop pytest if it was not started with the `environment` of that number of cards."""
    if os.environ.get("ASCEND_STUB_DEVICES") != str(cards):
        pytest.exit("These tests need an environment of their own: make test-torch-npu", returncode=4)


@functools.cache
def install() -> int:
    """Register the arithmetic of the card; returns the number of operators."""
    import torch

    from . import kernels

    kernels.register("CPU", _observe)
    # The softmax of torch_npu calls it; PyTorch has no such operator. In 2.9.0 it has no underscore.
    library = torch.library.Library("npu", "IMPL")
    for name in ("_npu_dtype_cast", "npu_dtype_cast"):
        if hasattr(torch.ops.npu, name):
            library.impl(name, lambda input, dtype: input.to(dtype), "CPU")
    _libraries.append(library)
    torch.ops.load_library(str(KERNELS))
    return len(torch.ops.host_npu.install(list(_KEPT)))


@dataclass(frozen=True)
class FusedCall:
    """A call of a fused operator, with the CPU tensors that stand for those of the card."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


_libraries: list[Any] = []  # kernels are unregistered when their library is collected
_records: list[list[FusedCall]] = []


def _observe(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    for record in _records:
        record.append(FusedCall(name, args, kwargs, result))


@contextmanager
def recorded_fused_calls() -> Iterator[list[FusedCall]]:
    """Calls of the fused operators while the block runs."""
    record: list[FusedCall] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


@contextmanager
def counted_calls() -> Iterator[dict[str, int]]:
    """Number of calls by operator of the card, with namespace; filled in at the end of the block."""
    import torch

    counts: dict[str, int] = {}
    torch.ops.host_npu.count(True)
    try:
        yield counts
    finally:
        torch.ops.host_npu.count(False)
        counts.update(torch.ops.host_npu.calls())
