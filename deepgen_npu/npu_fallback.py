"""Operators that have no kernel on the NPU: each is named, once in a process, when it first runs.

torch_npu computes them on the CPU: it copies the arguments to the host and the result back, while the card waits. It
says so in C++ on the standard error stream, where neither logging nor warnings of Python see it (`npu_cpu_fallback` in
torch_npu/csrc/aten/VariableFallbackKernel.cpp of Ascend/pytorch, commit 9e73e708).

PyTorch's dispatcher knows which operators these are. Each of them, and no other, gets a kernel that names it and then
calls torch_npu's. What has a kernel of its own is launched as before: a step costs the same.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import torch

from .npu_setup import package_version


logger = logging.getLogger(__name__)

_KEY = "PrivateUse1"
"""The NPU in PyTorch's dispatcher."""

_ANY_DEVICE = ("CompositeExplicitAutogradNonFunctional", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
"""Kernels that the dispatcher prefers to a fallback (`computeDispatchTableEntryWithDebug` in PyTorch's
aten/src/ATen/core/dispatch/OperatorEntry.cpp): they call other operators."""

_lock = threading.Lock()
_libraries: list[torch.library.Library] = []  # kernels are unregistered when their library is collected
_named: list[str] = []


def named() -> list[str]:
    """The operators that have run on the CPU in this process, as ``aten::name.overload``, in that order."""
    return list(_named)


def watch() -> None:
    """Name operators without a kernel from now on, in all threads; called again it does nothing.

    It does nothing either where torch_npu raises an error instead (``TORCH_NPU_FALLBACK_CPU_DISABLE=1``) and with
    PyTorch below 2.9, which cannot hand out the kernel that is replaced.
    """
    with _lock:
        if _libraries or os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1":
            return
        library = torch.library.Library("aten", "IMPL")
        _libraries.append(library)
        try:
            for name in without_kernel():
                kernel = torch.library.get_kernel(name, _KEY)
                library.impl(name.removeprefix("aten::"), _naming(name, kernel), _KEY, with_keyset=True)
        except (AttributeError, RuntimeError, TypeError) as error:  # of another PyTorch; the run does not depend on it
            logger.debug("Operators that run on the CPU are not named: %s", error)
        # A pack that brings a kernel for one of them may still register it: the later one is taken.
        getattr(torch.library, "_impls", set()).difference_update(getattr(library, "_op_impls", ()))


def without_kernel() -> list[str]:
    """Operators of PyTorch that run on the CPU, and on the NPU only by torch_npu's fallback."""
    if not torch._C._dispatch_has_backend_fallback(torch.DispatchKey.PrivateUse1):
        return []
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::") and has(name, "CPU"))
    return [name for name in names if not any(has(name, key) for key in (_KEY, *_ANY_DEVICE))]


def _naming(name: str, kernel: Any) -> Callable[..., Any]:
    def call(keys: Any, *args: Any, **kwargs: Any) -> Any:
        _name(name)
        return kernel.call_boxed(keys, *args, **kwargs)

    return call


def _name(name: str) -> None:
    if name in _named:
        return
    with _lock:
        if name in _named:
            return
        _named.append(name)
    logger.warning(
        "%s has no NPU kernel in torch_npu %s and runs on the CPU: its tensors are copied there and back, which is "
        "slow. The result is right. A newer torch_npu may have the kernel; if this was a DeepGen node or command, "
        "please report it.",
        name,
        package_version("torch_npu"),
    )
