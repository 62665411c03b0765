"""Everything that is Ascend's own. torch_npu is imported here and only when an NPU is asked for."""

from __future__ import annotations

import functools

import torch


class DeviceError(RuntimeError):
    """A device was asked for that this machine does not have; the message says why and what to do."""


_FALLBACK = "To run without an NPU, choose --device auto or --device cpu."


@functools.cache
def import_torch_npu() -> None:
    """Import torch_npu, which adds ``torch.npu``.

    Raises:
        DeviceError: When it is not installed or does not load.
    """
    try:
        import torch_npu  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch_npu":
            raise DeviceError(f"torch_npu needs the package {error.name}: pip install it.") from error
        raise DeviceError(
            "An NPU was asked for, but torch_npu is not installed in this Python. Install the release that "
            f"belongs to your torch {torch.__version__} (see requirements-npu.txt). {_FALLBACK}"
        ) from None
    except Exception as error:
        raise DeviceError(
            f"torch_npu is installed but does not load ({error}). Source the CANN environment first "
            "(source /usr/local/Ascend/ascend-toolkit/set_env.sh) and check that torch_npu belongs to torch "
            f"{torch.__version__}. {_FALLBACK}"
        ) from error


def npu_count() -> int:
    """Number of usable NPUs; 0 also where torch_npu is missing or broken."""
    try:
        import_torch_npu()
    except DeviceError:
        return 0
    return torch.npu.device_count() if torch.npu.is_available() else 0


def require_npu(index: int) -> None:
    """Make sure that card ``index`` exists and set it up for the calling thread.

    Raises:
        DeviceError: When there is no such card.
    """
    import_torch_npu()
    count = npu_count()
    if count == 0:
        raise DeviceError(
            "torch_npu is installed, but it finds no NPU. Check the driver with `npu-smi info` and that "
            f"ASCEND_RT_VISIBLE_DEVICES does not hide the card. {_FALLBACK}"
        )
    if index >= count:
        raise DeviceError(f"npu:{index} was asked for; this machine has npu:0 to npu:{count - 1}.")
    set_up_thread(index)


def set_up_thread(index: int) -> None:
    """Choose the card for the calling thread and the settings every Ascend entry point uses.

    Contexts belong to threads: ComfyUI loads packs in one thread and runs prompts in another. Kernels
    compiled online (jit_compile) and private memory formats make first runs slow and convolutions fail;
    Ascend's own examples turn both off.
    """
    torch.npu.set_device(index)
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
