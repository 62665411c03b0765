"""Everything that is Ascend's own. torch_npu is imported here and only when an NPU is asked for."""

from __future__ import annotations

import functools
import os

import torch

from . import npu_setup


class DeviceError(RuntimeError):
    """A device was asked for that this machine does not have; the message says why and what to do."""


@functools.cache
def import_torch_npu() -> None:
    """Import torch_npu, which adds ``torch.npu``.

    Raises:
        DeviceError: When it is not installed or does not load: which of it, and the command that mends it.
    """
    try:
        import torch_npu  # pyright: ignore[reportMissingImports]  # noqa: F401
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch_npu":
            command = npu_setup.install_command(torch.__version__)
            trouble = npu_setup.Trouble(npu_setup.NOT_INSTALLED, f"{command} (see requirements-npu.txt)")
            raise DeviceError(f"An NPU was asked for: {trouble}. {npu_setup.WITHOUT_NPU}") from None
        trouble = npu_setup.why_not_loaded(
            f"{type(error).__name__}: {error}",
            os.environ,
            torch=torch.__version__,
            torch_npu=npu_setup.package_version("torch_npu"),
        )
        raise DeviceError(f"An NPU was asked for: {trouble}. {npu_setup.WITHOUT_TORCH_NPU}") from error


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
        trouble = npu_setup.no_card(os.environ, npu_setup.cards(), npu_setup.driver_version())
        raise DeviceError(f"An NPU was asked for: {trouble}. {npu_setup.WITHOUT_NPU}")
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
