"""Every decision about devices: which one, which dtype, where noise is drawn, how to wait for them."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from . import auto_dtype, npu
from .checks import must_be, no_such_card
from .dtypes import CHOICES, dtype_name, torch_dtype
from .errors import DeviceError


logger = logging.getLogger(__name__)


def resolve_device(device: str | torch.device | None = "auto") -> torch.device:
    """The device that a user's choice means. It exists.

    Args:
        device: ``auto`` (NPU, then CUDA, then CPU), ``npu``, ``npu:1``, ``cuda``, ``cuda:1`` or ``cpu``.

    Raises:
        ValueError: For a name that is none of these.
        DeviceError: When the device is not there.
    """
    name = "auto" if device is None else str(device)
    if name == "auto":
        if npu.npu_count() > 0:
            name = "npu"
        else:
            name = "cuda" if _backend("cuda").is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("npu", "cuda", "cpu") or (number and not number.isdigit()):
        raise ValueError(must_be("device", "auto, npu, npu:N, cuda, cuda:N or cpu", name))
    index = int(number or 0)
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "npu":
        npu.require_npu(index)
    elif not _backend(kind).is_available():
        raise DeviceError(
            f"{name} does not exist: this PyTorch finds no CUDA device (torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}). Choose --device auto or --device cpu."
        )
    elif index >= (count := _backend(kind).device_count()):
        raise DeviceError(no_such_card("cuda", index, count, "CUDA_VISIBLE_DEVICES"))
    return torch.device(kind, index)


def _backend(kind: str) -> Any:
    """PyTorch's module for a kind of device; all have the same interface."""
    return getattr(torch, kind)


def prepare_thread(device: torch.device) -> None:
    """Set the calling thread up for a device; call it when a thread starts to use one."""
    if device.type == "npu":
        npu.import_torch_npu()
        npu.set_up_thread(device.index or 0)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which an accelerator is the current one of the calling thread."""
    return nullcontext() if device.type == "cpu" else _backend(device.type).device(device)


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype that a user's choice means on a device.

    Args:
        dtype: A `torch.dtype`, its name, or ``auto`` (see `best_dtype`).
        device: Where the model runs.

    Raises:
        ValueError: For any other dtype.
        DeviceError: For bfloat16 on an NPU that has none.
    """
    if dtype is None or dtype == "auto":
        best = best_dtype(device)
        if device.type != "cpu" and best.dtype != "bfloat16":
            logger.info("dtype auto is %s on %s: %s.", best.dtype, device, best.why)
        return torch_dtype(best.dtype)
    name = dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype
    if name not in CHOICES:
        raise ValueError(must_be("dtype", f"one of {', '.join(CHOICES)}", dtype))
    if name == "bfloat16" and device.type == "npu" and (best := best_dtype(device)).dtype != name:
        raise DeviceError(
            f"dtype bfloat16 cannot be used on {device}: {best.why}. Choose auto, which is {best.dtype}."
        )
    return torch_dtype(name)


def best_dtype(device: torch.device) -> auto_dtype.Choice:
    """What the dtype ``auto`` is on a device, and why.

    bfloat16, in which the model was trained and published, where the device multiplies in it; float16 on cards
    without it (see `model.float16`); float32 on other CPUs, and where neither is safe.
    """
    if device.type == "cpu":
        fast = cpu_has_fast_bfloat16()
        how = "multiplies in" if fast else "only emulates"
        return auto_dtype.Choice("bfloat16" if fast else "float32", f"this CPU {how} bfloat16")
    if device.type == "npu":
        return auto_dtype.on_npu(device_name(device), npu.has_bfloat16())
    if device.type == "cuda":
        capability = _backend("cuda").get_device_capability(device)
        return auto_dtype.on_cuda(device_name(device), capability, torch.version.hip is not None)
    return auto_dtype.Choice("bfloat16", "the model was trained in it")


def cpu_has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX512-BF16 or AMX on x86, the BF16 extension on ARM).

    Other CPUs emulate it, several times slower than float32.
    """
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("arm_bf16") or capabilities.get("bf16"))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all launched operators; call it before reading a clock."""
    if device.type != "cpu":
        _backend(device.type).synchronize(device)


def random_noise(shape: tuple[int, ...], generator: torch.Generator | None, dtype: torch.dtype) -> torch.Tensor:
    """Standard normal noise.

    From a CPU generator (or PyTorch's global one) it is drawn in float32 on the CPU, so that a seed gives
    the same noise on every device and in every dtype. From a device's own generator it is drawn there and
    in ``dtype``, as in the original: that noise differs between devices.
    """
    if generator is None or generator.device.type == "cpu":
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


def memory_allocated(device: torch.device) -> int | None:
    """Bytes of tensors on a device now; None on a CPU, where PyTorch does not count them."""
    return None if device.type == "cpu" else _backend(device.type).memory_allocated(device)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring `peak_memory` again."""
    if device.type != "cpu":
        _backend(device.type).reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes of tensors on a device since `reset_peak_memory`; 0 on a CPU."""
    return 0 if device.type == "cpu" else _backend(device.type).max_memory_allocated(device)


def free_memory(device: torch.device) -> tuple[int, int] | None:
    """(free, total) bytes of a device's own memory.

    For a CPU, main memory that is available without swapping; None where the system does not report it.
    """
    if device.type != "cpu":
        return _backend(device.type).mem_get_info(device)
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()]
        kilobytes = {words[0]: int(words[1]) for words in lines}
        return kilobytes["MemAvailable:"] * 1024, kilobytes["MemTotal:"] * 1024
    except (OSError, ValueError, LookupError):
        return None


def pinned_memory(device: torch.device, nbytes: int) -> torch.Tensor | None:
    """Bytes [n] of main memory that a card copies from by itself; None where that cannot be had.

    PyTorch keeps such memory for the next caller once it is no longer used.
    """
    if device.type not in ("npu", "cuda"):
        return None
    try:
        with on_device(device):
            return torch.empty(nbytes, dtype=torch.uint8).pin_memory()
    except RuntimeError:  # systems limit it, and not every build of PyTorch can
        logger.debug("%d bytes of main memory cannot be pinned for %s", nbytes, device, exc_info=True)
        return None


def can_cast_from(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a card converts floats that are stored in a dtype. Some have no bfloat16, Ascend's no float64."""
    if dtype == torch.bfloat16:
        return device.type != "npu" or npu.has_bfloat16() is True
    return dtype in (torch.float16, torch.float32)


def empty_cache(device: torch.device) -> None:
    """Return memory that no tensor uses to the device."""
    if device.type != "cpu":
        _backend(device.type).empty_cache()


def device_name(device: torch.device) -> str:
    """The name of a card."""
    return str(_backend(device.type).get_device_name(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    torch_npu raises its own class or a plain RuntimeError with the allocator's message ("NPU out of memory").
    """
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_host_memory(error):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def is_out_of_host_memory(error: BaseException) -> bool:
    """Whether an error says that main memory is used up.

    PyTorch's allocator raises a plain RuntimeError for it ("DefaultCPUAllocator: can't allocate memory", on Windows
    "not enough memory"), Python and NumPy a MemoryError.
    """
    if isinstance(error, MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
